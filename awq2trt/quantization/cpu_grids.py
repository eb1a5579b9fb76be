"""Losses of candidate grids on a CPU: compiled loops over rows, and between them one product of matrices.

In: weights of one group [n, G], and C grids for each row. Out: the output error of every row on each of its grids. As
calls of PyTorch alone, a third of the time was spent on reading and writing all differences again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

AT_ONCE: Final = 3
"""Candidates whose differences are multiplied at once; with more of them, several hundred rows leave a core's
second-level cache."""

_INTEGERS: Final = np.float32(1.5 * 2**23)
"""Added and taken away again, it rounds a smaller number to the nearest integer, half to even: fp32 has no bits behind
the point there."""

_NONE: Final = np.float32(0)
_ONE: Final = np.float32(1)

_WORD: Final = 8
"""Columns of which 64 bits say whether their codes are at an end of the range."""

_BITS, _HALF, _LAST_BIT = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)
"""How bits of fp32 are rounded to those of bf16, the upper 16, half to even."""

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Compiles a loop that other threads need not wait for, and that divides as NumPy does."""

_summed = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
"""The same for one whose sums may be taken in any order, many numbers at a time."""


@dataclass(frozen=True)
class Rows:
    """Rows of one group.

    Attributes:
        weight: fp32 [n, G].
        block: G_gg, their part of E[x x^T], fp32 or bf16 [G, G].
        last: The largest code.
        pull: What the other groups add to the slope, 2 p, fp32 [n, G]; None if they are not considered.
    """

    weight: Tensor
    block: Tensor
    last: int
    pull: Tensor | None = None

    @property
    def pulls(self) -> Any:
        """The pull as compiled loops take it: [0, G] if there is none."""
        return (self.weight[:0] if self.pull is None else self.pull).numpy()


def losses_on(rows: Rows, scales: Tensor, zeros: Tensor) -> Tensor:
    """Output errors of rows on their candidate grids.

    Args:
        rows: Weights of a group, and what their error depends on.
        scales: Step sizes, fp32 [n, C].
        zeros: Zero points, fp32 [n, C].

    Returns:
        fp32 [n, C].
    """
    scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
    losses, room = torch.empty_like(scales), _Room.for_candidates(rows, AT_ONCE)
    for own in room.parts(scales):
        room.multiply_differences_(rows, scales[own], zeros[own])
        _fill_losses(*room.read(), scales[own].numpy(), rows.pulls, losses[own].numpy())
    return losses.T


def losses_around(rows: Rows, scales: Tensor, zeros: Tensor) -> Tensor:
    """Output errors for every step size with each of three zero points, next to each other.

    Another zero point changes only codes at an end of the range, by 1. So a step size takes one product for all three.

    Args:
        rows: Weights of a group, and what their error depends on.
        scales: Step sizes, fp32 [n, C].
        zeros: Zero points: the one in the middle, at most 1 less, and at most 1 more, fp32 [n, 3].

    Returns:
        fp32 [n, C, 3].
    """
    scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
    losses, room = scales.new_empty(3, *scales.shape), _Room.for_candidates(rows, AT_ONCE)
    known = rows.weight.numpy(), rows.block.float().numpy(), np.float32(rows.last), zeros.numpy()
    for own in room.parts(scales):
        steps, found = scales[own].numpy(), losses[:, own].numpy()
        room.multiply_differences_(rows, scales[own], zeros[1].expand_as(scales[own]).contiguous())
        _fill_losses(*room.read(), steps, rows.pulls, found[1])
        _fill_losses_beside(*known, *room.read()[1:], steps, rows.pulls, found)
    return losses.permute(2, 1, 0)


def fitted_steps(rows: Rows, scales: Tensor, zeros: Tensor) -> Tensor:
    """The step sizes at which the codes of given grids have the smallest error, which is quadratic in the step size.

    Args:
        rows: Weights of a group, and what their error depends on.
        scales: Step sizes of the grids, fp32 [n, 1].
        zeros: Zero points, fp32 [n, 1].

    Returns:
        fp32 [n, 1]; the step size that was given for a row whose error does not depend on it.
    """
    scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
    room, fitted = _Room.for_candidates(rows, 1), torch.empty_like(scales)
    room.multiply_differences_(rows, scales, zeros, from_weights=False)
    _fill_fits(*room.read(), rows.weight.numpy(), scales.numpy(), rows.pulls, fitted.numpy())
    return fitted.T


