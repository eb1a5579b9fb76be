"""Measures how far two stages differ at one place, position by position, so that one wrong token stands out.

In: what a reference and a candidate computed there, [..., channels]. Out: numbers. It needs only NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Difference:
    """How far two stages differ at one place, over positions.

    Attributes:
        positions: How many were compared.
        max_abs: Largest difference of two numbers.
        mean_abs: Mean difference.
        max_relative: Largest over positions of the norm of the difference over the norm of the reference.
        mean_relative: Its mean over positions.
        cosine: Smallest cosine over positions.
    """

    positions: int
    max_abs: float
    mean_abs: float
    max_relative: float
    mean_relative: float
    cosine: float


def unlike(positions: int) -> Difference:
    """The result for what cannot be compared: every error is NaN, which is within no limit."""
    return Difference(positions, *[math.nan] * (len(fields(Difference)) - 1))


def difference(reference: Array, candidate: Array, *, centered: bool = False) -> Difference:
    """Compares two tensors of the same shape; if anything is not a number, every error is NaN.

    Args:
        reference: [..., channels].
        candidate: A tensor of the same shape.
        centered: Whether to subtract from each vector its mean, as for logits, where a constant means nothing.
    """
    wide = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    other = candidate.reshape(-1, candidate.shape[-1]).astype(np.float64)
    if not (np.isfinite(wide).all() and np.isfinite(other).all()):
        return unlike(len(wide))
    if centered:
        wide, other = (value - value.mean(axis=-1, keepdims=True) for value in (wide, other))
    gap = np.abs(other - wide)
    tiny = np.finfo(np.float64).tiny
    relative = np.linalg.norm(gap, axis=-1) / np.maximum(np.linalg.norm(wide, axis=-1), tiny)
    norms = np.linalg.norm(wide, axis=-1) * np.linalg.norm(other, axis=-1)
    # Two vectors of zeros count as pointing the same way.
    cosine = np.where(norms > 0, (wide * other).sum(axis=-1) / np.maximum(norms, tiny), (gap.max(axis=-1) == 0) * 1.0)
    return Difference(
        positions=len(wide),
        max_abs=float(gap.max()),
        mean_abs=float(gap.mean()),
        max_relative=float(relative.max()),
        mean_relative=float(relative.mean()),
        cosine=float(cosine.min()),
    )


def merged(parts: Sequence[Difference]) -> Difference:
    """Combines the differences of several calls of a decoder."""
    positions = sum(part.positions for part in parts)

    def mean(name: str) -> float:
        return sum(part.positions * float(getattr(part, name)) for part in parts) / positions

    def largest(name: str) -> float:
        values = [float(getattr(part, name)) for part in parts]
        return math.nan if any(map(math.isnan, values)) else max(values)

    cosines = [part.cosine for part in parts]
    return Difference(
        positions=positions,
        max_abs=largest("max_abs"),
        mean_abs=mean("mean_abs"),
        max_relative=largest("max_relative"),
        mean_relative=mean("mean_relative"),
        cosine=math.nan if any(map(math.isnan, cosines)) else min(cosines),
    )
