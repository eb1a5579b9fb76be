"""Merges a linear, the norm before it, and the activation and the sum after it into one `FusedLinear`, and splits it.

In: a decoder with `ResidualNorm`, `W4A16Linear` and `GatedActivation` nodes, and activations and sums in standard
operators. Out: the same decoder, changed in place, with the same results. A norm that more than one node reads stays,
and so does what is not the only reader of its linear. For one token, the kernel of such a linear norms its input,
activates its output and adds to it, so that fewer kernels have to start; for many tokens the library runs the parts one
after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.activations import match_activation, write_activation
from awq2trt.graph.matching import NoMatchError, made_by, need, remove_unused_, rows_of, take, take_place_, tensor_of

_OWN = (opset.ATTR_GROUP_SIZE, opset.ATTR_HAS_ZEROS, opset.ATTR_HAS_BIAS)
"""Attributes that a `FusedLinear` takes over from its linear."""

_LARGEST_NORM = 16384
"""The most channels of a fused norm, the same as for `ResidualNorm`."""


@dataclass(frozen=True)
class _Activation:
    """An activation that is the only reader of a linear.

    Attributes:
        end: The node that makes the activated value.
        code: Its number in `opset.ACTIVATION_CODES`.
        gated: Whether it is a `GatedActivation`.
    """

    end: ir.Node
    code: int
    gated: bool


@dataclass(frozen=True)
class _Sum:
    """A sum that is the only reader of a linear's output, activated or not, and what it adds."""

    node: ir.Node
    addend: ir.Value


def fuse_linears_(graph: ir.Graph) -> None:
    """Fuses every linear that has a norm before it, or an activation or a sum after it.

    Args:
        graph: With fused operators already; changed.
    """
    for node in list(graph):
        if node.domain == opset.DOMAIN and node.op_type == opset.W4A16_LINEAR:
            _try_linear_(graph, node)
    remove_unused_(graph)


def split_linears_(graph: ir.Graph) -> None:
    """Replaces every `FusedLinear` with its norm, its linear, its activation and its sum.

    Args:
        graph: Changed.
    """
    for node in list(graph):
        if node.domain == opset.DOMAIN and node.op_type == opset.FUSED_LINEAR:
            _split_(graph, node)


def count_before_codes(node: ir.Node) -> int:
    """The number of inputs of a `FusedLinear` before its codes: x and the inputs of the norm."""
    flags = (opset.ATTR_HAS_NORM, opset.ATTR_HAS_RESIDUAL, opset.ATTR_HAS_NORM_BIAS)
    return 1 + sum(node.attributes[name].as_int() for name in flags)


def _try_linear_(graph: ir.Graph, linear: ir.Node) -> None:
    try:
        features = int(tensor_of(take(linear, 1)).shape.numpy()[1])
        need(features % opset.FEATURES_MULTIPLE == 0)
        norm = _norm_before(linear) if features <= _LARGEST_NORM else None
        activation = _activation_behind(linear)
        total = _sum_behind(activation.end if activation is not None else linear, linear)
        if norm is not None or (activation is not None and activation.gated):
            total = None  # the node comes in the norm's place, where there may be no addend yet; gates exclude one
        need(norm is not None or activation is not None or total is not None)
        for tensor in linear.inputs[1:]:
            tensor_of(tensor)  # so that it may take the place of the norm, which comes earlier
    except NoMatchError:
        return
    before = norm.inputs if norm is not None else linear.inputs[:1]
    has_sum = norm is not None and len(norm.outputs) > 1
    attributes = {**_attributes(linear, norm, activation, total), **opset.PLUGIN_ATTRIBUTES}
    fused = ir.node(
        opset.FUSED_LINEAR,
        [*before, *linear.inputs[1:], *([total.addend] if total is not None else [])],
        attributes,
        domain=opset.DOMAIN,
        num_outputs=1 + has_sum,
        name=linear.name,
    )
    last = total.node if total is not None else activation.end if activation is not None else linear
    replaced = {last.outputs[0]: fused.outputs[0]}
    if norm is not None and has_sum:
        replaced[norm.outputs[1]] = fused.outputs[1]
    place = norm or (total.node if total is not None else linear)  # the addend may be made after the linear
    take_place_(graph, place, fused, replaced)


def _norm_before(linear: ir.Node) -> ir.Node | None:
    """The norm that only this linear reads."""
    x = take(linear, 0)
    norm = x.producer()
    if norm is None or norm.domain != opset.DOMAIN or norm.op_type != opset.RESIDUAL_NORM:
        return None
    return norm if len(x.uses()) == 1 and not x.is_graph_output() else None


