"""What a quantized weight is: `QuantScheme` and `QuantizedLinear`, the oracle of all packings.

A weight W [N, K] is cut along K into ceil(K / G) groups; the last group may be shorter. Each group has one scale and
one zero point: w = scale * (code - zero), with unsigned codes in [0, 2^bits) (AWQ paper, section 3.1, equation 1, with
the zero point of the released implementation). It needs only NumPy. The kernels' golden files, the packers and the
exporter are all tested against `dequantize`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError

WHOLE_ROW: Final = -1
"""The `group_size` that means one group per row; AutoAWQ and llm-awq write it as `q_group_size: -1`."""

BLOCK_BITS: Final = (2, 3, 4)
"""Widths of codes in a decoder's blocks."""

SUPPORTED_BITS: Final = (*BLOCK_BITS, 8)
"""Widths of codes; 8 bits are only for a head and the embedding that may be the same weight."""

SUPPORTED_GROUP_SIZES: Final = (32, 64, 128, WHOLE_ROW)

_FEWER_BITS: Final = "use --bits 4; 3 and 2 bits lose much more accuracy."

FLOAT16: Final = "float16"

BFLOAT16: Final = "bfloat16"
"""Names of the types that models are stored in: NumPy's (bfloat16 from ml_dtypes), which are config.json's
`torch_dtype`."""

SCALE_DTYPES: Final = (FLOAT16, BFLOAT16, "float32")
"""Types of step sizes; we write the first. Checkpoints of other tools may have any of them."""