@dataclass(frozen=True)
class _Room:
    """Memory for some candidates: their differences, those as factors of the product with G_gg, and the product.

    Attributes:
        exact: fp32 [C, n, G].
        factor: The same, or narrower.
        product: Their product, of the same type as `factor`.
    """

    exact: Tensor
    factor: Tensor
    product: Tensor

    @classmethod
    def for_candidates(cls, rows: Rows, count: int) -> _Room:
        """Makes room for `count` candidates."""
        exact = torch.empty(count, *rows.weight.shape)
        factor = exact if rows.block.dtype == exact.dtype else torch.empty_like(exact, dtype=rows.block.dtype)
        return cls(exact, factor, torch.empty_like(factor))

    def parts(self, candidates: Tensor) -> Iterator[slice]:
        """Candidates that there is room for at once, of [C, n]."""
        return (slice(start, start + len(self.exact)) for start in range(0, len(candidates), len(self.exact)))

    def multiply_differences_(self, rows: Rows, scales: Tensor, zeros: Tensor, *, from_weights: bool = True) -> None:
        """Rounds rows on grids [C, n]; multiplies the differences from the weights, or the codes, by G_gg."""
        grids, share = (scales.numpy(), zeros.numpy()), np.float32(1 if from_weights else 0)
        filled = self.exact.numpy(), _bits(self.factor)
        _fill_differences(rows.weight.numpy(), *grids, np.float32(rows.last), share, *filled)
        own = slice(0, len(scales))
        torch.mm(self.factor[own].flatten(0, 1), rows.block, out=self.product[own].flatten(0, 1))

    def read(self) -> tuple[Any, Any, Any]:
        """Differences; products as fp32, [0, n, G] if they are bf16; and the bits of bf16, [0, n, G] if fp32."""
        wide = self.product if self.product.dtype == torch.float32 else self.exact[:0]
        return self.exact.numpy(), wide.numpy(), _bits(self.product)


def _bits(values: Tensor) -> Any:
    """The bits of bf16 as uint16 [C, n, G]; [0, n, G] for fp32."""
    if values.dtype == torch.float32:
        return np.empty((0, *values.shape[1:]), np.uint16)
    return values.view(torch.uint16).numpy()