def _readers_of(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once; none if it is an output of the graph, too."""
    return [] if value.is_graph_output() else list(dict.fromkeys(use.node for use in value.uses()))


def _activation_behind(linear: ir.Node) -> _Activation | None:
    """The activation that alone reads this linear."""
    y = linear.outputs[0]
    readers = _readers_of(y)
    if len(readers) == 1 and readers[0].domain == opset.DOMAIN and readers[0].op_type == opset.GATED_ACTIVATION:
        return _Activation(readers[0], readers[0].attributes[opset.ATTR_ACTIVATION].as_int(), gated=True)
    ends = [node for node in readers if node.op_type != "Sigmoid"]
    if len(ends) != 1 or rows_of(linear) % opset.FUSED_WIDTH_MULTIPLE:
        return None
    try:
        kind, x = match_activation(ends[0])
        need(x is y)
        need(len(readers) == 1 + (kind == "silu"))
        for sigmoid in readers:
            need(sigmoid is ends[0] or _readers_of(sigmoid.outputs[0]) == ends)
    except NoMatchError:
        return None
    return _Activation(ends[0], opset.ACTIVATION_CODES[kind], gated=False)


def _sum_behind(node: ir.Node, linear: ir.Node) -> _Sum | None:
    """The sum of a node's output and another computed value of the same shape, if it alone reads that output."""
    y = node.outputs[0]
    readers = _readers_of(y)
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].domain:
        return None
    others = [value for value in readers[0].inputs if value is not None and value is not y]
    if len(others) != 1 or rows_of(linear) % opset.FUSED_WIDTH_MULTIPLE:
        return None
    addend = others[0]
    is_computed = addend.is_graph_input() or (addend.producer() is not None and not made_by(addend, "Constant"))
    shapes = (linear.outputs[0].shape, addend.shape)  # an exported decoder names few, and adds like to like
    differ = None not in shapes and shapes[0] != shapes[1]
    return _Sum(readers[0], addend) if is_computed and not differ else None


def _attributes(
    linear: ir.Node, norm: ir.Node | None, activation: _Activation | None, total: _Sum | None
) -> dict[str, int | float | str]:
    def of_norm(name: str) -> int:
        return norm.attributes[name].as_int() if norm is not None else 0

    return {
        **{name: linear.attributes[name].as_int() for name in _OWN},
        opset.ATTR_HAS_NORM: int(norm is not None),
        opset.ATTR_HAS_RESIDUAL: of_norm("has_residual"),
        opset.ATTR_HAS_NORM_BIAS: of_norm("has_bias"),
        "rms": of_norm("rms"),
        opset.ATTR_HAS_ACTIVATION: int(activation is not None),
        opset.ATTR_ACTIVATION: activation.code if activation is not None else 0,
        opset.ATTR_GATED: int(activation is not None and activation.gated),
        opset.ATTR_HAS_ADDEND: int(total is not None),
        "epsilon": norm.attributes["epsilon"].as_float() if norm is not None else 0.0,
    }


def _split_(graph: ir.Graph, fused: ir.Node) -> None:
    first_code, has_addend = count_before_codes(fused), fused.attributes[opset.ATTR_HAS_ADDEND].as_int()
    nodes: list[ir.Node] = []
    x, has_residual = fused.inputs[0], 0
    if fused.attributes[opset.ATTR_HAS_NORM].as_int():
        nodes.append(_norm_of(fused))
        x, has_residual = nodes[0].outputs[0], len(nodes[0].outputs) - 1
    own = {name: fused.attributes[name].as_int() for name in _OWN}
    tensors = fused.inputs[first_code : len(fused.inputs) - has_addend]
    nodes.append(_node(str(fused.name), opset.W4A16_LINEAR, [x, *tensors], own))
    nodes.extend(_epilogue_of(fused, nodes[-1].outputs[0]))
    for value in (output for node in nodes for output in node.outputs):
        value.type = fused.outputs[0].type
    graph.insert_before(fused, nodes)
    replaced = {fused.outputs[0]: nodes[-1].outputs[0]}
    if has_residual:
        replaced[fused.outputs[1]] = nodes[0].outputs[1]
    for old, new in replaced.items():
        new.name, new.shape = old.name, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{old.name}.fused"
    graph.remove(fused, safe=True)


def _norm_of(fused: ir.Node) -> ir.Node:
    """The norm of a fused linear, as a node of its own."""
    has_residual = fused.attributes[opset.ATTR_HAS_RESIDUAL].as_int()
    numbers: dict[str, int | float] = {
        "has_residual": has_residual,
        "has_bias": fused.attributes[opset.ATTR_HAS_NORM_BIAS].as_int(),
        "rms": fused.attributes["rms"].as_int(),
        "epsilon": fused.attributes["epsilon"].as_float(),
    }
    inputs = fused.inputs[: count_before_codes(fused)]
    return _node(f"{fused.name}.norm", opset.RESIDUAL_NORM, inputs, numbers, 1 + has_residual)


def _epilogue_of(fused: ir.Node, y: ir.Value) -> list[ir.Node]:
    """The nodes of a fused linear's activation and sum, which start from the product y."""
    nodes: list[ir.Node] = []

    def op(op_type: str, *inputs: ir.Value | None, **attributes: str) -> ir.Value:
        nodes.append(ir.node(op_type, list(inputs), {**attributes}, name=f"{fused.name}.{op_type.lower()}"))
        return nodes[-1].outputs[0]

    code = fused.attributes[opset.ATTR_ACTIVATION].as_int()
    if fused.attributes[opset.ATTR_GATED].as_int():
        nodes.append(_node(f"{fused.name}.activation", opset.GATED_ACTIVATION, [y], {opset.ATTR_ACTIVATION: code}))
    elif fused.attributes[opset.ATTR_HAS_ACTIVATION].as_int():
        y = write_activation(op, opset.ACTIVATION_NAMES[code], y)
    if fused.attributes[opset.ATTR_HAS_ADDEND].as_int():
        op("Add", y, fused.inputs[-1])
    return nodes


def _node(
    name: str,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, int] | dict[str, int | float],
    num_outputs: int = 1,
) -> ir.Node:
    carried: dict[str, int | float | str] = {**attributes, **opset.PLUGIN_ATTRIBUTES}
    return ir.node(op_type, list(inputs), carried, domain=opset.DOMAIN, num_outputs=num_outputs, name=name)
