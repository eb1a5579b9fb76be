"""Function bodies of `W4A16Linear`: the operator defined in standard ONNX ops.

In: which variant a node needs. Out: an `onnx_ir` function whose overload names the variant; a node picks its body by
its own `overload` field (ONNX IR version 10 and later), so that all variants share one op type, the one that plugins
are registered under. Bodies keep to what TensorRT takes, which has no zero points in `DequantizeLinear`, wants whole
blocks, no block of one element, and lets INT4 tensors go nowhere but into `DequantizeLinear`:

- Zero points become a second product. w = s (q - z), so x w^T = x (s q)^T - sum_groups(x) (s z)^T, where q and z
  are the signed INT4 values (code - 8, zero - 8), whose offset cancels in q - z. The two products partly cancel; with
  everything rounded to fp16 the mean KL of SmolLM2-135M (g128, 512 tokens of WikiText-2, simulated in PyTorch) from its
  fp32 self is 8e-6, against 4e-6 for one product with w in fp16, and largest intermediate 1.2e4.
- A shorter last group becomes whole, smaller blocks: g = gcd(K, G) divides both, so that every block of g
  channels lies in one group, whose scale and zero point it repeats.
- If g is 1 (an odd K) the weight is dequantized element by element: right, but not fast in TensorRT.
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
        group_length: Channels in every group but perhaps the last, G.
        ragged_features: K if its last group is shorter, else None: whole groups need not know K.
        has_zeros: Groups have zero points.
        has_bias: The linear has a bias.
    """

    group_length: int
    ragged_features: int | None
    has_zeros: bool
    has_bias: bool

    @staticmethod
    def of(linear: QuantizedLinear) -> BodyVariant:
        """The variant that `linear` needs."""
        group, features = linear.group_length, linear.in_features
        return BodyVariant(
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
        """Inputs of the operator, without gaps, as `opset.W4A16_LINEAR` orders them."""
        return ("x", "codes", "scales", *["zeros"] * self.has_zeros, *["bias"] * self.has_bias)

    @property
    def block_length(self) -> int:
        """Largest block that divides all groups, the last one too."""
        return math.gcd(self.ragged_features or self.group_length, self.group_length)


def make_body(variant: BodyVariant) -> ir.Function:
    """Builds the body of a variant."""
    inputs = {name: ir.Value(name=name) for name in variant.input_names}
    tape = Tape()
    if variant.block_length == 1:
        y = _elementwise_product(tape, variant, inputs)
    else:
        y = _blockwise_product(tape, variant, inputs)
    if variant.has_bias:
        y = tape.op("Add", [y, inputs["bias"]])
    y.name = "y"
    graph = ir.Graph(
        list(inputs.values()), [y], nodes=tape.nodes, opset_imports={"": opset.ONNX_OPSET}, name=variant.overload
    )
    attributes = [ir.Attr(name, kind, None) for name, kind in _ATTRIBUTES]
    return ir.Function(opset.DOMAIN, opset.W4A16_LINEAR, variant.overload, graph=graph, attributes=attributes)


_ATTRIBUTES = (
    (opset.ATTR_GROUP_SIZE, ir.AttributeType.INT),
    (opset.ATTR_HAS_ZEROS, ir.AttributeType.INT),
    (opset.ATTR_HAS_BIAS, ir.AttributeType.INT),
    (opset.ATTR_PLUGIN_VERSION, ir.AttributeType.STRING),
    (opset.ATTR_PLUGIN_NAMESPACE, ir.AttributeType.STRING),
)
"""What nodes carry. Bodies do not read them: a variant is a body of its own."""


def _blockwise_product(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """x (s q)^T - blocksum(x) (s z)^T, with q dequantized in whole blocks."""
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


def _elementwise_product(tape: Tape, variant: BodyVariant, inputs: dict[str, ir.Value]) -> ir.Value:
    """x (s (q - z))^T with scales and zero points repeated for every element."""
    scales = _per_block(tape, variant, inputs["scales"])  # [N, K]
    weight = _signed(tape, inputs["codes"], inputs["scales"])  # [N, K]
    if variant.has_zeros:
        zeros = _per_block(tape, variant, _signed(tape, inputs["zeros"], inputs["scales"]))
        weight = tape.op("Sub", [weight, zeros])
    weight = tape.op("Mul", [weight, scales])
    return tape.op("MatMul", [inputs["x"], tape.op("Transpose", [weight], {"perm": [1, 0]})])


def _per_block(tape: Tape, variant: BodyVariant, groups: ir.Value) -> ir.Value:
    """Repeats [N, ceil(K/G)] to [N, K/g] where the last group is shorter; whole groups stay as they are."""
    features, block = variant.ragged_features, variant.block_length
    if features is None:
        return groups
    group_of_block = np.arange(features // block) * block // variant.group_length
    return tape.op("Gather", [groups, _integers(tape, group_of_block.tolist())], {"axis": 1})


def _signed(tape: Tape, value: ir.Value, like: ir.Value) -> ir.Value:
    """INT4 as floating point of `like`'s type: dequantized with a step of one, which TensorRT takes unlike a cast."""
    one = tape.op("CastLike", [tape.op("Constant", [], {"value_float": 1.0}), like])
    return tape.op("DequantizeLinear", [value, one])


def _integers(tape: Tape, values: Sequence[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": list(values)})
