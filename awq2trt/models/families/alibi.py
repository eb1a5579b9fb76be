"""Slopes of attention with linear biases (ALiBi, arXiv:2108.12409), in the two forms that published models use."""

from __future__ import annotations

import math


def bloom_slopes(num_heads: int) -> tuple[float, ...]:
    """Returns powers of 2^(-8/n) for n heads up to a power of two, then every second one of the next power of two.

    This is the authors' own rule (their repository's `get_slopes`); BLOOM and Falcon follow it.
    """
    whole = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * head / whole) for head in range(1, whole + 1)]
    finer = [2 ** (-8 * head / (2 * whole)) for head in range(1, 2 * (num_heads - whole) + 1, 2)]
    return tuple(slopes + finer)


def mpt_slopes(num_heads: int, bias_max: float) -> tuple[float, ...]:
    """Returns MPT's powers of 2^(-bias_max/n) for the next power of two n; odd ones first if there are fewer heads."""
    whole = 1 << math.ceil(math.log2(num_heads))
    slopes = [2 ** (-bias_max * head / whole) for head in range(1, whole + 1)]
    if whole != num_heads:
        slopes = (slopes[1::2] + slopes[::2])[:num_heads]
    return tuple(slopes)
