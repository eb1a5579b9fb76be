"""AutoAWQ's GEMM layout: `version: gemm` of `quant_method: awq`, as AutoAWQ, llm-awq's converters and we write it.

`qweight` int32 [K, N/8], `qzeros` int32 [K/G, N/8], `scales` [K/G, N]: weights are transposed, and an int32 holds eight
neighbours along N, with column `_NIBBLE_ORDER[i]` of the eight in nibble i. It needs only NumPy.

Config keys: https://huggingface.co/docs/transformers/quantization/awq; llm-awq's are `w_bit` and `q_group_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts.layout import (
    BIAS,
    QUANTIZE_AGAIN,
    Array,
    Layout,
    LinearToUnpack,
    ModelSchemes,
    QuantizationConfig,
    SchemeNumbers,
    Tool,
    Writer,
    config_integer,
    has_whole_groups,
)
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.families import DecoderSpec
from awq2trt.scheme import QuantizedLinear, QuantScheme

BITS: Final = 4
COLUMNS_PER_WORD: Final = 8

_NAME: Final = "gemm"
_NIBBLE_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)

_WORDS_AT_ONCE: Final = 32
"""Words of a column that are packed at once, so that they are in the CPU's cache when they are transposed."""


def read_scheme(found: QuantizationConfig, where: str) -> SchemeNumbers:
    """Reads bits, group size and zero points from a config with AutoAWQ's or llm-awq's keys."""
    zero_point = bool(found.get("zero_point", True)) and not found.get("symmetric", False)
    return (
        config_integer(found, where, "bits", "w_bit"),
        config_integer(found, where, "group_size", "q_group_size"),
        zero_point,
    )


def write_scheme(scheme: QuantScheme, version: str, plain: Sequence[str]) -> dict[str, Any]:
    """Makes a `quantization_config` with AutoAWQ's keys.

    Args:
        scheme: How the linears are quantized.
        version: Name of the layout.
        plain: Names of linears that are not quantized.
    """
    return {
        "quant_method": TOOL.name,
        "version": version,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": scheme.zero_point,
        "symmetric": not scheme.zero_point,
        "modules_to_not_convert": [*plain],
    }


def pack(linear: QuantizedLinear) -> dict[str, Array]:
    """Packs a linear without its bias.

    The layout always has zero points, so a symmetric linear is written with its constant zero point, from which every
    reader computes the same weights.

    Args:
        linear: A 4-bit linear whose N is a multiple of 8.
    """
    zeros = linear.zeros
    if zeros is None:
        zeros = np.full(linear.scales.shape, linear.scheme.symmetric_zero, dtype=np.uint8)
    return {
        "qweight": _pack_words(linear.codes),
        "qzeros": _pack_words(zeros),
        "scales": np.ascontiguousarray(linear.scales.T),
    }


def unpack(packed: LinearToUnpack) -> QuantizedLinear:
    """The inverse of `pack`, bit for bit."""
    (rows, columns), scheme, groups = packed.shape, packed.scheme, packed.groups
    if rows % COLUMNS_PER_WORD:
        raise CheckpointError(
            f"expected N divisible by {COLUMNS_PER_WORD}, got N = {rows}.", where=packed.where, fix=QUANTIZE_AGAIN
        )
    words = rows // COLUMNS_PER_WORD
    qweight = packed.expect("qweight", (columns, words), np.int32)
    qzeros = packed.expect("qzeros", (groups, words), np.int32)
    scales = packed.expect("scales", (groups, rows))
    zeros = _unpack_words(qzeros)
    if not scheme.zero_point and np.any(zeros != scheme.symmetric_zero):
        raise CheckpointError(
            f"the config says zero_point: false, but qzeros hold values other than {scheme.symmetric_zero}.",
            where=packed.where,
            fix="set zero_point: true in config.json's quantization_config.",
        )
    return QuantizedLinear(
        codes=_unpack_words(qweight),
        scales=np.ascontiguousarray(scales.T),
        zeros=zeros if scheme.zero_point else None,
        scheme=scheme,
        bias=packed.tensors.get(BIAS),
    )


def _version(found: QuantizationConfig) -> str:
    return str(found.get("version", _NAME)).lower()


def read_four_bits(found: QuantizationConfig, where: str) -> SchemeNumbers:
    """Does the same as `read_scheme`, for layouts that only have 4-bit codes."""
    bits, group_size, zero_point = read_scheme(found, where)
    if bits != BITS:
        raise UnsupportedError(f"bits: expected {BITS}, got {bits}.", where=where, fix=QUANTIZE_AGAIN)
    return bits, group_size, zero_point


def _holds(spec: DecoderSpec, schemes: ModelSchemes) -> bool:
    """Whether this is INT4 with zero points, an unquantized head, N a multiple of 8, and no shorter last group.

    Tools differ on a quantized head: AutoAWQ does not support one, and vLLM only if the config says so.
    """
    scheme = schemes.blocks
    shapes = (*spec.stored_linears().values(), *schemes.seen_with)
    whole_words = all(rows % COLUMNS_PER_WORD == 0 for rows, _ in shapes)
    of_blocks = schemes.head is None and scheme.bits == BITS and scheme.zero_point
    return of_blocks and whole_words and has_whole_groups(spec, schemes)


def _pack_words(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """uint8 [N, columns] -> int32 [columns, N/8]."""
    rows, columns = codes.shape
    if rows % COLUMNS_PER_WORD:
        raise ValueError(f"AutoAWQ's layout needs N divisible by {COLUMNS_PER_WORD}, got N = {rows}")
    octets = codes.reshape(-1, COLUMNS_PER_WORD, columns)
    packed = np.empty((columns, len(octets)), np.uint32)
    for start in range(0, len(octets), _WORDS_AT_ONCE):
        part = octets[start : start + _WORDS_AT_ONCE]
        words = np.zeros((len(part), columns), np.uint32)
        for nibble, row in enumerate(_NIBBLE_ORDER):
            words |= np.left_shift(part[:, row], np.uint32(4 * nibble), dtype=np.uint32)
        packed[:, start : start + _WORDS_AT_ONCE] = words.T
    return packed.view(np.int32)


def _unpack_words(words: NDArray[np.generic]) -> NDArray[np.uint8]:
    """int32 [columns, N/8] -> uint8 [N, columns]."""
    columns, count = words.shape
    octets = np.empty((count, COLUMNS_PER_WORD, columns), np.uint8)
    for start in range(0, count, _WORDS_AT_ONCE):
        part = np.ascontiguousarray(words[:, start : start + _WORDS_AT_ONCE].T).view(np.uint32)
        for nibble, row in enumerate(_NIBBLE_ORDER):
            octets[start : start + len(part), row] = (part >> np.uint32(4 * nibble)) & 0xF
    return octets.reshape(-1, columns)


TOOL: Final = Tool("awq", "version", _version)

LAYOUT: Final = Layout(
    name=_NAME,
    tool=TOOL,
    required=("qweight", "qzeros", "scales"),
    optional=(),
    read=read_four_bits,
    unpack=unpack,
    writer=Writer(_holds, lambda schemes, head: write_scheme(schemes.blocks, _NAME, [head]), pack),
)
