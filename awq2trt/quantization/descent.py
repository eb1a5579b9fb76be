"""Codes improved one at a time, by coordinate descent on the linear's output error or on that of attention scores.

In: a weight [N, K], its codes, E[x x^T] of its input. Out: codes on the same grid that no single change improves much
further. With D the weight error and G = E[x x^T], the error of a row is D G D^T, a parabola in each of its weights; the
best code of a weight, all others given, is the one nearest to the parabola's minimum w_k - (sum over j != k of
D_j G_jk) / G_kk. Cyclic descent of this kind is QuantEase's (arXiv:2309.01885, section 3). Unlike GPTQ it inverts
nothing, looks at every column with all others rounded, and never makes the error larger.

Where errors of rows weigh on each other by a matrix M, as those of a head's queries do (`awq2trt.quantization.scores`),
the error is tr(M D G D^T): still a parabola in each weight, around w_rk - (sum over (s, j) != (r, k) of
M_rs D_sj G_jk) / (M_rr G_kk).
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.machine.device import CPU
from awq2trt.quantization.panels import PANEL, has_kernels
from awq2trt.quantization.rounding import Rounded
from awq2trt.scheme import QuantScheme


def descend(
    weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, *, passes: int, moments: Tensor | None = None
) -> Rounded:
    """Goes over all columns `passes` times.

    Args:
        weight: fp32 [N, K], scaled already.
        rounded: Where to start.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: Bits, groups, zero points.
        passes: How often.
        moments: M of every head, fp32 [heads, N / heads, N / heads] with positive diagonals; None if no row's error
            weighs on another's.
    """
    if has_kernels(weight):
        return _descend_by_kernels(weight, rounded, gram, scheme, passes, moments)
    device, cpu = weight.device, torch.device(CPU)
    moments = None if moments is None else moments.to(cpu)
    return _descend_on_cpu(weight.to(cpu), rounded.to(cpu), gram.to(cpu), scheme, passes, moments).to(device)


def _ties(moments: Tensor) -> Tensor:
    """How far the best weight of the second row falls if the first row's grows by 1, [heads, rows, rows]."""
    return moments / moments.diagonal(dim1=1, dim2=2).unsqueeze(1)


def _descend_by_kernels(
    weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, passes: int, moments: Tensor | None
) -> Rounded:
    from awq2trt.quantization.gpu_panels import PanelAt, descend_panel_

    columns, codes, gram = weight.shape[1], rounded.codes.clone(), gram.contiguous()
    steps = rounded.grid.scales.squeeze(-1).contiguous()
    ties = None if moments is None else _ties(moments).contiguous()
    slope = (rounded.dequantize(scheme) - weight) @ gram  # half the derivative of each row's own output error
    for _ in range(passes):
        for start in range(0, columns, PANEL):
            at = PanelAt(start, scheme.group_of(columns), scheme.levels - 1)
            change = descend_panel_(codes, slope, steps, gram, at, ties)
            slope.addmm_(change, gram[start : start + PANEL])
    return Rounded(codes, rounded.grid)


def _descend_on_cpu(
    weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, passes: int, moments: Tensor | None
) -> Rounded:
    length = scheme.group_of(weight.shape[1])
    moments = weight.new_ones(len(weight), 1, 1) if moments is None else moments
    heads, rows, _ = moments.shape

    def by_column(value: Tensor) -> Tensor:
        """[N, K] -> [K, rows, heads]: what is worked on at a time lies in memory together."""
        return value.view(heads, rows, -1).permute(2, 1, 0).contiguous()

    target, codes = by_column(weight), by_column(rounded.codes)
    steps, zeros = by_column(rounded.grid.scales.squeeze(-1)), by_column(rounded.grid.zeros.squeeze(-1))
    ties = _ties(moments).permute(1, 2, 0).contiguous()
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
                if curvature <= 0:  # an input that is always zero: every code is as good as another
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
    """New codes of a column, one row of every head after another.

    Args:
        codes: Of the column, [rows, heads]; changed.
        now: The same as they are, not quite integers where fp32 rounded; [rows, heads].
        best: Real numbers that minimise the error, each with the other rows as they are; [rows, heads]. Changed.
        ties: How far the best of the second row falls if the first row's code grows by 1, [rows, rows, heads].
        scheme: Bits.
    """
    for code, wanted, current, falls in zip(codes, best, now, ties, strict=True):
        torch.round(wanted, out=code).clamp_(0, scheme.levels - 1)
        best.addcmul_(falls, code - current, value=-1)
