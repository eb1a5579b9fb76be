"""Activation functions in standard ONNX operators: recognized in a graph, and written into one.

In: nodes of an exported graph, or a value to activate. Out: the activation by its name in `opset.ACTIVATION_CODES`, or
the nodes that compute it.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from awq2trt.graph.matching import maker, need, take


def match_activation(node: ir.Node | None) -> tuple[str, ir.Value]:
    """Returns the activation that ends at a node, and the value that it is applied to.

    Raises:
        NoMatchError: No activation ends there.
    """
    need(node is not None and node.domain == "")
    assert node is not None
    x = take(node, 0)
    if node.op_type == "Mul":
        need(maker(take(node, 1), "Sigmoid").inputs[0] is x)
        return "silu", x
    if node.op_type == "Gelu":
        tanh = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
        return "gelu_tanh" if tanh else "gelu", x
    need(node.op_type == "Relu")
    return "relu", x


def write_activation(op: Callable[..., ir.Value], kind: str, x: ir.Value) -> ir.Value:
    """Writes an activation of x.

    Args:
        op: Writes a node: `op(op_type, *inputs, **attributes)` returns its output.
        kind: A key of `opset.ACTIVATION_CODES`.
        x: A value of any shape.

    Returns:
        The activated values.
    """
    if kind == "silu":
        return op("Mul", x, op("Sigmoid", x))
    if kind == "relu":
        return op("Relu", x)
    return op("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