@_compiled
def _fill_differences(  # noqa: PLR0913  (what a compiled loop reads is its arguments)
    weight: Any, scales: Any, zeros: Any, last: Any, share: Any, differences: Any, narrow: Any
) -> None:
    """Rounds every row on each of its grids.

    Args:
        weight: fp32 [n, G].
        scales: Step sizes, fp32 [C, n].
        zeros: Zero points, fp32 [C, n].
        last: The largest code, fp32.
        share: How much of each weight is taken away from its code, fp32: 1 or 0.
        differences: Becomes codes minus zero points and weights, in units of steps, fp32 [C or more, n, G].
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
                differences[candidate, row, column] = min(max(level, low), high) - share * in_steps
            if narrow.shape[0]:
                for column in range(weight.shape[1]):
                    exact = bits[candidate, row, column]
                    narrow[candidate, row, column] = (exact + _HALF + ((exact >> _BITS) & _LAST_BIT)) >> _BITS


@_compiled
def _widen(wide: Any, narrow: Any, candidate: int, row: int, slope: Any) -> None:
    """Copies a row of the products to `slope`, fp32 [G], from whichever of the two has them."""
    bits = slope.view(np.uint32)
    if narrow.shape[0]:
        for column in range(len(slope)):
            bits[column] = np.uint32(narrow[candidate, row, column]) << _BITS
    else:
        for column in range(len(slope)):
            slope[column] = wide[candidate, row, column]


@_summed
def _fill_losses(differences: Any, wide: Any, narrow: Any, scales: Any, pull: Any, losses: Any) -> None:
    """Sums up the output error of every row on each of its grids.

    Args:
        differences: As of `_fill_differences`, fp32 [C or more, n, G].
        wide: Their products with G_gg, fp32 [C or more, n, G]; [0, n, G] if they are in `narrow`.
        narrow: The bits of the products in bf16, uint16 [C or more, n, G]; [0, n, G] if they are in `wide`.
        scales: Step sizes, fp32 [C, n].
        pull: 2 p, fp32 [n, G]; [0, G] if the other groups are not considered.
        losses: Becomes the errors, fp32 [C, n].
    """
    pulled, slope = pull.shape[0] > 0, np.empty(differences.shape[2], np.float32)
    for candidate in range(scales.shape[0]):
        for row in range(scales.shape[1]):
            curved, straight, scale = np.float32(0), np.float32(0), scales[candidate, row]
            _widen(wide, narrow, candidate, row, slope)
            for column in range(differences.shape[2]):
                curved += slope[column] * differences[candidate, row, column]
            if pulled:
                for column in range(differences.shape[2]):
                    straight += pull[row, column] * differences[candidate, row, column]
            losses[candidate, row] = (curved * scale + straight) * scale


@_compiled
def _fill_losses_beside(  # noqa: PLR0913  (what a compiled loop reads is its arguments)
    weight: Any,
    block: Any,
    last: Any,
    zeros: Any,
    wide: Any,
    narrow: Any,
    scales: Any,
    pull: Any,
    losses: Any,
) -> None:
    """From the errors on some zero points, those on the next smaller and larger ones.

    If the zero point grows by 1, so do the range's ends fall by 1, and with them the codes there; if it falls, they
    rise. With S these columns and e the difference's change on them, 1 or -1 steps, the error changes by 2 e times the
    slope on S, plus G_gg over S.

    Args:
        weight: fp32 [n, G].
        block: G_gg, fp32 [G, G].
        last: The largest code, fp32.
        zeros: Zero points, fp32 [3, n].
        wide: As of `_fill_losses`, for the second zero points.
        narrow: The same.
        scales: Step sizes, fp32 [C, n].
        pull: 2 p, fp32 [n, G]; [0, G] if the other groups are not considered.
        losses: Errors, fp32 [3, C, n], of which the second are known; becomes the first and third.
    """
    length = weight.shape[1]
    slope, code = np.empty(length, np.float32), np.empty(length, np.float32)
    found, ends = np.empty(length, np.int32), np.empty(length, np.int32)
    at_end = np.zeros(-(-length // _WORD) * _WORD, np.uint8)
    words = at_end.view(np.uint64)  # most of which are 0, and passed over at once
    for candidate in range(scales.shape[0]):
        for row in range(scales.shape[1]):
            scale, zero = scales[candidate, row], zeros[1, row]
            steps, count = _ONE / scale, 0
            _widen(wide, narrow, candidate, row, slope)
            for column in range(length):
                code[column] = (weight[row, column] * steps + _INTEGERS) - _INTEGERS + zero
                at_end[column] = (code[column] <= _NONE) | (code[column] >= last)
            for word in range(len(words)):
                if words[word]:
                    for column in range(_WORD * word, min(_WORD * (word + 1), length)):
                        found[count] = column
                        count += at_end[column]
            for side in (0, 2):
                turn = zero - zeros[side, row]  # by how much the range's ends, and the codes there, rise
                low, high = (_NONE, last + _ONE) if turn > 0 else (-_ONE, last)
                along, own, chosen = _NONE, _NONE, 0
                for index in range(count):
                    ends[chosen] = found[index]
                    chosen += int((code[found[index]] <= low) | (code[found[index]] >= high))
                for index in range(chosen):
                    column = ends[index]
                    along += np.float32(2) * scale * slope[column]
                    if pull.shape[0]:
                        along += pull[row, column]
                    own += block[column, column]
                    for other in range(index):
                        own += np.float32(2) * block[column, ends[other]]
                losses[side, candidate, row] = losses[1, candidate, row] + turn * (along + turn * own * scale) * scale


@_summed
def _fill_fits(  # noqa: PLR0913  (what a compiled loop reads is its arguments)
    levels: Any, wide: Any, narrow: Any, weight: Any, scales: Any, pull: Any, fitted: Any
) -> None:
    """Fits step sizes to codes.

    Args:
        levels: Codes minus zero points, fp32 [1, n, G].
        wide: Their products with G_gg, as of `_fill_losses`.
        narrow: The same.
        weight: fp32 [n, G].
        scales: Step sizes, fp32 [1, n].
        pull: 2 p, fp32 [n, G]; [0, G] if the other groups are not considered.
        fitted: Becomes the best step sizes, fp32 [1, n].
    """
    slope = np.empty(weight.shape[1], np.float32)
    for row in range(weight.shape[0]):
        curvature, target, pulled = np.float32(0), np.float32(0), np.float32(0)
        _widen(wide, narrow, 0, row, slope)
        for column in range(weight.shape[1]):
            curvature += slope[column] * levels[0, row, column]
            target += slope[column] * weight[row, column]
        if pull.shape[0]:
            for column in range(weight.shape[1]):
                pulled += pull[row, column] * levels[0, row, column]
        if curvature > 0:
            fitted[0, row] = (target - pulled / np.float32(2)) / curvature
        else:
            fitted[0, row] = scales[0, row]
