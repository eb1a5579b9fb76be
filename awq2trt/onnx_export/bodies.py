"""Function bodies of the operators with codes, linears and embeddings: each defined by standard ONNX operators.

In: which variant a node needs. Out: an `onnx_ir` function whose overload names the variant; a node picks its body by
its own `overload` field (ONNX IR version 10 and later), so that all variants share one op type, the one that plugins
are registered under. Bodies use only what TensorRT accepts: its `DequantizeLinear` has no zero points and needs
complete blocks of more than one element, and INT4 or INT8 codes may go only into `DequantizeLinear`:

- An embedding dequantizes its complete table and then gathers rows, since codes cannot be gathered. That is correct but
  slow.
- Zero points become a second product. w = s (q - z), so x w^T = x (s q)^T - sum_groups(x) (s z)^T, where q and z are
  the signed INT4 values (code - 8, zero - 8), whose offset cancels in q - z. The two products partly cancel; with
  everything rounded to fp16 the mean KL of SmolLM2-135M (g128, 512 tokens of WikiText-2, simulated in PyTorch) from its
  fp32 self is 8e-6, against 4e-6 for one product with w in fp16, and largest intermediate 1.2e4.
- A shorter last group leads to smaller blocks: g = gcd(K, G) divides both, so that every block of g channels lies in
  one group, whose scale and zero point it repeats.
- If g is 1 (an odd K) the weight is dequantized element by element, which is correct, but not fast in TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.scheme import QuantizedLinear


@dataclass(frozen=True)
class BodyVariant:
    """What distinguishes one body from another.

    Attributes:
        bits: Width of a code: 4 or 8.
        group_length: G, the channels in every group except perhaps the last.
        ragged_features: K if its last group is shorter, otherwise None, because then the body does not depend on K.
        has_zeros: Whether groups have zero points.
        has_bias: Whether the linear has a bias.
    """

    bits: int
    group_length: int
    ragged_features: int | None
    has_zeros: bool
    has_bias: bool

    @staticmethod
    def of(linear: QuantizedLinear) -> BodyVariant:
        """The variant that `linear` needs."""
        group, features = linear.group_length, linear.in_features
        return BodyVariant(
            bits=linear.scheme.bits,
            group_length=group,
            ragged_features=features if features % group else None,
            has_zeros=linear.zeros is not None,
            has_bias=linear.bias is not None,
        )

    @property
    def overload(self) -> str:
        """Overload of the function, e.g. `g128_k576_zeros`."""
        parts = [f"g{self.group_length}"]
        if self.ragged_features is not None:
            parts.append(f"k{self.ragged_features}")
        return "_".join(parts + ["zeros"] * self.has_zeros + ["bias"] * self.has_bias)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Inputs of a linear, without gaps, as `opset.W4A16_LINEAR` orders them."""
        return ("x", "codes", "scales", *["zeros"] * self.has_zeros, *["bias"] * self.has_bias)

    @property
    def table_names(self) -> tuple[str, ...]:
        """Inputs of an embedding, without gaps, as `opset.W4A16_EMBEDDING` orders them."""
        return ("scales", "codes", "ids", *["zeros"] * self.has_zeros)

    @property
    def block_length(self) -> int:
        """Largest block that divides all groups, the last one too."""
        return math.gcd(self.ragged_features or self.group_length, self.group_length)


def make_body(variant: BodyVariant) -> ir.Function:
    """Builds the body of a linear."""
    inputs = {name: ir.Value(name=name) for name in variant.input_names}
    tape = Tape()
    y = append_linear(tape, variant, inputs)
    return _function(opset.LINEAR_OF_BITS[variant.bits], variant, tape, inputs, y, _LINEAR_ATTRIBUTES)


