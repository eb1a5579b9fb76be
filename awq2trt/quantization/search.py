"""The AWQ search for input scales that minimise each group's output error (AWQ paper, section 3.2).

Equation 4 of the paper asks for s minimising || Q(W diag(s)) diag(s)^-1 X - W X ||, equation 5 restricts it to
s = s_x^alpha with alpha on a grid. With G = X^T X / tokens, kept once per input, that error is exactly
tr(D G D^T) for the weight error D, so activations are seen once and no batch of them is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import torch
from torch import Tensor

from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.models.families import ScaleGroup
from awq2trt.quantization.products import narrowed, output_error
from awq2trt.quantization.rounding import fake_quantize, from_groups, to_groups
from awq2trt.scheme import QuantScheme

ALPHA_GRID: Final = tuple(i / 20 for i in range(20))
"""alpha in [0, 1), 20 points (paper, section 3.2); alpha = 0 is plain rounding, so no group gets worse than it."""

FIRST_ALPHAS: Final = tuple(i * 0.15 for i in range(7))
ALPHA_HALVINGS: Final = 3
"""The adaptive grid: every 0.15, then half a step to both sides of the best, three times: 13 tries, after which
neighbours are 0.019 apart, where the paper's 20 are 0.05 apart."""

LEAST_ROWS: Final = 256

_SMALLEST_WEIGHT: Final = 1e-4
"""Of s_w, which is 0 only where a whole column of weights is."""


@dataclass(frozen=True)
class ScaleOptions:
    """How alpha is searched.

    Attributes:
        adaptive: From coarse to fine; else over the paper's grid.
        betas: How much the weights enter: s = s_x^alpha / s_w^(beta (1 - alpha)), every beta with an alpha of its own.
            The paper has s_x alone, beta = 0; llm-awq's other form, `duo_scaling`, is beta = 1.
        weights: So many stand for all, if there are more: those of evenly spaced rows, at least `LEAST_ROWS`. A third
            of the gate and up rows of SmolLM2-135M, half a million weights, finds an alpha whose error over all rows
            is 0.0 to 0.3 % larger, in a third of the time. None for all weights.
    """

    adaptive: bool = True
    betas: tuple[float, ...] = (0.0,)
    weights: int | None = 1 << 19

    def rows(self, length: int, width: int) -> int:
        """How many rows of a weight [length, width] stand for all, at most."""
        return length if self.weights is None else min(length, max(LEAST_ROWS, self.weights // width))


@dataclass(frozen=True)
class ScaleResult:
    """Outcome of the scale search for one group.

    Attributes:
        scales: s, fp32 [K] of the balance layers.
        alpha: The exponent chosen.
        beta: How much the weights enter.
        loss: Output error with them, summed over the rows that were looked at.
    """

    scales: Tensor
    alpha: float
    beta: float
    loss: float


def normalised_scales(magnitude: Tensor, alpha: float, beta: float = 0.0, *, weights: Tensor | None = None) -> Tensor:
    """s = s_x^alpha / s_w^(beta (1 - alpha)), over sqrt(max * min); channels that are always zero are left at 1.

    The norm keeps s around 1, so neither the folded norm nor the scaled weights leave fp16's range.

    Args:
        magnitude: s_x >= 0, fp32 [K].
        alpha: Exponent of s_x.
        beta: Share of the rest that s_w gets.
        weights: s_w, fp32 [K]; needed unless beta is 0.
    """
    alive = magnitude > 0
    if not alive.any():
        return torch.ones_like(magnitude)
    powered = magnitude[alive].pow(alpha)
    if beta and weights is not None:
        powered /= weights[alive].clamp(min=_SMALLEST_WEIGHT).pow(beta * (1 - alpha))
    scales = torch.ones_like(magnitude)
    scales[alive] = powered / (powered.max().sqrt() * powered.min().sqrt())
    return scales


def weight_magnitude(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """s_w: mean over rows of |w| over the largest in its rounding group, fp32 [N, K] -> [K] (llm-awq's `w_max`)."""
    grouped = to_groups(weight, scheme).abs()
    relative = grouped / grouped.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    return from_groups(relative, weight.shape[1]).mean(dim=0)


def smooth_magnitude(magnitude: Tensor, group: ScaleGroup, head_dim: int) -> Tensor:
    """s_x by output channel of the smooth layer: the mean over query heads that read the same one.

    Args:
        magnitude: s_x of the balance layers' input, fp32 [K].
        group: Says how many query heads are tied.
        head_dim: Channels of a head.

    Returns:
        fp32 [K / heads_tied].
    """
    if group.heads_tied == 1:
        return magnitude
    return magnitude.view(-1, group.heads_tied, head_dim).mean(dim=1).reshape(-1)


def spread_over_heads(scales: Tensor, group: ScaleGroup, head_dim: int) -> Tensor:
    """Output scales of the smooth layer [K / heads_tied] -> input scales of the balance layers [K]."""
    if group.heads_tied == 1:
        return scales
    per_head = scales.view(-1, 1, head_dim)
    return per_head.expand(-1, group.heads_tied, -1).reshape(-1)


def search_scales(
    weights: Sequence[Tensor],
    gram: Tensor,
    scales_of: Callable[[float, float], Tensor],
    scheme: QuantScheme,
    options: ScaleOptions,
    *,
    ranks: Ranks = ALONE,
) -> ScaleResult:
    """Grid search for the input scales of linears that share an input (paper, equations 3 to 5).

    Args:
        weights: Balance layers, fp32 [N_i, K].
        gram: E[x x^T] of the input, finite, fp32 [K, K].
        scales_of: alpha, beta -> s of the input channels, fp32 [K]; 1 everywhere where both are 0.
        scheme: How the weights will be rounded.
        options: What to try.
        ranks: Among which the rows are shared.
    """
    weight, gram = torch.cat(list(weights)), narrowed(gram)
    weight = weight[:: -(-len(weight) // options.rows(*weight.shape))]
    weight = weight[ranks.share(len(weight))]

    @cache
    def result(alpha: float, beta: float) -> ScaleResult:
        scales = scales_of(alpha, beta)
        difference = fake_quantize(weight * scales, scheme).div_(scales).sub_(weight)
        return ScaleResult(scales, alpha, beta, ranks.total(output_error(difference, gram)))

    return min((_best_alpha(partial(result, beta=beta), options) for beta in options.betas), key=_loss)


def _best_alpha(result: Callable[[float], ScaleResult], options: ScaleOptions) -> ScaleResult:
    best = min(map(result, FIRST_ALPHAS if options.adaptive else ALPHA_GRID), key=_loss)
    step = FIRST_ALPHAS[1]
    for _ in range(ALPHA_HALVINGS if options.adaptive else 0):
        step /= 2
        best = min((best, result(max(best.alpha - step, 0.0)), result(best.alpha + step)), key=_loss)
    return best


def _loss(result: ScaleResult) -> float:
    return result.loss
