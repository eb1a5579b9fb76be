"""The AWQ search: input scales and weight clips that minimise each linear's output error (AWQ paper, section 3.2).

Equation 4 of the paper asks for s minimising || Q(W diag(s)) diag(s)^-1 X - W X ||, equation 5 restricts it to
s = s_x^alpha with alpha on a grid. With G = X^T X / tokens, kept once per input, that error is exactly
tr(D G D^T) for the weight error D, so activations are seen once and no batch of them is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.families import ScaleGroup
from awq2trt.quantize.rounding import RangeShares, fake_quantize, group_grid, round_to_codes, to_groups
from awq2trt.scheme import QuantScheme

ALPHA_GRID: Final = tuple(i / 20 for i in range(20))
"""alpha in [0, 1), 20 points (paper, section 3.2); alpha = 0 is plain rounding, so no group gets worse than it."""

CLIP_GRID: Final = tuple(1 - 0.07 * i for i in range(7))
"""Shares 1 down to 0.58 of each end of a range, low and high searched together.

llm-awq limits |w| by one factor from 1 to 0.55. Two ends searched apart cost 49 tries instead of 10 and pay:
perplexity of SmolLM2-135M at INT4 g128 is 35.8 with one limit on |w|, 36.2 with both ends shrunk in proportion, 34.7
with two. Text and windows are those of the WikiText-2 row of `tools/study_smollm2.py`; the first two came of other
candidates here.
"""


@dataclass
class InputStatistics:
    """What calibration keeps of one linear input X [tokens, K].

    Attributes:
        gram_sum: Sum of x x^T over tokens, fp32 [K, K].
        magnitude_sum: Sum of |x| over tokens, fp32 [K].
        tokens: How many were seen.
    """

    gram_sum: Tensor
    magnitude_sum: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, channels: int) -> InputStatistics:
        """Statistics of no token."""
        return cls(torch.zeros(channels, channels), torch.zeros(channels))

    def add_(self, x: Tensor) -> None:
        """Adds activations fp32 [tokens, K]."""
        self.gram_sum.addmm_(x.T, x)
        self.magnitude_sum += x.abs().sum(dim=0)
        self.tokens += x.shape[0]

    def gram(self) -> Tensor:
        """E[x x^T], fp32 [K, K]."""
        return self.gram_sum / self.tokens

    def magnitude(self) -> Tensor:
        """s_x: mean |x| of every channel, fp32 [K] (paper, equation 5)."""
        return self.magnitude_sum / self.tokens


@dataclass(frozen=True)
class ScaleResult:
    """Outcome of the scale search for one group.

    Attributes:
        scales: s, fp32 [K] of the balance layers.
        alpha: The exponent chosen.
        loss_rounded: Output error of plain rounding (alpha = 0), summed over the balance layers.
        loss: The same with `scales`.
    """

    scales: Tensor
    alpha: float
    loss_rounded: float
    loss: float


@dataclass(frozen=True)
class ClipResult:
    """Outcome of the clip search for one linear.

    Attributes:
        shares: What is kept of each group's range, fp32 [N, groups, 1].
        clipped_share: Share of groups whose range was cut at all.
    """

    shares: RangeShares
    clipped_share: float


def normalised_scales(magnitude: Tensor, alpha: float) -> Tensor:
    """s = s_x^alpha / sqrt(max * min), channels that are always zero left at 1.

    The norm keeps s around 1, so neither the folded norm nor the scaled weights leave fp16's range.

    Args:
        magnitude: s_x >= 0, fp32 [K].
        alpha: Exponent.
    """
    alive = magnitude > 0
    if not alive.any():
        return torch.ones_like(magnitude)
    powered = magnitude[alive].pow(alpha)
    scales = torch.ones_like(magnitude)
    scales[alive] = powered / (powered.max().sqrt() * powered.min().sqrt())
    return scales


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


def output_error(difference: Tensor, gram: Tensor) -> float:
    """E || D x ||^2 = tr(D G D^T) for a weight error D [N, K]."""
    return float(torch.einsum("nk,nk->", difference @ gram, difference))


def search_scales(
    weights: Sequence[Tensor],
    gram: Tensor,
    magnitude: Tensor,
    scheme: QuantScheme,
    *,
    spread: Callable[[Tensor], Tensor] = lambda scales: scales,
    where: str = "",
) -> ScaleResult:
    """Grid search for the input scales of linears that share an input (paper, equations 3 to 5).

    Args:
        weights: Balance layers, fp32 [N_i, K].
        gram: E[x x^T] of the input, fp32 [K, K].
        magnitude: s_x by output channel of the smooth layer, fp32; [K] unless heads are tied.
        scheme: How the weights will be rounded.
        spread: Turns scales of the smooth layer's output channels into those of the input channels [K].
        where: Name of the group, for errors.

    Raises:
        CalibrationError: The input had NaN or infinite values.
    """
    if not (torch.isfinite(gram).all() and torch.isfinite(magnitude).all()):
        raise CalibrationError(
            "calibration gave NaN or infinite activations.",
            where=where,
            fix="check the checkpoint's weights; the model cannot run on this text.",
        )
    weight = torch.cat(list(weights))
    best: ScaleResult | None = None
    rounded = 0.0
    for alpha in ALPHA_GRID:
        scales = spread(normalised_scales(magnitude, alpha))
        difference = fake_quantize(weight * scales, scheme).div_(scales).sub_(weight)
        loss = output_error(difference, gram)
        if alpha == 0:
            rounded = loss
        if best is None or loss < best.loss:
            best = ScaleResult(scales, alpha, rounded, loss)
    assert best is not None  # the grid is not empty
    return best


def search_clips(weight: Tensor, gram: Tensor, scheme: QuantScheme) -> ClipResult:
    """Range of every group that minimises the group's own output error.

    Only the diagonal blocks of the Gram matrix enter: groups are clipped independently.

    Args:
        weight: fp32 [N, K], scaled already.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: How it will be rounded.
    """
    grouped = to_groups(weight, scheme)  # [N, groups, G]
    blocks = _diagonal_blocks(gram, scheme)  # [groups, G, G]
    best_loss = torch.full((*grouped.shape[:2], 1), torch.inf)
    best_low, best_high = torch.ones_like(best_loss), torch.ones_like(best_loss)
    for low, high in _clip_candidates(scheme):
        grid = group_grid(grouped, scheme, RangeShares(low, high))
        difference = round_to_codes(grouped, grid, scheme).sub_(grid.zeros).mul_(grid.scales).sub_(grouped)
        by_group = difference.transpose(0, 1)  # [groups, N, G]
        loss = torch.bmm(by_group, blocks).mul_(by_group).sum(dim=-1).T.unsqueeze(-1)  # [N, groups, 1]
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_low, best_high = best_low.masked_fill(better, low), best_high.masked_fill(better, high)
    clipped = (best_low < 1) | (best_high < 1)
    return ClipResult(RangeShares(best_low, best_high), float(clipped.float().mean()))


def _clip_candidates(scheme: QuantScheme) -> Iterator[tuple[float, float]]:
    """Shares (low, high) to try, the whole range first; a symmetric grid has one end only."""
    if scheme.zero_point:
        return product(CLIP_GRID, CLIP_GRID)
    return zip(CLIP_GRID, CLIP_GRID, strict=True)


def _diagonal_blocks(gram: Tensor, scheme: QuantScheme) -> Tensor:
    """[K, K] -> [groups, G, G], a short last group padded with zeros."""
    length = scheme.group_of(gram.shape[0])
    blocks = torch.zeros(scheme.groups(gram.shape[0]), length, length)
    for index, start in enumerate(range(0, gram.shape[0], length)):
        piece = gram[start : start + length, start : start + length]
        blocks[index, : piece.shape[0], : piece.shape[1]] = piece
    return blocks
