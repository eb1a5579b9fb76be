"""Codes improved one column at a time, by coordinate descent on the linear's output error.

In: a weight [N, K], its codes, E[x x^T] of its input. Out: codes on the same grid that no single change improves much
further. With D the weight error and G = E[x x^T], the error of a row is D G D^T, a parabola in each of its weights; the
best code of a weight, all others given, is the one nearest to the parabola's minimum w_k - (sum over j != k of
D_j G_jk) / G_kk. Cyclic descent of this kind is QuantEase's (arXiv:2309.01885, section 3). Unlike GPTQ it inverts
nothing, looks at every column with all others rounded, and never makes the error larger.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from awq2trt.quantize.rounding import Rounded
from awq2trt.scheme import QuantScheme

PANEL: Final = 128
"""Columns whose changes are kept together before they reach the rest of the matrix."""


def descend(weight: Tensor, rounded: Rounded, gram: Tensor, scheme: QuantScheme, *, passes: int) -> Rounded:
    """Goes over all columns `passes` times.

    Args:
        weight: fp32 [N, K], scaled already.
        rounded: Where to start.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: Bits, groups, zero points.
        passes: How often.
    """
    length = scheme.group_of(weight.shape[1])
    # Columns lie in memory one after another: they are what is worked on.
    target, codes = weight.T.contiguous(), rounded.codes.T.contiguous()  # [K, N]
    steps, zeros = (value.squeeze(-1).T for value in (rounded.grid.scales, rounded.grid.zeros))  # [groups, N]
    error = rounded.dequantize(scheme).T - target
    slope = gram @ error  # half the derivative of the output error
    for _ in range(passes):
        for start in range(0, len(target), PANEL):
            own = slice(start, min(start + PANEL, len(target)))
            block, before, local = gram[own, own], error[own].clone(), slope[own].clone()
            for index, column in enumerate(range(own.start, own.stop)):
                curvature = float(block[index, index])
                if curvature <= 0:  # an input that is always zero: every code is as good as another
                    continue
                step, zero = steps[column // length], zeros[column // length]
                lowest = target[column] + error[column] - local[index] / curvature
                codes[column] = torch.round(lowest / step).add_(zero).clamp_(0, scheme.levels - 1)
                change = (codes[column] - zero) * step - target[column] - error[column]
                error[column] += change
                local[index:] += torch.outer(block[index:, index], change)
            slope += gram[:, own] @ (error[own] - before)
    return Rounded(codes.T.contiguous(), rounded.grid)
