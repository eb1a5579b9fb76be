"""Improves codes one at a time, by coordinate descent on a linear's output error or on that of attention scores.

In: a weight [N, K], its codes, E[x x^T] of its input. Out: codes on the same grid that no change of a single code
improves much. With D the weight error and G = E[x x^T], the error of a row is D G D^T, a parabola in each of its
weights; the best code of a weight, all others given, is the one nearest to the parabola's minimum w_k - (sum over j !=
k of D_j G_jk) / G_kk. Cyclic descent of this kind is QuantEase's (arXiv:2309.01885, section 3). Unlike GPTQ, it inverts
no matrix, changes every column while all others are rounded, and never makes the error larger.

If errors of rows interact by a matrix M, like those of a head's queries (`awq2trt.quantization.scores`), the error is
tr(M D G D^T): still a parabola in each weight, around w_rk - (sum over (s, j) != (r, k) of M_rs D_sj G_jk) / (M_rr
G_kk).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from awq2trt.quantization.rounding import Rounded
from awq2trt.scheme import QuantScheme

PANEL: Final = 128
"""Number of columns whose changes are collected before they are applied to the rest of the matrix."""


def descend(
    weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, *, passes: int, moments: Tensor | None = None
) -> Rounded:
    """Goes over all columns `passes` times.

    Args:
        weight: Scaled weights, fp32 [N, K].
        rounded: The codes to begin with.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: Bits, groups, zero points.
        passes: Number of passes.
        moments: M of every head, fp32 [heads, N / heads, N / heads] with positive diagonals; None if errors of rows do
            not interact.
    """
    length = scheme.group_of(weight.shape[1])
    moments = weight.new_ones(len(weight), 1, 1) if moments is None else moments
    heads, rows, _ = moments.shape

    def by_column(value: Tensor) -> Tensor:
        """[N, K] -> [K, rows, heads], so that values that are used together are adjacent in memory."""
        return value.view(heads, rows, -1).permute(2, 1, 0).contiguous()

    target, codes = by_column(weight), by_column(rounded.codes)
    steps, zeros = by_column(rounded.grid.scales.squeeze(-1)), by_column(rounded.grid.zeros.squeeze(-1))
    # By how much the best weight of the second row falls if that of the first row grows by 1, [rows, rows, heads].
    ties = (moments / moments.diagonal(dim1=1, dim2=2).unsqueeze(1)).permute(1, 2, 0).contiguous()
    error = by_column(rounded.dequantize(scheme)) - target
    slope = (gram @ error.flatten(1)).view_as(error)  # half the derivative of each row's own output error
    for _ in range(passes):
        for start in range(0, len(target), PANEL):
            own = slice(start, min(start + PANEL, len(target)))
            block, before, local = gram[own, own], error[own].clone(), slope[own].clone()
            for index, column in enumerate(range(own.start, own.stop)):
                step, zero = steps[column // length], zeros[column // length]
                if index == 0 or column % length == 0:
                    ties_of_codes = ties * step.unsqueeze(1) / step
                curvature = float(block[index, index])
                if curvature <= 0:  # an input that is always zero: all codes are equally good
                    continue
                now = (target[column] + error[column]) / step + zero
                best = now - (ties * local[index].unsqueeze(1)).sum(dim=0) / (step * curvature)
                _choose_(codes[column], now, best, ties_of_codes, scheme)
                change = (codes[column] - now) * step
                error[column] += change
                local[index:] += block[index:, index].view(-1, 1, 1) * change
            slope += (gram[:, own] @ (error[own] - before).flatten(1)).view_as(slope)
    return Rounded(codes.permute(2, 1, 0).reshape(weight.shape), rounded.grid)


def _choose_(codes: Tensor, now: Tensor, best: Tensor, ties: Tensor, scheme: QuantScheme) -> None:
    """Chooses new codes for a column, one row of every head after another.

    Args:
        codes: Codes of the column, [rows, heads]; they are changed.
        now: The current codes, which are not exactly integers because of fp32, [rows, heads].
        best: Real numbers that minimise the error, each with the other rows unchanged, [rows, heads]; they are changed.
        ties: By how much the best code of the second row falls if that of the first row grows by 1, [rows, rows,
            heads].
        scheme: Bits.
    """
    for code, wanted, current, falls in zip(codes, best, now, ties, strict=True):
        torch.round(wanted, out=code).clamp_(0, scheme.levels - 1)
        best.addcmul_(falls, code - current, value=-1)
