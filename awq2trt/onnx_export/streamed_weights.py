"""Initializers of a graph out of a quantized checkpoint, each written to disk when the graph reaches it.

In: a checkpoint, and a file of external data. Out: `weights.Weights`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.models.families import DecoderSpec
from awq2trt.onnx_export.bodies import BodyVariant
from awq2trt.onnx_export.external_data import ExternalDataWriter, initializer
from awq2trt.onnx_export.weights import LinearInputs, Order
from awq2trt.scheme import QuantizedLinear, QuantScheme


@dataclass(frozen=True)
class PackedLinear:
    """A linear whose codes are bytes of the graph's tensors already, with rows in the graph's order.

    Attributes:
        variant: The body that computes it.
        shape: N and K.
        codes: Bytes of INT4 or INT8 [N, K], uint8.
        scales: fp16 [N, ceil(K/G)].
        zeros: Bytes of INT4 or INT8 [N, ceil(K/G)], uint8; None without zero points.
        bias: fp16 [N]; None without a bias.
    """

    variant: BodyVariant
    shape: tuple[int, int]
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8] | None = None
    bias: NDArray[np.float16] | None = None


_CODE_TYPES: Final = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
"""Types of codes by their width."""


class Checkpoint(Protocol):
    """The part of `QuantizedCheckpoint` that the export reads."""

    spec: DecoderSpec
    config: dict[str, Any]
    head_scheme: QuantScheme | None

    def linear(self, name: str) -> QuantizedLinear | PackedLinear:
        """A quantized linear by its full name."""

    def is_quantized(self, name: str) -> bool:
        """Whether a linear is; parts of fused ones have their own names, the head may be."""

    def input_order(self, name: str) -> NDArray[np.int64] | None:
        """The order of a linear's input channels; None for their own."""

    def tensor(self, name: str) -> NDArray[np.generic]:
        """A plain tensor by its full name."""

    def has(self, name: str) -> bool:
        """Whether there is a plain tensor of this name."""


class StreamedWeights:
    """An implementation of `weights.Weights` that writes each tensor to disk when it is requested."""

    def __init__(self, checkpoint: Checkpoint, writer: ExternalDataWriter, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.quantized_head = checkpoint.head_scheme is not None
        self._checkpoint = checkpoint
        self._writer = writer
        spec = checkpoint.spec
        self._biased = {spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.biased}

    def linear(self, name: str, rows: Order | None = None) -> LinearInputs:
        """codes, scales, and zeros and bias if there are any."""
        stored = self._checkpoint.linear(name)
        if isinstance(stored, PackedLinear):
            return stored.variant, self._packed(name, stored)
        linear = _rows_in_order(stored.widened(), rows)
        write_codes = self._writer.write_int4 if linear.scheme.bits == opset.CODE_BITS else self._writer.write_int8
        tensors = [
            write_codes(f"{name}.codes", linear.codes),
            self._writer.write_float(f"{name}.scales", linear.scales, self.dtype),
        ]
        if linear.zeros is not None:
            tensors.append(write_codes(f"{name}.zeros", linear.zeros))
        if linear.bias is not None:
            tensors.append(self._writer.write_float(f"{name}.bias", linear.bias, self.dtype))
        return BodyVariant.of(linear), tuple(initializer(tensor) for tensor in tensors)

    def _packed(self, name: str, linear: PackedLinear) -> tuple[ir.Value, ...]:
        """The initializers of a linear whose bytes are there."""
        dtype = _CODE_TYPES[linear.variant.bits]
        tensors = [
            self._writer.write_packed(f"{name}.codes", linear.codes, dtype, linear.shape),
            self._writer.write_float(f"{name}.scales", linear.scales, self.dtype),
        ]
        if linear.zeros is not None:
            tensors.append(self._writer.write_packed(f"{name}.zeros", linear.zeros, dtype, linear.scales.shape))
        if linear.bias is not None:
            tensors.append(self._writer.write_float(f"{name}.bias", linear.bias, self.dtype))
        return tuple(initializer(tensor) for tensor in tensors)

    def is_quantized(self, name: str) -> bool:
        """Whether the checkpoint has codes of the linear."""
        return self._checkpoint.is_quantized(name)

    def plain_linear(self, name: str, rows: Order | None = None) -> tuple[ir.Value, ...]:
        """Weight, and bias if there is one."""
        kinds = ("weight", "bias") if name in self._biased else ("weight",)
        plain = {f"{name}.{kind}": self._checkpoint.tensor(f"{name}.{kind}") for kind in kinds}
        return tuple(self.constant(key, value if rows is None else value[rows]) for key, value in plain.items())

    def input_order(self, name: str) -> Order | None:
        """The order of a linear's input channels; None for their own."""
        return self._checkpoint.input_order(name)

    def order(self, name: str, value: Order) -> ir.Value:
        """An order of channels, int32."""
        return initializer(self._writer.write_integers(name, value.astype(np.int32)))

    def tensor(self, name: str) -> ir.Value:
        """A plain tensor in the graph's dtype."""
        return self.constant(name, self._checkpoint.tensor(name))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has the tensor."""
        return self._checkpoint.has(name)

    def gain(self, name: str) -> ir.Value:
        """A norm's weight, or 1 + weight, which is rounded after the sum."""
        weight = self._checkpoint.tensor(name)
        gain = weight.astype(np.float32) + 1 if self._checkpoint.spec.norm.unit_offset else weight
        return self.constant(name, gain)

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """A tensor in the graph's dtype."""
        return initializer(self._writer.write_float(name, value, self.dtype))


def _rows_in_order(linear: QuantizedLinear, rows: Order | None) -> QuantizedLinear:
    """The linear with its output channels in another order."""
    if rows is None:
        return linear
    zeros = None if linear.zeros is None else linear.zeros[rows]
    bias = None if linear.bias is None else linear.bias[rows]
    return replace(linear, codes=linear.codes[rows], scales=linear.scales[rows], zeros=zeros, bias=bias)
