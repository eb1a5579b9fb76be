"""Losses of candidate grids on a CPU: compiled loops over rows, and between them one product of matrices.

In: weights of one group [n, G], and C grids for each row. Out: the output error of every row on each of its grids. As
calls of PyTorch alone, a third of the time was spent on reading and writing all differences again and again.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

AT_ONCE: Final = 3
"""Candidates of 512 rows whose differences are multiplied at once; more of them leave a core's second-level cache."""

_INTEGERS: Final = np.float32(1.5 * 2**23)
"""Added and taken away again, it rounds a smaller number to the nearest integer, half to even: fp32 has no bits behind
the point there."""

_ONE: Final = np.float32(1)

_BITS, _HALF, _LAST_BIT = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)
"""How bits of fp32 are rounded to those of bf16, the upper 16, half to even."""


def losses_on(
    weight: Tensor, block: Tensor, grids: tuple[Tensor, Tensor], last: int, pull: Tensor | None = None
) -> Tensor:
    """Output errors of rows on their candidate grids.

    Args:
        weight: fp32 [n, G].
        block: G_gg, their part of E[x x^T], fp32 or bf16 [G, G].
        grids: Step sizes and zero points, fp32 [n, C] each.
        last: The largest code.
        pull: What the other groups add to the slope, 2 p, fp32 [n, G]; None if they are not considered.

    Returns:
        fp32 [n, C].
    """
    scales, zeros = (part.T.contiguous() for part in grids)
    losses, widened = torch.empty_like(scales), block.dtype == torch.float32
    difference = torch.empty(AT_ONCE, *weight.shape)
    factor = difference if widened else torch.empty_like(difference, dtype=block.dtype)
    product, slope = torch.empty_like(factor), torch.empty_like(difference)
    bits = np.empty((0, *weight.shape), np.uint16) if widened else factor.view(torch.uint16).numpy()
    pulls = (weight[:0] if pull is None else pull).numpy()
    steps, points, found, exact, slopes = (x.numpy() for x in (scales, zeros, losses, difference, slope))
    for start in range(0, len(steps), AT_ONCE):
        own, count = slice(start, start + AT_ONCE), min(AT_ONCE, len(steps) - start)
        _fill_differences(weight.numpy(), steps[own], points[own], np.float32(last), exact, bits)
        torch.mm(factor[:count].flatten(0, 1), block, out=product[:count].flatten(0, 1))
        slope[:count] = product[:count]
        _fill_losses(exact, slopes, steps[own], pulls, found[own])
    return losses.T


@numba.njit(cache=True, nogil=True)
def _fill_differences(weight: Any, scales: Any, zeros: Any, last: Any, differences: Any, narrow: Any) -> None:
    """Rounds every row on each of its grids.

    Args:
        weight: fp32 [n, G].
        scales: Step sizes, fp32 [C, n].
        zeros: Zero points, fp32 [C, n].
        last: The largest code, fp32.
        differences: Becomes the rounded weights minus the weights, in units of steps, fp32 [C or more, n, G].
        narrow: Becomes the bits of the same in bf16, uint16 of that shape; [0, n, G] if they are not wanted.
    """
    bits = differences.view(np.uint32)
    for candidate in range(scales.shape[0]):
        for row in range(weight.shape[0]):
            zero = zeros[candidate, row]
            steps, low, high = _ONE / scales[candidate, row], -zero, last - zero
            for column in range(weight.shape[1]):
                in_steps = weight[row, column] * steps
                level = (in_steps + _INTEGERS) - _INTEGERS
                differences[candidate, row, column] = min(max(level, low), high) - in_steps
            if narrow.shape[0]:
                for column in range(weight.shape[1]):
                    exact = bits[candidate, row, column]
                    narrow[candidate, row, column] = (exact + _HALF + ((exact >> _BITS) & _LAST_BIT)) >> _BITS


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _fill_losses(differences: Any, slope: Any, scales: Any, pull: Any, losses: Any) -> None:
    """Sums up the output error of every row on each of its grids.

    Args:
        differences: As of `_fill_differences`, fp32 [C or more, n, G].
        slope: Their products with G_gg, fp32 [C or more, n, G].
        scales: Step sizes, fp32 [C, n].
        pull: 2 p, fp32 [n, G]; [0, G] if the other groups are not considered.
        losses: Becomes the errors, fp32 [C, n].
    """
    pulled = pull.shape[0] > 0
    for candidate in range(scales.shape[0]):
        for row in range(scales.shape[1]):
            curved, straight, scale = np.float32(0), np.float32(0), scales[candidate, row]
            for column in range(differences.shape[2]):
                curved += slope[candidate, row, column] * differences[candidate, row, column]
            if pulled:
                for column in range(differences.shape[2]):
                    straight += pull[row, column] * differences[candidate, row, column]
            losses[candidate, row] = (curved * scale + straight) * scale
