"""Cosines and sines of the new tokens in an ONNX graph, for every kind of scaling.

In: a `RopeSpec`, the capacity, and what builds nodes. Out: tables [rows, rotary_dim / 2] and the row of every new token
[B, S]. A row is a position, unless sequences that have grown long have frequencies of their own (`families/rotary.py`):
the graph chooses by the length of the sequence at each call, so that it is right for short and long ones, whatever its
capacity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.models.families import RopeSpec
from awq2trt.models.families.rotary import GrowingBase


@dataclass(frozen=True)
class Nodes:
    """The graph that rows are computed in.

    Attributes:
        op: Appends a node of a type, with inputs and attributes.
        constant: An initializer in the graph's dtype, by name and value.
        positions: Positions of the new tokens, int64 [B, S].
        lengths: Appends nodes that compute the lengths of the sequences, tokens in the cache and new ones, int64 [B,
            1].
    """

    op: Callable[..., ir.Value]
    constant: Callable[[str, NDArray[np.float32]], ir.Value]
    positions: ir.Value
    lengths: Callable[[], ir.Value]


@dataclass(frozen=True)
class RotaryRows:
    """Rotary tables, and the rows in them for the new tokens.

    Attributes:
        cos: [rows, rotary_dim / 2] in the graph's dtype; likewise `sin`.
        rows: int64 [B, S].
    """

    cos: ir.Value
    sin: ir.Value
    rows: ir.Value


def rotary_names(index: int) -> tuple[str, str]:
    """Initializers of cos and sin of `DecoderSpec.ropes[index]`, where the graph holds tables."""
    prefix = f"rotary_{index}" if index else "rotary"
    return f"{prefix}.cos", f"{prefix}.sin"


def rotary_rows(nodes: Nodes, index: int, rope: RopeSpec, capacity: int) -> RotaryRows:
    """Builds the tables and rows that rotate the new tokens.

    Args:
        nodes: Where nodes and initializers go.
        index: Index of `rope` in `DecoderSpec.ropes`.
        rope: The embedding.
        capacity: Positions that the cache holds.
    """
    if isinstance(rope.beyond, GrowingBase) and rope.is_long(capacity):
        return _computed(nodes, index, rope, rope.beyond)
    tables = zip(rotary_names(index), rope.stored_tables(capacity), strict=True)
    cos, sin = (nodes.constant(name, table) for name, table in tables)
    first_long = rope.first_long_row(capacity)
    if not first_long:
        return RotaryRows(cos, sin, nodes.positions)
    is_long = nodes.op("Greater", [nodes.lengths(), _integers(nodes, [first_long])])
    offset = nodes.op("Where", [is_long, _integers(nodes, [first_long]), _integers(nodes, [0])])  # [B, 1]
    return RotaryRows(cos, sin, nodes.op("Add", [nodes.positions, offset], name=f"rotary_{index}.rows"))


def _computed(nodes: Nodes, index: int, rope: RopeSpec, growing: GrowingBase) -> RotaryRows:
    """Rows of a base that grows with the sequence, one for every new token, computed in fp32.

    The logarithm of the base is ln(theta) + d / (d - 2) * ln(1 + factor * (L / limit - 1)), where L is the length of
    the sequence, but at least the limit.
    """
    op, name, pairs = nodes.op, f"rotary_{index}", rope.rotary_dim // 2
    share = op("Div", [_as_float(nodes, nodes.lengths()), _floats(nodes, [growing.positions])])
    excess = op("Sub", [op("Max", [share, _floats(nodes, [1])]), _floats(nodes, [1])])
    stretch = op("Add", [op("Mul", [excess, _floats(nodes, [growing.factor])]), _floats(nodes, [1])])
    power = _floats(nodes, [rope.rotary_dim / (rope.rotary_dim - 2)])
    log_base = op("Add", [op("Mul", [op("Log", [stretch]), power]), _floats(nodes, [math.log(growing.theta)])])
    exponents = _floats(nodes, (-np.arange(pairs) / pairs).tolist())
    frequencies = op("Exp", [op("Mul", [log_base, exponents])], name=f"{name}.frequencies")  # [B, rotary_dim / 2]
    steps = op("Unsqueeze", [_as_float(nodes, nodes.positions), _integers(nodes, [2])])  # [B, S, 1]
    by_token = op("Mul", [steps, op("Unsqueeze", [frequencies, _integers(nodes, [1])])])
    angles = op("Reshape", [by_token, _integers(nodes, [-1, pairs])], name=f"{name}.angles")
    magnitude = nodes.constant(f"{name}.magnitude", np.asarray(rope.magnitude, np.float32))
    cos, sin = (
        op("Mul", [op("CastLike", [op(kind, [angles]), magnitude]), magnitude], name=f"{name}.{kind.lower()}")
        for kind in ("Cos", "Sin")
    )
    zero, one = (op("Constant", [], {"value_int": value}) for value in (0, 1))
    counted = op("Range", [zero, op("Size", [nodes.positions]), one])
    return RotaryRows(cos, sin, op("Reshape", [counted, op("Shape", [nodes.positions])], name=f"{name}.rows"))


def _as_float(nodes: Nodes, x: ir.Value) -> ir.Value:
    return nodes.op("Cast", [x], {"to": int(ir.DataType.FLOAT)})


def _integers(nodes: Nodes, values: list[int]) -> ir.Value:
    return nodes.op("Constant", [], {"value_ints": values})


def _floats(nodes: Nodes, values: Sequence[float]) -> ir.Value:
    """An fp32 constant, whatever the graph's dtype."""
    return nodes.op("Constant", [], {"value_floats": [float(value) for value in values]})
