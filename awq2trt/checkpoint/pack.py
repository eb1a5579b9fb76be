"""Byte layouts of `QuantizedLinear`: ONNX INT4 tensors and AutoAWQ's GEMM layout. NumPy only.

ONNX INT4 (https://onnx.ai/onnx/technical/int4.html): signed nibbles, two's complement, two to a byte,
the first element in the low nibble, over the flattened tensor; an odd count leaves the last high nibble 0.
Our unsigned codes become signed by subtracting 8, which for a nibble is flipping bit 3.

AutoAWQ GEMM (`version: gemm`): `qweight` int32 [K, N/8], `qzeros` int32 [ceil(K/G), N/8], `scales` fp16
[ceil(K/G), N]: weights transposed, eight neighbours along N to an int32, nibble i holding column
`AWQ_NIBBLE_ORDER[i]` of the eight.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear, QuantScheme

AWQ_NIBBLE_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_COLUMNS_PER_WORD: Final = 8
_SIGN_FLIP: Final = 0x8
"""XOR with 8 maps the unsigned nibble u to the two's complement nibble of u - 8, and back."""


def pack_int4(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packs unsigned codes of any shape into the bytes of a signed ONNX INT4 tensor.

    Args:
        codes: uint8 values in [0, 16); the code u stands for the INT4 value u - 8.

    Returns:
        uint8 [ceil(codes.size / 2)].
    """
    nibbles: NDArray[np.uint8] = codes.reshape(-1) ^ np.uint8(_SIGN_FLIP)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8)


def unpack_int4(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Inverse of `pack_int4`: unsigned codes uint8 of `shape`."""
    size = int(np.prod(shape))
    nibbles = np.empty(packed.size * 2, dtype=np.uint8)
    nibbles[0::2] = packed & 0xF
    nibbles[1::2] = packed >> 4
    return (nibbles[:size] ^ np.uint8(_SIGN_FLIP)).reshape(shape)


def words_of(count: int, bits: int) -> int:
    """32-bit words that `count` codes take."""
    return -(-count * bits // 32)


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Packs every row into a stream of bits, low bits first, without gaps: code i begins at bit i * `bits`.

    This is compressed-tensors' `pack-quantized` and GPTQ's layout (along the packed axis); of 3-bit codes, every
    eleventh or so lies in two words.

    Args:
        codes: uint8 [rows, n], less than 2^bits.
        bits: Width of a code.

    Returns:
        int32 [rows, ceil(n * bits / 32)].
    """
    rows, count = codes.shape
    stream = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)  # [rows, n, bits]
    padding = 32 * words_of(count, bits) - count * bits
    stream = np.pad(stream.reshape(rows, -1), ((0, 0), (0, padding)))
    return np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False)


def unpack_words(words: NDArray[np.generic], bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of `pack_words`: uint8 [rows, count]."""
    stream = np.unpackbits(np.ascontiguousarray(words).astype("<i4").view(np.uint8), axis=1, bitorder="little")
    split = stream[:, : count * bits].reshape(words.shape[0], count, bits)
    codes: NDArray[np.uint8] = np.zeros(split.shape[:2], np.uint8)
    for bit in range(bits):
        codes |= split[:, :, bit] << np.uint8(bit)
    return codes


def pack_awq_gemm(linear: QuantizedLinear) -> dict[str, NDArray[np.generic]]:
    """Packs a linear into AutoAWQ's GEMM tensors.

    A symmetric linear is written with its constant zero point, so that every reader of the layout, which
    always has zero points, computes the same weights.

    Args:
        linear: 4-bit; N a multiple of 8.

    Returns:
        `qweight` int32 [K, N/8], `qzeros` int32 [groups, N/8], `scales` fp16 [groups, N], and `bias` if any.
    """
    zeros = linear.zeros
    if zeros is None:
        zeros = np.full(linear.scales.shape, linear.scheme.symmetric_zero, dtype=np.uint8)
    tensors: dict[str, NDArray[np.generic]] = {
        "qweight": _pack_awq_words(linear.codes.T),
        "qzeros": _pack_awq_words(zeros.T),
        "scales": np.ascontiguousarray(linear.scales.T),
    }
    if linear.bias is not None:
        tensors["bias"] = linear.bias
    return tensors


def unpack_awq_gemm(tensors: dict[str, NDArray[np.generic]], scheme: QuantScheme, *, where: str) -> QuantizedLinear:
    """Reads AutoAWQ's GEMM tensors of one linear, bit for bit.

    Args:
        tensors: `qweight`, `qzeros`, `scales` and optionally `bias`, shapes as `pack_awq_gemm` returns.
        scheme: What `quantization_config` says.
        where: Name of the layer, for errors.

    Raises:
        CheckpointError: A tensor is missing, or shapes or types do not fit each other.
    """
    missing = [name for name in ("qweight", "qzeros", "scales") if name not in tensors]
    if missing:
        raise CheckpointError(f"missing {', '.join(missing)} of an AWQ linear.", where=where, fix=_DAMAGED)
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    if qweight.dtype != np.int32 or qzeros.dtype != np.int32 or qweight.ndim != 2:
        raise CheckpointError(
            f"expected int32 qweight [K, N/8] and qzeros, got {qweight.dtype} {list(qweight.shape)} "
            f"and {qzeros.dtype} {list(qzeros.shape)}.",
            where=where,
            fix=_DAMAGED,
        )
    in_features, words = qweight.shape
    out_features = words * AWQ_COLUMNS_PER_WORD
    groups = scheme.groups(in_features)
    if qzeros.shape != (groups, words) or scales.shape != (groups, out_features):
        raise CheckpointError(
            f"expected qzeros [{groups}, {words}] and scales [{groups}, {out_features}] for K = {in_features}, "
            f"N = {out_features}, group size {scheme.group_size}; got {list(qzeros.shape)} and {list(scales.shape)}.",
            where=where,
            fix="check q_group_size in config.json, or download the checkpoint again.",
        )
    bias = tensors.get("bias")
    if bias is not None and bias.shape != (out_features,):
        raise CheckpointError(f"expected a bias [{out_features}], got {list(bias.shape)}.", where=where, fix=_DAMAGED)
    zeros = np.ascontiguousarray(_unpack_awq_words(qzeros).T)
    if not scheme.zero_point and np.any(zeros != scheme.symmetric_zero):
        raise CheckpointError(
            f"the config says zero_point: false, but qzeros hold values other than {scheme.symmetric_zero}.",
            where=where,
            fix="set zero_point: true in config.json's quantization_config.",
        )
    return QuantizedLinear(
        codes=np.ascontiguousarray(_unpack_awq_words(qweight).T),
        scales=np.ascontiguousarray(scales.T),
        zeros=zeros if scheme.zero_point else None,
        scheme=scheme,
        bias=bias,
    )


_DAMAGED: Final = "the checkpoint is damaged or not AutoAWQ's GEMM layout; download or quantize it again."


def _pack_awq_words(codes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """uint8 [rows, N] -> int32 [rows, N/8]."""
    rows, columns = codes.shape
    if columns % AWQ_COLUMNS_PER_WORD:
        raise ValueError(f"AutoAWQ's layout needs N divisible by {AWQ_COLUMNS_PER_WORD}, got N = {columns}")
    octets = codes.reshape(rows, -1, AWQ_COLUMNS_PER_WORD)
    words = np.zeros(octets.shape[:2], dtype=np.uint32)
    for nibble, column in enumerate(AWQ_NIBBLE_ORDER):
        words |= octets[:, :, column].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def _unpack_awq_words(words: NDArray[np.generic]) -> NDArray[np.uint8]:
    """int32 [rows, N/8] -> uint8 [rows, N]."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    octets = np.empty((*unsigned.shape, AWQ_COLUMNS_PER_WORD), dtype=np.uint8)
    for nibble, column in enumerate(AWQ_NIBBLE_ORDER):
        octets[:, :, column] = (unsigned >> np.uint32(4 * nibble)) & 0xF
    return octets.reshape(words.shape[0], -1)
