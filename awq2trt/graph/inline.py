"""Replaces custom nodes with their function bodies.

In: an exported decoder in memory. Out: the same model, changed in place, with only standard operators. TensorRT's
parser needs this if no plugin implements the nodes: it looks functions up by name, ignoring overloads, and gives layers
the names of a body's nodes, but refuses a second `DequantizeLinear` of the same name (TensorRT-RTX 1.7.1: "Failed
attempt to rename a layer"). Inlined nodes carry the name of their linear, so that TensorRT's messages name it.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from awq2trt import opset
from awq2trt.errors import ArtifactError


def has_kernels(node: ir.Node) -> bool:
    """Whether the plugin library has a kernel for a node; for linears, K must suit it (`check_validity`)."""
    if node.domain != opset.DOMAIN or node.op_type not in opset.LINEAR_OF_BITS.values():
        return node.domain == opset.DOMAIN
    codes = node.inputs[1].shape if node.inputs[1] is not None else None
    features = codes[-1] if codes is not None else None
    return isinstance(features, int) and features % opset.FEATURES_MULTIPLE == 0


def inline_bodies_(model: ir.Model, *, keep: Callable[[ir.Node], bool] = lambda _: False) -> None:
    """Replaces calls of model-local functions with the functions' nodes, and drops functions that are then unused.

    Args:
        model: An exported model; it is changed.
        keep: Whether a node stays because a plugin implements it.

    Raises:
        ArtifactError: A custom node has no function: the model was exported without bodies.
    """
    for node in list(model.graph):
        if keep(node):
            continue
        function = model.functions.get(node.op_identifier())
        if function is not None:
            inline_call_(model.graph, node, function)
        elif node.domain not in ("", "ai.onnx"):
            raise ArtifactError(
                f"{node.domain}::{node.op_type} has no function body, and no plugin library was given.",
                where=node.name,
                fix="export again without --no-function-bodies, or build with the plugin library.",
            )
    called = {node.op_identifier() for node in model.graph}
    for identifier in [each for each in model.functions if each not in called]:
        del model.functions[identifier]


def inline_call_(graph: ir.Graph, call: ir.Node, function: ir.Function) -> None:
    """Replaces one call of a function with the function's nodes.

    Bodies must be flat: without subgraphs, attribute references, or omitted optional inputs.
    """
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
