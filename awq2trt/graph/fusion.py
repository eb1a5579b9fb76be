"""Puts our fused operators into a decoder: few nodes per block, for executors on which each node costs a kernel launch.

In: a decoder as `onnx_export.decoder_graph` builds it. Out: the same graph, changed in place to an equivalent one:

- q, k and v become one linear, and everything between it and o becomes one `CachedAttention` (`fused_attention`),
- gate and up become one linear with a `GatedActivation`,
- a residual sum and its norm become a `ResidualNorm`; a norm of anything else becomes one without a residual,
- such a norm, the one linear that reads it and its activation become a `FusedLinear`, and so do a linear and the
  residual sum behind it where no norm follows (`fused_linear`).

A pattern is either recognized completely or left alone, and inputs and outputs of the graph stay. Nodes that are found
by name in an exported file disappear: the residual stream after a block is an output of the next block's norm. So a
fused file is only for executors; checks of blocks read the exported one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.activations import match_activation
from awq2trt.graph.fused_attention import match_attention, replace_attention_
from awq2trt.graph.fused_linear import fuse_linears_
from awq2trt.graph.matching import (
    NoMatchError,
    integer_attribute,
    made_by,
    maker,
    need,
    remove_unused_,
    rows_of,
    take,
    take_place_,
    tensor_of,
)
from awq2trt.graph.merge_linears import merge_linears_, need_mergeable


def fuse_(model: ir.Model, head_sizes: Collection[int] = opset.ATTENTION_HEAD_SIZES) -> None:
    """Fuses as much as possible.

    Args:
        model: An exported model; it is changed.
        head_sizes: The head sizes for which attention is fused.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Reshape":
            _try_attention_(graph, node, head_sizes)
    for node in list(graph):
        if node.op_type == "Mul":
            _try_gated_(graph, node)
    remove_unused_(graph)
    for node in list(graph):
        if node.op_type in ("RMSNormalization", "LayerNormalization"):
            _try_norm_(graph, node)
    remove_unused_(graph)
    fuse_linears_(graph)


def fused_nodes(model: ir.Model) -> list[ir.Node]:
    """Returns the nodes of the fused operators."""
    return [node for node in model.graph if node.domain == opset.DOMAIN and node.op_type in opset.FUSED_OPERATORS]


def _try_attention_(graph: ir.Graph, flat: ir.Node, head_sizes: Collection[int]) -> None:
    try:
        pattern = match_attention(flat, head_sizes)
    except NoMatchError:
        return
    replace_attention_(graph, pattern)


def _try_gated_(graph: ir.Graph, product: ir.Node) -> None:
    """Fuses act(gate(x)) * up(x)."""
    try:
        activation, gated = match_activation(take(product, 0).producer())
        gate = maker(gated, opset.W4A16_LINEAR, opset.DOMAIN)
        up = maker(take(product, 1), opset.W4A16_LINEAR, opset.DOMAIN)
        need_mergeable([gate, up])
        width = rows_of(gate)
        need(width == rows_of(up) and width % opset.FUSED_WIDTH_MULTIPLE == 0)
    except NoMatchError:
        return
    merged = merge_linears_(graph, [gate, up])
    code = opset.ACTIVATION_CODES[activation]
    attributes: dict[str, int | str] = {opset.ATTR_ACTIVATION: code, **opset.PLUGIN_ATTRIBUTES}
    fused = ir.node(opset.GATED_ACTIVATION, [merged], attributes, domain=opset.DOMAIN, name=product.name)
    take_place_(graph, product, fused, {product.outputs[0]: fused.outputs[0]})


def _try_norm_(graph: ir.Graph, norm: ir.Node) -> None:
    try:
        operands = _match_norm(norm)
    except NoMatchError:
        return
    x, *parameters = norm.inputs
    has_residual = len(operands) > 1
    rms = norm.op_type == "RMSNormalization"
    attributes: dict[str, int | float | str] = {
        "has_residual": int(has_residual),
        "has_bias": int(len(parameters) > 1),
        "rms": int(rms),
        "epsilon": norm.attributes["epsilon"].as_float(),
        **opset.PLUGIN_ATTRIBUTES,
    }
    fused = ir.node(
        opset.RESIDUAL_NORM,
        [*operands, *parameters],
        attributes,
        domain=opset.DOMAIN,
        num_outputs=1 + has_residual,
        name=norm.name,
    )
    replaced = {norm.outputs[0]: fused.outputs[0]}
    place = norm
    if has_residual:
        assert x is not None
        place = maker(x, "Add")  # all readers of the sum come after it
        replaced[x] = fused.outputs[1]
    take_place_(graph, place, fused, replaced)


def _match_norm(norm: ir.Node) -> Sequence[ir.Value]:
    """Returns the inputs of the fused norm: the two summands of a residual sum, or the norm's input."""
    need(integer_attribute(norm, "axis", -1) == -1 and integer_attribute(norm, "stash_type", 1) == 1)
    need("epsilon" in norm.attributes)
    for parameter in norm.inputs[1:]:
        shape = tensor_of(parameter).shape.numpy()
        need(len(shape) == 1 and shape[0] % opset.FUSED_WIDTH_MULTIPLE == 0)
    x = take(norm, 0)
    if not made_by(x, "Add"):
        return [x]
    parts = [take(maker(x, "Add"), index) for index in range(2)]
    is_residual = all(
        part.is_graph_input() or (part.producer() is not None and not made_by(part, "Constant")) for part in parts
    )
    return parts if is_residual and not x.is_graph_output() else [x]
