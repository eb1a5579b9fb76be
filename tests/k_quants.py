"""Encodes weights as ggml's k-quants, which the gguf package only decodes: nearest codes, block by block.

Layouts: `block_q4_K` and `block_q6_K` of ggml-common.h, 256 weights each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 256


def encode_q4_k(weight: Array) -> Array:
    """w = d * scale * code - dmin * minimum, for 8 groups of 32: uint8 [rows, columns / 256 * 144]."""
    groups = weight.astype(np.float32).reshape(-1, 8, 32)
    lowest, highest = np.minimum(groups.min(axis=2), 0), groups.max(axis=2)
    d = _halves((highest - lowest).max(axis=1) / 15 / 63)
    dmin = _halves(-lowest.min(axis=1) / 63)
    scales = _codes((highest - lowest) / 15 / d[:, None], 63)
    minima = _codes(-lowest / dmin[:, None], 63)
    steps = d[:, None] * scales
    codes = _codes((groups + (dmin[:, None] * minima)[:, :, None]) / np.where(steps == 0, 1, steps)[:, :, None], 15)
    packed = np.empty((len(groups), 12), np.uint8)
    packed[:, :4] = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    packed[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    packed[:, 8:] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    pairs = codes.reshape(-1, 4, 2, 32)  # 64 weights: the first 32 in the low nibbles
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    ends = np.column_stack([d, dmin]).astype(np.float16).view(np.uint8)
    return np.concatenate([ends, packed, nibbles], axis=1).reshape(len(weight), -1)


def encode_q6_k(weight: Array) -> Array:
    """w = d * scale * (code - 32), for 16 groups of 16: uint8 [rows, columns / 256 * 210]."""
    groups = weight.astype(np.float32).reshape(-1, 16, 16)
    largest = np.abs(groups).max(axis=2)
    d = _halves(largest.max(axis=1) / 31 / 127)
    scales = np.maximum(_codes(largest / 31 / d[:, None], 127), 1)
    codes = np.clip(np.rint(groups / (d[:, None] * scales)[:, :, None]), -32, 31).astype(np.int8) + 32
    quarters = codes.astype(np.uint8).reshape(-1, 2, 4, 32)  # of each half of the block
    low = np.stack([quarters[:, :, k] & 15 | (quarters[:, :, k + 2] & 15) << 4 for k in (0, 1)], axis=2)
    high = sum(((quarters[:, :, k] >> 4) << (2 * k)).astype(np.uint8) for k in range(4))
    parts = [low.reshape(-1, 128), np.asarray(high, np.uint8).reshape(-1, 64), scales.astype(np.uint8)]
    return np.concatenate([*parts, d.astype(np.float16)[:, None].view(np.uint8)], axis=1).reshape(len(weight), -1)


def _halves(value: Array) -> Array:
    """Rounds to numbers that fp16 can hold, except 0."""
    rounded = np.asarray(value, np.float16).astype(np.float32)
    return np.where(rounded == 0, np.float32(2**-24), rounded)


def _codes(value: Array, largest: int) -> Array:
    return np.clip(np.rint(value), 0, largest).astype(np.uint8)
