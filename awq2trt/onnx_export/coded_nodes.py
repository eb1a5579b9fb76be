"""Nodes of the operators with codes: linears, and the rows of an embedding.

In: a tape, and initializers of a weight. Out: a node on the tape, and what it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import BATCH, SEQUENCE
from awq2trt.onnx_export.bodies import BodyVariant
from awq2trt.onnx_export.weights import LinearInputs

_ROWS: Final = (BATCH, SEQUENCE)


def linear_node(
    tape: Tape, x: ir.Value, weight: LinearInputs, name: str, leading: tuple[str, ...] | None = _ROWS
) -> ir.Value:
    """A quantized linear: [..., K] -> [..., N].

    Args:
        tape: Gets the node.
        x: Its input.
        weight: Its weight.
        name: Its name.
        leading: Names of the axes before the last; None if they are not known.
    """
    variant, (codes, scales, *others) = weight
    has_bias = {opset.ATTR_HAS_BIAS: int(variant.has_bias)}
    inputs = [x, codes, scales, *others]
    y = _node(tape, opset.LINEAR_OF_BITS[variant.bits], inputs, variant, name, has_bias)
    if leading is None:
        y.type = scales.type
        return y
    return _typed(y, scales, _axes(codes)[0], leading)


def embedding_rows(tape: Tape, table: ir.Value | LinearInputs, ids: ir.Value, name: str) -> ir.Value:
    """Rows of an embedding [B, S, H].

    Args:
        tape: Gets the node.
        table: [V, H], or a quantized one.
        ids: Tokens, int64 [B, S].
        name: Name of the embedding.
    """
    if isinstance(table, ir.Value):
        return tape.op("Gather", [table, ids], name=name)
    variant, (codes, scales, *zeros) = table
    rows = _node(tape, opset.EMBEDDING_OF_BITS[variant.bits], [scales, codes, ids, *zeros], variant, name)
    return _typed(rows, scales, _axes(codes)[1])


def _node(
    tape: Tape,
    op_type: str,
    inputs: Sequence[ir.Value],
    variant: BodyVariant,
    name: str,
    further: Mapping[str, int] = MappingProxyType({}),
) -> ir.Value:
    return tape.op(
        op_type,
        inputs,
        {
            opset.ATTR_GROUP_SIZE: variant.group_length,
            opset.ATTR_HAS_ZEROS: int(variant.has_zeros),
            **further,
            opset.ATTR_PLUGIN_VERSION: opset.PLUGIN_VERSION,
            opset.ATTR_PLUGIN_NAMESPACE: opset.PLUGIN_NAMESPACE,
        },
        domain=opset.DOMAIN,
        overload=variant.overload,
        name=name,
    )


def _axes(codes: ir.Value) -> tuple[int, ...]:
    """[N, K]."""
    shape = codes.shape
    assert shape is not None  # they are initializers
    return shape.numpy()


def _typed(y: ir.Value, scales: ir.Value, features: int, leading: tuple[str, ...] = _ROWS) -> ir.Value:
    y.type, y.shape = scales.type, ir.Shape([*leading, features])
    return y
