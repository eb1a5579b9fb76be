"""Merges a linear, the norm before it and the gated activation after it into one `FusedLinear`, and splits it again.

In: a decoder with `ResidualNorm`, `W4A16Linear` and `GatedActivation` nodes. Out: the same decoder, changed in place,
with the same results. A norm that more than one node reads stays, and so does an activation that is not the only reader
of its linear. For one token, the kernel of such a linear norms its input and gates its output, so two kernels fewer
have to start; for many tokens the library runs the three parts one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.matching import NoMatchError, need, remove_unused_, take, take_place_, tensor_of

_OWN = (opset.ATTR_GROUP_SIZE, opset.ATTR_HAS_ZEROS, opset.ATTR_HAS_BIAS)
"""Attributes that a `FusedLinear` takes over from its linear."""

_LARGEST_NORM = 16384
"""The most channels of a fused norm, the same as for `ResidualNorm`."""


def fuse_linears_(graph: ir.Graph) -> None:
    """Fuses every linear that has a norm before it or an activation after it.

    Args:
        graph: With fused operators already; changed.
    """
    for node in list(graph):
        if node.domain == opset.DOMAIN and node.op_type == opset.W4A16_LINEAR:
            _try_linear_(graph, node)
    remove_unused_(graph)


def split_linears_(graph: ir.Graph) -> None:
    """Replaces every `FusedLinear` with its norm, its linear and its activation.

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
        need(norm is not None or activation is not None)
        for tensor in linear.inputs[1:]:
            tensor_of(tensor)  # so that it may take the place of the norm, which comes earlier
    except NoMatchError:
        return
    before = norm.inputs if norm is not None else linear.inputs[:1]
    has_sum = norm is not None and len(norm.outputs) > 1
    attributes = {**_attributes(linear, norm, activation), **opset.PLUGIN_ATTRIBUTES}
    fused = ir.node(
        opset.FUSED_LINEAR,
        [*before, *linear.inputs[1:]],
        attributes,
        domain=opset.DOMAIN,
        num_outputs=1 + has_sum,
        name=linear.name,
    )
    replaced = {(activation or linear).outputs[0]: fused.outputs[0]}
    if norm is not None and has_sum:
        replaced[norm.outputs[1]] = fused.outputs[1]
    take_place_(graph, norm if norm is not None else linear, fused, replaced)


def _norm_before(linear: ir.Node) -> ir.Node | None:
    """The norm that only this linear reads."""
    x = take(linear, 0)
    norm = x.producer()
    if norm is None or norm.domain != opset.DOMAIN or norm.op_type != opset.RESIDUAL_NORM:
        return None
    return norm if len(x.uses()) == 1 and not x.is_graph_output() else None


def _activation_behind(linear: ir.Node) -> ir.Node | None:
    """The gated activation that is the only reader of this linear."""
    y = linear.outputs[0]
    uses = list(y.uses())
    if len(uses) != 1 or y.is_graph_output():
        return None
    reader = uses[0].node
    return reader if reader.domain == opset.DOMAIN and reader.op_type == opset.GATED_ACTIVATION else None


def _attributes(linear: ir.Node, norm: ir.Node | None, activation: ir.Node | None) -> dict[str, int | float | str]:
    def of_norm(name: str) -> int:
        return norm.attributes[name].as_int() if norm is not None else 0

    return {
        **{name: linear.attributes[name].as_int() for name in _OWN},
        opset.ATTR_HAS_NORM: int(norm is not None),
        opset.ATTR_HAS_RESIDUAL: of_norm("has_residual"),
        opset.ATTR_HAS_NORM_BIAS: of_norm("has_bias"),
        "rms": of_norm("rms"),
        opset.ATTR_HAS_ACTIVATION: int(activation is not None),
        opset.ATTR_ACTIVATION: activation.attributes[opset.ATTR_ACTIVATION].as_int() if activation is not None else 0,
        "epsilon": norm.attributes["epsilon"].as_float() if norm is not None else 0.0,
    }


def _split_(graph: ir.Graph, fused: ir.Node) -> None:
    given = {name: attribute for name, attribute in fused.attributes.items() if name not in opset.PLUGIN_ATTRIBUTES}
    has_norm, has_residual, has_norm_bias, has_activation = (
        given[name].as_int()
        for name in (
            opset.ATTR_HAS_NORM,
            opset.ATTR_HAS_RESIDUAL,
            opset.ATTR_HAS_NORM_BIAS,
            opset.ATTR_HAS_ACTIVATION,
        )
    )
    first_code = count_before_codes(fused)
    x = fused.inputs[0]
    nodes: list[ir.Node] = []
    if has_norm:
        numbers = {"has_residual": has_residual, "has_bias": has_norm_bias, "rms": given["rms"].as_int()}
        norm = _node(
            f"{fused.name}.norm",
            opset.RESIDUAL_NORM,
            fused.inputs[:first_code],
            {**numbers, "epsilon": given["epsilon"].as_float()},
            1 + has_residual,
        )
        nodes.append(norm)
        x = norm.outputs[0]
    own = {name: given[name].as_int() for name in _OWN}
    nodes.append(_node(str(fused.name), opset.W4A16_LINEAR, [x, *fused.inputs[first_code:]], own))
    if has_activation:
        code = {opset.ATTR_ACTIVATION: given[opset.ATTR_ACTIVATION].as_int()}
        nodes.append(_node(f"{fused.name}.activation", opset.GATED_ACTIVATION, [nodes[-1].outputs[0]], code))
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


def _node(
    name: str,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, int] | dict[str, int | float],
    num_outputs: int = 1,
) -> ir.Node:
    carried: dict[str, int | float | str] = {**attributes, **opset.PLUGIN_ATTRIBUTES}
    return ir.node(op_type, list(inputs), carried, domain=opset.DOMAIN, num_outputs=num_outputs, name=name)
