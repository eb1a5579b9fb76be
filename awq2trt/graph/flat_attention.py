"""Gives a tower's `Attention` its queries, keys and values as linears make them, with the heads of a row side by side.

In: a vision graph as `export` wrote it, which moves heads before rows, the only order that TensorRT takes. Out: the
same with `Attention` of [B, S, heads D], changed in place. ONNX Runtime's flash and memory-efficient kernels for CUDA
read rows before heads: of the other order they first make this one, so a layer would turn its heads there and back.
What does not fit the pattern stays as it is.

https://onnx.ai/onnx/operators/onnx__Attention.html; `onnxruntime/core/providers/cuda/llm/attention.cc` of
https://github.com/microsoft/onnxruntime.
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from awq2trt.graph.matching import (
    NoMatchError,
    integers_of,
    made_by,
    maker,
    need,
    need_permutation,
    remove_unused_,
    take,
)

_HEADS_AXIS: Final = 2
"""Axis of the heads in queries, keys and values, which are [B, S, heads, D]."""


def flatten_attention_(model: ir.Model) -> None:
    """Rewrites every attention that fits."""
    for node in list(model.graph):
        if node.op_type == "Attention" and node.domain == "":
            try:
                _flatten_(model.graph, node)
            except NoMatchError:
                continue
    remove_unused_(model.graph)


def _flatten_(graph: ir.Graph, attention: ir.Node) -> None:
    """Rewrites one."""
    need(len(attention.outputs) == 1 and "q_num_heads" not in attention.attributes)
    swap = _only_use(attention.outputs[0], "Transpose")
    need_permutation(swap, (0, 2, 1, 3))
    merge = _only_use(swap.outputs[0], "Reshape")
    merged = integers_of(take(merge, 1))
    rows = [_rows_of(take(attention, index)) for index in range(3)]
    count = _count_heads(rows[2][0])
    flat = [_flat_(graph, attention, value, merged[-1], batched=batched) for value, batched in rows]
    heads = [ir.AttrInt64(name, count) for name in ("q_num_heads", "kv_num_heads")]
    attributes = [*attention.attributes.values(), *heads]
    flattened = ir.Node("", "Attention", [*flat, *attention.inputs[3:]], attributes, name=attention.name)
    (context,) = flattened.outputs
    context.type = attention.outputs[0].type
    graph.insert_before(attention, flattened)
    if merged[:_HEADS_AXIS] == [0, 0]:
        merge.outputs[0].replace_all_uses_with(context)
    else:
        merge.replace_input_with(0, context)


def _only_use(value: ir.Value, op_type: str) -> ir.Node:
    """The node of this type that alone uses a value."""
    uses = list(value.uses())
    need(len(uses) == 1 and uses[0].node.op_type == op_type and not value.is_graph_output())
    return uses[0].node


def _rows_of(value: ir.Value) -> tuple[ir.Value, bool]:
    """What [B, heads, S, D] was before its heads were moved: [B, S, heads, D] and True; or [S, heads, D] and False."""
    batched = not made_by(value, "Unsqueeze")
    if not batched:
        image = maker(value, "Unsqueeze")
        need(integers_of(take(image, 1)) == [0])
        value = take(image, 0)
    moved = maker(value, "Transpose")
    need_permutation(moved, (0, 2, 1, 3) if batched else (1, 0, 2))
    return take(moved, 0), batched


def _count_heads(rows: ir.Value) -> int:
    """Heads of values, from the node that divided a linear's output into them."""
    if made_by(rows, "Gather"):
        rows = take(maker(rows, "Gather"), 0)
    if made_by(rows, "Slice"):
        own = maker(rows, "Slice")
        need(len(own.inputs) == 4 and integers_of(take(own, 3)) == [1])
        (first,), (end,) = (integers_of(take(own, index)) for index in (1, 2))
        count = end - first
    else:
        count = integers_of(take(maker(rows, "Reshape"), 1))[_HEADS_AXIS]
    need(count > 0)
    return count


def _flat_(graph: ir.Graph, attention: ir.Node, rows: ir.Value, width: int, *, batched: bool) -> ir.Value:
    """[B, S, heads D] of what `_rows_of` found, as the linear gave it, or by a node before the attention."""
    if batched and made_by(rows, "Reshape"):
        split = maker(rows, "Reshape")
        need(integers_of(take(split, 1))[:_HEADS_AXIS] == [0, 0])
        return take(split, 0)
    need(width > 0)
    sizes = ir.node("Constant", [], {"value_ints": [0, 0, width] if batched else [1, -1, width]})
    merged = ir.node("Reshape", [rows, sizes.outputs[0]])
    merged.outputs[0].type = rows.type
    graph.insert_before(attention, [sizes, merged])
    return merged.outputs[0]
