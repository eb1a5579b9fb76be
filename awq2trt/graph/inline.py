"""Puts the function bodies of `W4A16Linear` in place of its nodes.

In: an exported decoder in memory. Out: the same, changed in place, in standard operators alone. TensorRT's parser needs
this where no plugin takes the nodes: it looks functions up by name alone, overloads forgotten, and gives layers the
names of a body's nodes, of which it refuses the second `DequantizeLinear` of a name (TensorRT-RTX 1.7.1: "Failed
attempt to rename a layer"). Inlined nodes carry the name of the linear they came from, so that TensorRT's messages name
it.
"""

from __future__ import annotations

import onnx_ir as ir

from awq2trt.errors import ArtifactError


def inline_bodies_(model: ir.Model) -> None:
    """Replaces every call of a model-local function by the function's nodes, and drops the functions.

    Raises:
        ArtifactError: A custom node has no function: the model was exported without bodies.
    """
    for node in list(model.graph):
        function = model.functions.get(node.op_identifier())
        if function is not None:
            _inline_(model.graph, node, function)
        elif node.domain not in ("", "ai.onnx"):
            raise ArtifactError(
                f"{node.domain}::{node.op_type} has no function body, and no plugin library was given.",
                where=node.name,
                fix="export again without --no-function-bodies, or build with the plugin library.",
            )
    model.functions.clear()


def _inline_(graph: ir.Graph, call: ir.Node, function: ir.Function) -> None:
    """Replaces one call. Bodies are flat: no subgraphs, no attribute references, no optional inputs left out."""
    values: dict[ir.Value | None, ir.Value | None] = {
        None: None,
        **dict(zip(function.inputs, call.inputs, strict=True)),
    }
    copies: list[ir.Node] = []
    for index, inner in enumerate(function):
        name = f"{call.name}/{inner.op_type}_{index}"
        copy = ir.Node(
            inner.domain,
            inner.op_type,
            [values[value] for value in inner.inputs],
            inner.attributes.values(),
            num_outputs=len(inner.outputs),
            name=name,
        )
        for position, (old, new) in enumerate(zip(inner.outputs, copy.outputs, strict=True)):
            new.name = f"{name}:{position}"
            values[old] = new
        copies.append(copy)
    results = [values[output] for output in function.outputs]
    outputs = [result for result in results if result is not None]
    ir.convenience.replace_nodes_and_values(graph, call, [call], copies, call.outputs, outputs)
