"""Improves codes one at a time, by coordinate descent on a linear's output error or on that of attention scores.

In: a weight [N, K], its codes, E[x x^T] of its input. Out: codes on the same grid that no change of a single code
improves much. With D the weight error and G = E[x x^T], the error of a row is D G D^T, a parabola in each of its
weights; the best code of a weight, all others given, is the one nearest to the parabola's minimum w_k - (sum over j !=
k of D_j G_jk) / G_kk. Cyclic descent of this kind is QuantEase's (arXiv:2309.01885, section 3). Unlike GPTQ, it inverts
no matrix, changes every column while all others are rounded, and never makes the error larger.

If errors of rows interact by a matrix M, like those of a head's queries (`awq2trt.quantization.scores`), the error is
tr(M D G D^T): still a parabola in each weight, around w_rk - (sum over (s, j) != (r, k) of M_rs D_sj G_jk) / (M_rr
G_kk).

A code depends on all before it, and few change: that is work for a compiled loop, which passes over what stays, and not
for tensors. On a core of the machine of `docs/measured.md`, a weight [576, 576] takes 30 ms for four passes, where
columns of it as tensors take 730.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from awq2trt.machine.device import CPU
from awq2trt.quantization.panels import PANEL, compiled, has_kernels
from awq2trt.quantization.rounding import Rounded
from awq2trt.scheme import QuantScheme


def descend(
    weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, *, passes: int, moments: Tensor | None = None
) -> Rounded:
    """Goes over all columns `passes` times, or until no code changes.

    Args:
        weight: Scaled weights, fp32 [N, K].
        rounded: The codes to begin with.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: Bits, groups, zero points.
        passes: Number of passes.
        moments: M of every head, fp32 [heads, N / heads, N / heads] with positive diagonals; None if errors of rows do
            not interact.
    """
    if has_kernels(weight):
        return _descend_by_kernels(weight, rounded, gram, scheme, passes, moments)
    device, cpu = weight.device, torch.device(CPU)
    moments = None if moments is None else moments.to(cpu)
    return _descend_on_cpu(weight.to(cpu), rounded.to(cpu), gram.to(cpu), scheme, passes, moments).to(device)


def _ties(moments: Tensor) -> Tensor:
    """By how much the best weight of the second row falls if that of the first grows by 1, [heads, rows, rows]."""
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
    columns, length = weight.shape[1], scheme.group_of(weight.shape[1])
    moments = weight.new_ones(len(weight), 1, 1) if moments is None else moments.contiguous()
    shape = (*moments.shape[:2], -1)
    slope = (rounded.dequantize(scheme) - weight) @ gram  # half the derivative of each row's own output error
    steps = rounded.grid.scales.squeeze(-1).repeat_interleave(length, dim=1)
    codes, descend_panel_ = rounded.codes.clone(), compiled(_descend_rows)
    for _ in range(passes):
        before = codes.clone()
        for start in range(0, columns, PANEL):
            own = slice(start, min(start + PANEL, columns))
            found, step = codes[:, own].contiguous(), steps[:, own].contiguous()
            views = (value.view(shape).numpy() for value in (found, slope[:, own].contiguous(), step, moments))
            descend_panel_(*views, gram[own, own].contiguous().numpy(), scheme.levels - 1)
            change = (found - codes[:, own]).mul_(step)
            slope.addmm_(change, gram[own])
            codes[:, own] = found
        if torch.equal(codes, before):
            break
    return Rounded(codes, rounded.grid)


def _descend_rows(codes: Any, slope: Any, steps: Any, moments: Any, gram: Any, last: int) -> None:
    """Goes over some columns once, one row of every head after another.

    Args:
        codes: Codes of the columns, fp32 [heads, rows, P]; they are changed.
        slope: These columns of the errors of all columns times G, fp32 [heads, rows, P]; they are changed.
        steps: Step size of every code, fp32 [heads, rows, P].
        moments: M of every head, fp32 [heads, rows, rows].
        gram: G of these columns, fp32 [P, P].
        last: The largest code.
    """
    heads, rows, columns = codes.shape
    for head in range(heads):
        for column in range(columns):
            curvature = gram[column, column]
            if curvature <= 0:  # an input that is always zero: all codes are equally good
                continue
            for row in range(rows):
                pull = np.float32(0)
                for other in range(rows):
                    pull += moments[head, row, other] * slope[head, other, column]
                step, code = steps[head, row, column], codes[head, row, column]
                best = np.rint(code - pull / (moments[head, row, row] * curvature * step))
                best = min(max(best, np.float32(0)), np.float32(last))
                if best != code:
                    codes[head, row, column] = best
                    change = (best - code) * step
                    for index in range(columns):
                        slope[head, row, index] += gram[column, index] * change
