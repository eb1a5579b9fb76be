"""Packs codes into bytes: ONNX INT4 and INT8 tensors, and streams of bits. It needs only NumPy.

ONNX INT4 (https://onnx.ai/onnx/technical/int4.html): signed nibbles, two's complement, two per byte, with the first
element in the low nibble, over the flattened tensor; an odd count leaves the last high nibble 0. Our unsigned codes
become signed by subtracting 8, which for a nibble is flipping bit 3.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGN_FLIP: Final = 0x8
"""XOR with 8 maps the unsigned nibble u to the two's complement nibble of u - 8, and back."""


_IN_BYTES: Final = (4, 8)
"""Widths of which a whole number fits a byte; they are packed directly, since a stream of bits is slow for a head."""


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
    """The inverse of `pack_int4`: returns unsigned codes, uint8 of `shape`."""
    size = int(np.prod(shape))
    nibbles = np.empty(packed.size * 2, dtype=np.uint8)
    nibbles[0::2] = packed & 0xF
    nibbles[1::2] = packed >> 4
    return (nibbles[:size] ^ np.uint8(_SIGN_FLIP)).reshape(shape)


def signed_bytes(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Converts 8-bit codes to ONNX's INT8: the unsigned code u stands for u - 128, which flips bit 7 of the byte."""
    return (codes ^ np.uint8(0x80)).view(np.int8)


def words_of(count: int, bits: int) -> int:
    """Number of 32-bit words that `count` codes take."""
    return -(-count * bits // 32)


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Packs every row into a stream of bits without gaps, low bits first: code i begins at bit i * `bits`.

    This is compressed-tensors' `pack-quantized` and GPTQ's layout (along the packed axis); about every eleventh 3-bit
    code is split over two words.

    Args:
        codes: uint8 [rows, n], less than 2^bits.
        bits: Width of a code.

    Returns:
        int32 [rows, ceil(n * bits / 32)].
    """
    rows, count = codes.shape
    if bits in _IN_BYTES:
        return _pack_bytes(codes, bits)
    stream = (codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)  # [rows, n, bits]
    padding = 32 * words_of(count, bits) - count * bits
    stream = np.pad(stream.reshape(rows, -1), ((0, 0), (0, padding)))
    return np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False)


def unpack_words(words: NDArray[np.generic], bits: int, count: int) -> NDArray[np.uint8]:
    """The inverse of `pack_words`: returns uint8 [rows, count]."""
    if bits in _IN_BYTES:
        return _unpack_bytes(np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8), bits)[:, :count]
    stream = np.unpackbits(np.ascontiguousarray(words).astype("<i4").view(np.uint8), axis=1, bitorder="little")
    split = stream[:, : count * bits].reshape(words.shape[0], count, bits)
    codes: NDArray[np.uint8] = np.zeros(split.shape[:2], np.uint8)
    for bit in range(bits):
        codes |= split[:, :, bit] << np.uint8(bit)
    return codes


def _pack_bytes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % (32 // bits))))
    packed = padded if bits == 8 else padded[:, 0::2] | (padded[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32, copy=False)


def _unpack_bytes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(0xF), packed >> np.uint8(4)], axis=2).reshape(packed.shape[0], -1)