@dataclass(frozen=True)
class QuantScheme:
    """How weights are rounded.

    Attributes:
        bits: Width of a code: 2, 3, 4 or 8.
        group_size: Input channels that share a scale; `WHOLE_ROW` for all of a row.
        zero_point: Whether groups have a zero point of their own (asymmetric). Without one it is
            2^(bits-1) everywhere.
    """

    bits: int = 4
    group_size: int = 128
    zero_point: bool = True

    def __post_init__(self) -> None:
        if self.bits not in SUPPORTED_BITS:
            raise UsageError(
                f"got {self.bits} bits, expected one of {_listed(BLOCK_BITS)}, or 8 for a head.",
                where="--bits",
                fix=_FEWER_BITS,
            )
        if self.group_size not in SUPPORTED_GROUP_SIZES:
            raise UsageError(
                f"got a group size of {self.group_size}, expected one of {_listed(SUPPORTED_GROUP_SIZES)} "
                f"({WHOLE_ROW} means a whole row).",
                where="--group-size",
                fix="128 is the usual choice, 64 or 32 for more accuracy.",
            )

    def for_blocks(self) -> QuantScheme:
        """Returns this scheme if a decoder's blocks may have it.

        Raises:
            UsageError: Only a head may have it.
        """
        if self.bits not in BLOCK_BITS:
            raise UsageError(
                f"got {self.bits} bits for the linears of blocks, expected one of {_listed(BLOCK_BITS)}.",
                where="--bits",
                fix=_FEWER_BITS,
            )
        return self

    @property
    def levels(self) -> int:
        """Number of codes, 2^bits."""
        return 1 << self.bits

    @property
    def symmetric_zero(self) -> int:
        """The code that means 0 where groups have no zero point of their own."""
        return self.levels // 2

    def group_of(self, in_features: int) -> int:
        """Group length for a weight with K = `in_features`: at most the length of a row."""
        return in_features if self.group_size == WHOLE_ROW else min(self.group_size, in_features)

    def groups(self, in_features: int) -> int:
        """Number of groups in a row; a shorter last group counts."""
        return -(-in_features // self.group_of(in_features))

    def describe(self) -> str:
        """Short name as people write it: `int4-g128-asym`."""
        group = "row" if self.group_size == WHOLE_ROW else f"g{self.group_size}"
        return f"int{self.bits}-{group}-{'asym' if self.zero_point else 'sym'}"


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantized linear layer, unpacked.

    Attributes:
        codes: Unsigned codes, uint8 [N, K].
        scales: Step sizes, fp16 [N, ceil(K/G)]; bf16 or fp32 where another tool wrote them so.
        zeros: Zero points as unsigned codes, uint8 [N, ceil(K/G)]; None for a symmetric scheme.
        scheme: How the codes were made.
        bias: fp16, fp32 or bf16 [N], or None.
        input_order: Input channel that each column of `codes` multiplies, int64 [K], if columns were sorted into groups
            (act-order); None for columns in the order of the channels.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zeros: NDArray[np.uint8] | None
    scheme: QuantScheme
    bias: NDArray[np.generic] | None = None
    input_order: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.uint8:
            raise ValueError(f"codes: expected uint8 [N, K], got {self.codes.dtype} {self.codes.shape}")
        if self.codes.size and int(self.codes.max()) >= self.scheme.levels:
            raise ValueError(f"codes: expected less than {self.scheme.levels}, got {int(self.codes.max())}")
        expected = (self.out_features, self.scheme.groups(self.in_features))
        if self.scales.shape != expected or self.scales.dtype.name not in SCALE_DTYPES:
            raise ValueError(
                f"scales: expected {SCALE_DTYPES[0]} {expected}, got {self.scales.dtype} {self.scales.shape}"
            )
        if self.scheme.zero_point != (self.zeros is not None):
            raise ValueError(f"zeros: the scheme {self.scheme.describe()} and zeros={self.zeros is not None} differ")
        if self.zeros is not None and (self.zeros.shape != expected or self.zeros.dtype != np.uint8):
            raise ValueError(f"zeros: expected uint8 {expected}, got {self.zeros.dtype} {self.zeros.shape}")
        if self.bias is not None and self.bias.shape != (self.out_features,):
            raise ValueError(f"bias: expected [{self.out_features}], got {self.bias.shape}")
        if self.input_order is not None and self.input_order.shape != (self.in_features,):
            raise ValueError(f"input_order: expected [{self.in_features}], got {self.input_order.shape}")

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.codes.shape[0])

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.codes.shape[1])

    @property
    def group_length(self) -> int:
        """Channels in every group, except that the last may be shorter."""
        return self.scheme.group_of(self.in_features)

    def rows(self, start: int, end: int) -> QuantizedLinear:
        """Returns rows `start` to `end` - 1 as a linear of their own: groups run along K, so rows can be separated."""
        return replace(
            self,
            codes=self.codes[start:end],
            scales=self.scales[start:end],
            zeros=None if self.zeros is None else self.zeros[start:end],
            bias=None if self.bias is None else self.bias[start:end],
        )

    def widened(self) -> QuantizedLinear:
        """Returns the same weights with codes of a width that the kernels support.

        2- and 3-bit codes become 4-bit ones, shifted so that 8 stands for a missing zero point; 4 and 8 bits stay.
        """
        if self.scheme.bits >= 4:
            return self
        scheme = replace(self.scheme, bits=4)
        shift = 0 if self.zeros is not None else scheme.symmetric_zero - self.scheme.symmetric_zero
        return replace(self, codes=self.codes + np.uint8(shift), scheme=scheme)

    def dequantize(self) -> NDArray[np.float32]:
        """Returns the weights that the codes stand for, with columns in the order of the input channels.

        Returns:
            float32 [N, K]; exact for fp16 and bf16 scales, since 11 bits times a 9-bit integer fit in 24 bits.
        """
        column_group = np.arange(self.in_features) // self.group_length  # [K]
        scales = self.scales.astype(np.float32)[:, column_group]  # [N, K]
        zeros: NDArray[np.int16] | int
        if self.zeros is None:
            zeros = self.scheme.symmetric_zero
        else:
            zeros = self.zeros.astype(np.int16)[:, column_group]  # [N, K]
        weight = scales * (self.codes.astype(np.int16) - zeros)
        return weight if self.input_order is None else weight[:, np.argsort(self.input_order)]


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(v) for v in values)