def append_linear(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """Appends the nodes of a linear, whose inputs have the names of the variant's; returns y [..., N]."""
    if variant.block_length == 1:
        y = _elementwise_product(tape, variant, inputs)
    else:
        y = _blockwise_product(tape, variant, inputs)
    return tape.op("Add", [y, inputs["bias"]]) if variant.has_bias else y


def make_embedding_body(variant: BodyVariant) -> ir.Function:
    """Builds the body of an embedding."""
    inputs = {name: ir.Value(name=name) for name in variant.table_names}
    tape = Tape()
    if variant.block_length == 1:
        y = tape.op("Gather", [_elementwise_weight(tape, variant, inputs), inputs["ids"]])
    else:
        y = _blockwise_rows(tape, variant, inputs)
    return _function(opset.EMBEDDING_OF_BITS[variant.bits], variant, tape, inputs, y, _ATTRIBUTES)


_ATTRIBUTES = (
    (opset.ATTR_GROUP_SIZE, ir.AttributeType.INT),
    (opset.ATTR_HAS_ZEROS, ir.AttributeType.INT),
    (opset.ATTR_PLUGIN_VERSION, ir.AttributeType.STRING),
    (opset.ATTR_PLUGIN_NAMESPACE, ir.AttributeType.STRING),
)
"""Attributes of the nodes. Bodies do not read them: each variant has a body of its own."""

_LINEAR_ATTRIBUTES = (*_ATTRIBUTES[:2], (opset.ATTR_HAS_BIAS, ir.AttributeType.INT), *_ATTRIBUTES[2:])


def _function(
    op_type: str,
    variant: BodyVariant,
    tape: Tape,
    inputs: dict[str, ir.Value],
    y: ir.Value,
    attributes: Sequence[tuple[str, ir.AttributeType]],
) -> ir.Function:
    y.name = "y"
    graph = ir.Graph(
        list(inputs.values()), [y], nodes=tape.nodes, opset_imports={"": opset.ONNX_OPSET}, name=variant.overload
    )
    declared = [ir.Attr(name, kind, None) for name, kind in attributes]
    return ir.Function(opset.DOMAIN, op_type, variant.overload, graph=graph, attributes=declared)


def _blockwise_product(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """x (s q)^T - blocksum(x) (s z)^T, with q dequantized in complete blocks."""
    x, block = inputs["x"], variant.block_length
    scales = _per_block(tape, variant, inputs["scales"])  # [N, K/g]
    weight = tape.op("DequantizeLinear", [inputs["codes"], scales], {"axis": 1, "block_size": block})  # [N, K]
    y = tape.op("MatMul", [x, tape.op("Transpose", [weight], {"perm": [1, 0]})])  # [..., N]
    if not variant.has_zeros:
        return y
    zeros = _per_block(tape, variant, _signed(tape, inputs["zeros"], inputs["scales"]))
    offsets = tape.op("Transpose", [tape.op("Mul", [scales, zeros])], {"perm": [1, 0]})  # [K/g, N]
    leading = tape.op("Shape", [x], {"start": 0, "end": -1})
    blocked = tape.op("Concat", [leading, _integers(tape, [-1, block])], {"axis": 0})
    sums = tape.op(
        "ReduceSum", [tape.op("Reshape", [x, blocked]), _integers(tape, [-1])], {"keepdims": 0}
    )  # [..., K/g]
    return tape.op("Sub", [y, tape.op("MatMul", [sums, offsets])])


def _blockwise_rows(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """Rows of s q minus those of s z, with q dequantized in complete blocks."""
    ids, block = inputs["ids"], variant.block_length
    scales = _per_block(tape, variant, inputs["scales"])  # [V, K/g]
    table = tape.op("DequantizeLinear", [inputs["codes"], scales], {"axis": 1, "block_size": block})  # [V, K]
    rows = tape.op("Gather", [table, ids])  # [..., K]
    if not variant.has_zeros:
        return rows
    zeros = _per_block(tape, variant, _signed(tape, inputs["zeros"], inputs["scales"]))
    offsets = tape.op("Gather", [tape.op("Mul", [scales, zeros]), ids])  # [..., K/g]
    shape = tape.op("Concat", [tape.op("Shape", [ids]), _integers(tape, [-1, block])], {"axis": 0})
    blocked = tape.op("Reshape", [rows, shape])  # [..., K/g, g]
    moved = tape.op("Sub", [blocked, tape.op("Unsqueeze", [offsets, _integers(tape, [-1])])])
    return tape.op("Reshape", [moved, tape.op("Shape", [rows])])


def _elementwise_product(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """x (s (q - z))^T."""
    weight = _elementwise_weight(tape, variant, inputs)
    return tape.op("MatMul", [inputs["x"], tape.op("Transpose", [weight], {"perm": [1, 0]})])


def _elementwise_weight(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """s (q - z) with scales and zero points repeated for every element."""
    scales = _per_block(tape, variant, inputs["scales"])  # [N, K]
    weight = _signed(tape, inputs["codes"], inputs["scales"])  # [N, K]
    if variant.has_zeros:
        zeros = _per_block(tape, variant, _signed(tape, inputs["zeros"], inputs["scales"]))
        weight = tape.op("Sub", [weight, zeros])
    return tape.op("Mul", [weight, scales])


def _per_block(tape: Tape, variant: BodyVariant, groups: ir.Value) -> ir.Value:
    """Repeats [N, ceil(K/G)] to [N, K/g] if the last group is shorter; otherwise nothing changes."""
    features, block = variant.ragged_features, variant.block_length
    if features is None:
        return groups
    group_of_block = np.arange(features // block) * block // variant.group_length
    return tape.op("Gather", [groups, _integers(tape, group_of_block.tolist())], {"axis": 1})


def _signed(tape: Tape, value: ir.Value, like: ir.Value) -> ir.Value:
    """Codes as floating point of `like`'s type: dequantized with a step of one, which TensorRT takes unlike a cast."""
    one = tape.op("CastLike", [tape.op("Constant", [], {"value_float": 1.0}), like])
    return tape.op("DequantizeLinear", [value, one])


def _integers(tape: Tape, values: Sequence[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": list(values)})
