"""Follows a graph backwards, from a value to the nodes that made it: the small steps of recognizing a pattern.

In: values of an `onnx_ir` graph. Out: nodes, constants, or `NoMatchError` if the graph differs from the pattern. Only
`take_place_` and `remove_unused_` change a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


class NoMatchError(Exception):
    """The graph differs from a pattern, so it stays as it is."""


def need(condition: object) -> None:
    """Raises NoMatchError unless a condition holds."""
    if not condition:
        raise NoMatchError


def maker(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node:
    """Returns the node that made a value, which must have this type."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != op_type or node.domain != domain:
        raise NoMatchError
    return node


def made_by(value: ir.Value | None, op_type: str) -> bool:
    """Whether a node of this type, from the standard domain, made the value."""
    node = None if value is None else value.producer()
    return node is not None and node.op_type == op_type and node.domain == ""


def take(node: ir.Node, index: int) -> ir.Value:
    """Returns an input that must be present."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise NoMatchError
    return value


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol:
    """Returns the content of an initializer."""
    if value is None or value.const_value is None:
        raise NoMatchError
    return value.const_value


def rows_of(linear: ir.Node) -> int:
    """Number of output features (N) of a linear."""
    return int(tensor_of(take(linear, 1)).shape.numpy()[0])


def integers_of(value: ir.Value | None) -> list[int]:
    """Returns a constant of integers, which may be a node or an initializer."""
    if value is None:
        raise NoMatchError
    if not made_by(value, "Constant"):
        tensor = tensor_of(value)
        need(tensor.dtype is ir.DataType.INT64)
        return [int(number) for number in tensor.numpy().reshape(-1)]
    attributes = maker(value, "Constant").attributes
    if "value_ints" in attributes:
        return list(attributes["value_ints"].as_ints())
    need("value_int" in attributes)
    return [attributes["value_int"].as_int()]


def scalar_of(value: ir.Value | None) -> float:
    """Returns an initializer that holds one number."""
    numbers = tensor_of(value).numpy().astype(np.float32).reshape(-1)
    need(numbers.size == 1)
    return float(numbers[0])


def integer_attribute(node: ir.Node, name: str, default: int) -> int:
    """Returns an attribute, or its default."""
    return node.attributes[name].as_int() if name in node.attributes else default


def need_permutation(node: ir.Node, permutation: Sequence[int]) -> None:
    """Raises NoMatchError unless a `Transpose` permutes axes like this."""
    need("perm" in node.attributes and list(node.attributes["perm"].as_ints()) == list(permutation))


def remove_unused_(graph: ir.Graph) -> None:
    """Removes nodes and initializers that nothing uses."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value in outputs or value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]


def take_place_(graph: ir.Graph, place: ir.Node, fused: ir.Node, replaced: dict[ir.Value, ir.Value]) -> None:
    """Inserts a node after another; its outputs take over names, types and uses of the outputs that they replace."""
    graph.insert_after(place, fused)
    for old, new in replaced.items():
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{old.name}.unfused"
