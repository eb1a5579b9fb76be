"""The AWQ search: finds the input scales that minimise each group's output error (AWQ paper, section 3.2).

Equation 4 of the paper asks for the s that minimises || Q(W diag(s)) diag(s)^-1 X - W X ||, and equation 5 restricts it
to s = s_x^alpha with alpha on a grid. With G = X^T X / tokens, computed once per input, that error is exactly tr(D G
D^T) for the weight error D, so activations are needed only once and never stored.
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
"""alpha in [0, 1), 20 points (paper, section 3.2); alpha = 0 is plain rounding, so no group becomes worse than that."""

FIRST_ALPHAS: Final = tuple(i * 0.15 for i in range(7))
ALPHA_HALVINGS: Final = 3
"""The adaptive grid: first every 0.15, then three times half a step to both sides of the best. These 13 tries end with
a distance of 0.019 between neighbours; the paper's 20 points are 0.05 apart."""

ROUGH_SHARE: Final = 4
ROUGH_ROWS: Final = 128
"""For the first alphas, one of so many rows stands for all, as long as no fewer rows than this are left. Later alphas
reach nearly as far as the next of the first, so it matters little which of two that are about as good is refined."""

LEAST_ROWS: Final = 256

_SMALLEST_WEIGHT: Final = 1e-4
"""Lower limit of s_w, which is 0 only if a complete column of weights is 0."""


@dataclass(frozen=True)
class ScaleOptions:
    """How alpha is searched.

    Attributes:
        adaptive: Whether to search from coarse to fine, rather than over the paper's grid.
        betas: How much the weights enter: s = s_x^alpha / s_w^(beta (1 - alpha)), where every beta has an alpha of its
            own. The paper uses only s_x, beta = 0; llm-awq's other form, `duo_scaling`, is beta = 1.
        weights: If there are more weights, this many stand for all: those of evenly spaced rows, at least `LEAST_ROWS`.
            With half as many, the mean perplexity of SmolLM2-135M over three draws of text was 34.29 instead of 34.14.
            None for all weights.
    """

    adaptive: bool = True
    betas: tuple[float, ...] = (0.0,)
    weights: int | None = 1 << 20

    def rows(self, length: int, width: int) -> int:
        """Number of rows that stand for all rows of a weight [length, width], at most."""
        return length if self.weights is None else min(length, max(LEAST_ROWS, self.weights // width))


@dataclass(frozen=True)
class ScaleResult:
    """The result of the scale search for one group.

    Attributes:
        scales: s, fp32 [K] of the balance layers.
        alpha: The chosen exponent.
        beta: How much the weights enter.
        loss: Output error with these scales, summed over the rows that were considered.
    """

    scales: Tensor
    alpha: float
    beta: float
    loss: float


def normalised_scales(magnitude: Tensor, alpha: float, beta: float = 0.0, *, weights: Tensor | None = None) -> Tensor:
    """s = s_x^alpha / s_w^(beta (1 - alpha)), divided by sqrt(max * min); 1 for channels that are always zero.

    The division keeps s around 1, so that neither the folded norm nor the scaled weights leave fp16's range.

    Args:
        magnitude: s_x >= 0, fp32 [K].
        alpha: Exponent of s_x.
        beta: How much s_w enters.
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
    """s_w: the mean over rows of |w| divided by the largest in its group, fp32 [N, K] -> [K] (llm-awq's `w_max`)."""
    grouped = to_groups(weight, scheme).abs()
    relative = grouped / grouped.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    return from_groups(relative, weight.shape[1]).mean(dim=0)


def smooth_magnitude(magnitude: Tensor, group: ScaleGroup, head_dim: int) -> Tensor:
    """s_x by output channel of the smooth layer: the mean over the query heads that read the same one.

    Args:
        magnitude: s_x of the balance layers' input, fp32 [K].
        group: The group, which knows how many query heads are tied.
        head_dim: Channels of a head.

    Returns:
        fp32 [K / heads_tied].
    """
    if group.heads_tied == 1:
        return magnitude
    return magnitude.view(-1, group.heads_tied, head_dim).mean(dim=1).reshape(-1)


def spread_over_heads(scales: Tensor, group: ScaleGroup, head_dim: int) -> Tensor:
    """Repeats output scales of the smooth layer [K / heads_tied] as input scales of the balance layers [K]."""
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
    """Searches the input scales of linears that share an input, over a grid (paper, equations 3 to 5).

    Args:
        weights: Weights of the balance layers, fp32 [N_i, K].
        gram: E[x x^T] of the input, finite, fp32 [K, K].
        scales_of: Returns s of the input channels, fp32 [K], for alpha and beta; all 1 if both are 0.
        scheme: How the weights will be rounded.
        options: What to try.
        ranks: The ranks that share the rows.
    """
    weight, gram = torch.cat(list(weights)), narrowed(gram)
    weight = weight[:: -(-len(weight) // options.rows(*weight.shape))]
    some = weight[:: max(1, min(ROUGH_SHARE, len(weight) // ROUGH_ROWS))]
    weight, some = weight[ranks.share(len(weight))], some[ranks.share(len(some))]

    @cache
    def result(alpha: float, beta: float, *, rough: bool = False) -> ScaleResult:
        scales, rows = scales_of(alpha, beta), some if rough else weight
        difference = fake_quantize(rows * scales, scheme).div_(scales).sub_(rows)
        return ScaleResult(scales, alpha, beta, ranks.total(output_error(difference, gram)))

    def best(beta: float) -> ScaleResult:
        exact = partial(result, beta=beta)
        return (
            _refined(exact, partial(exact, rough=True)) if options.adaptive else min(map(exact, ALPHA_GRID), key=_loss)
        )

    return min(map(best, options.betas), key=_loss)


def _refined(result: Callable[[float], ScaleResult], rough: Callable[[float], ScaleResult]) -> ScaleResult:
    """The best alpha found from coarse to fine, by losses over some rows at first and then over all."""
    best, step = result(min(map(rough, FIRST_ALPHAS), key=_loss).alpha), FIRST_ALPHAS[1]
    for _ in range(ALPHA_HALVINGS):
        step /= 2
        best = min((best, result(max(best.alpha - step, 0.0)), result(best.alpha + step)), key=_loss)
    return best


def _loss(result: ScaleResult) -> float:
    return result.loss
