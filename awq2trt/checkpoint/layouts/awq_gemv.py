"""AutoAWQ's layouts for few rows: `version: gemv` and `gemv_fast` of `quant_method: awq`; we only read them.

GEMV: `qweight` int32 [N, K/8], `qzeros` int32 [N, P/8], `scales` [N, P], nibbles in reading order. GEMV-fast: `qweight`
int16 [N/4, K], in which four rows and 64 columns are interleaved, `scales` and `scaled_zeros` [P, N], the latter -scale
* zero. P is the number of groups, rounded up to a multiple that the kernels need. It needs only NumPy.

Source: `WQLinear_GEMV` and `pack_intweight` of AutoAWQ 0.2.9 (awq/modules/linear/gemv.py and gemv_fast.py).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts.awq_gemm import BITS, TOOL, read_four_bits
from awq2trt.checkpoint.layouts.layout import BIAS, DAMAGED, Array, Layout, LinearToUnpack
from awq2trt.checkpoint.pack import unpack_words
from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear

_CODES_PER_WORD: Final = 8

_WIDTH_FACTORS: Final = {32: 4, 64: 2}
"""Words of zero points that GEMV kernels read at once, by group size; one word for longer groups."""

_ROWS: Final = 4
_COLUMNS: Final = 64
"""The rows and columns that GEMV-fast interleaves."""

_SCALED_ZERO_SLACK: Final = 2.0**-10
"""How far, relatively, a stored -scale * zero may be from a multiple of its scale, as it was rounded to fp16
(2^-11)."""


def stored_groups(columns: int, group: int) -> int:
    """P: number of scales that AutoAWQ stores for a row, including those that stand for no group."""
    words = -(-(columns // group) // _CODES_PER_WORD)
    factor = _WIDTH_FACTORS.get(group, 1)
    return -(-words // factor) * factor * _CODES_PER_WORD


def unpack(packed: LinearToUnpack) -> QuantizedLinear:
    """Unpacks a linear of the layout GEMV."""
    (rows, columns), groups = packed.shape, packed.groups
    width = _width(packed)
    qweight = packed.expect("qweight", (rows, columns // _CODES_PER_WORD), np.int32)
    qzeros = packed.expect("qzeros", (rows, width // _CODES_PER_WORD), np.int32)
    scales = packed.expect("scales", (rows, width))
    zeros = unpack_words(qzeros, BITS, groups)
    return _linear(packed, unpack_words(qweight, BITS, columns), np.ascontiguousarray(scales[:, :groups]), zeros)


def unpack_fast(packed: LinearToUnpack) -> QuantizedLinear:
    """Unpacks a linear of the layout GEMV-fast."""
    (rows, columns), groups = packed.shape, packed.groups
    width = _width(packed)
    if rows % _ROWS or columns % _COLUMNS:
        raise CheckpointError(
            f"expected N divisible by {_ROWS} and K by {_COLUMNS}, got N = {rows}, K = {columns}.",
            where=packed.where,
            fix=DAMAGED,
        )
    words = packed.expect("qweight", (rows // _ROWS, columns), np.int16)
    scales = np.ascontiguousarray(packed.expect("scales", (width, rows)).T[:, :groups])
    scaled = packed.expect("scaled_zeros", (width, rows)).T[:, :groups]
    return _linear(packed, _interleaved(words), scales, _zeros_of(scaled, scales, packed))


def _width(packed: LinearToUnpack) -> int:
    """P of a linear whose groups all have the full length."""
    packed.refuse_shorter_group()
    return stored_groups(packed.shape[1], packed.scheme.group_of(packed.shape[1]))


def _linear(packed: LinearToUnpack, codes: Array, scales: Array, zeros: NDArray[np.uint8]) -> QuantizedLinear:
    scheme = packed.scheme
    if not scheme.zero_point and np.any(zeros != scheme.symmetric_zero):
        raise CheckpointError(
            f"the config says zero_point: false, but zero points are other than {scheme.symmetric_zero}.",
            where=packed.where,
            fix="set zero_point: true in config.json's quantization_config.",
        )
    return QuantizedLinear(codes, scales, zeros if scheme.zero_point else None, scheme, packed.tensors.get(BIAS))


def _zeros_of(scaled: Array, scales: Array, packed: LinearToUnpack) -> NDArray[np.uint8]:
    """Computes zero points uint8 [N, groups] from -scale * zero.

    Raises:
        CheckpointError: A result is not a valid code.
    """
    wide = scales.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(wide == 0, 0.0, -scaled.astype(np.float64) / wide)
    zeros = np.clip(np.nan_to_num(np.rint(found)), 0, packed.scheme.levels - 1)
    smallest = np.finfo(np.float16).smallest_subnormal
    wrong = ~(np.abs(zeros * wide + scaled) <= _SCALED_ZERO_SLACK * np.abs(scaled) + smallest)
    if wrong.any():
        row, group = (int(index) for index in np.argwhere(wrong)[0])
        raise CheckpointError(
            f"scaled_zeros: expected -scale * zero with a zero point of 0 to {packed.scheme.levels - 1}, got "
            f"{float(scaled[row, group]):g} with the scale {float(scales[row, group]):g} in row {row}, group {group}.",
            where=packed.where,
            fix=DAMAGED,
        )
    codes: NDArray[np.uint8] = zeros.astype(np.uint8)
    return codes


def _interleaved(words: Array) -> NDArray[np.uint8]:
    """int16 [N/4, K] -> uint8 [N, K].

    For every 64 columns, a row of words has the codes of four rows one after the other, four per word. Within 32
    columns, those of pair p = 0..3 of each eight come together, the even ones of these eight first.
    """
    shifts = np.arange(0, 16, BITS, dtype=np.uint16)
    codes = ((words.view(np.uint16)[..., None] >> shifts) & 0xF).astype(np.uint8)  # [N/4, K, 4]
    rows, columns = words.shape[0] * _ROWS, words.shape[1]
    codes = codes.reshape(words.shape[0], columns // _COLUMNS, _ROWS, _COLUMNS).transpose(0, 2, 1, 3)
    halves = codes.reshape(rows, columns // 32, 4, 2, 4)  # pair of each eight, parity, eight
    return np.ascontiguousarray(halves.transpose(0, 1, 4, 2, 3)).reshape(rows, columns)


GEMV: Final = Layout(
    name="gemv",
    tool=TOOL,
    required=("qweight", "qzeros", "scales"),
    optional=(),
    read=read_four_bits,
    unpack=unpack,
)
GEMV_FAST: Final = Layout(
    name="gemv_fast",
    tool=TOOL,
    required=("qweight", "scales", "scaled_zeros"),
    optional=(),
    read=read_four_bits,
    unpack=unpack_fast,
)
