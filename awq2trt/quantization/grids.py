"""The search for rounding grids: step size and zero point of every group, by the output error of the linear.

In: a weight [N, K], scaled already, and E[x x^T] of its scaled input. Out: a `GroupGrid`. This is AWQ's weight
clipping (the paper's released code: shrink a group's range where rounding gains more than cutting off loses), taken
further: both ends of a range are cut apart, the step is fitted to the codes, and a second look at every group
takes into account what the other groups of its row get wrong.

With D the weight error of a row and G = E[x x^T], the row's output error is D G D^T. The part that group g can
change, given the others, is D_g G_gg D_g^T + 2 D_g p with p = (G D)_g - G_gg D_g, the pull of the other groups. The
first look has p = 0. Rows are independent, so they are searched in chunks that stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

import torch
from torch import Tensor

from awq2trt.quantization.rounding import GroupGrid, as_step, range_grid
from awq2trt.scheme import QuantScheme

LIMITS: Final = tuple(1 - 0.05 * i for i in range(10))
"""Limits on |w| as shares of the largest: llm-awq's (`auto_clip_layer`, n_grid 20, max_shrink 0.5)."""

SHARES: Final = (1.0, 0.79, 0.58)
"""Shares of each end of a range that are tried first; those around the best, `SHARE_STEP` away, come next."""

SHARE_STEP: Final = 0.07

STEP_FACTORS: Final = (0.93, 0.96, 1.0, 1.04, 1.07)
"""Second look: step sizes around the one found, each with the zero point moved by -1, 0 and 1."""

ROWS: Final = 512
"""Rows that a CPU searches at once: 512 x 128 fp32 are 256 KiB, twice that stays in a core's second-level cache."""


@dataclass(frozen=True)
class GridOptions:
    """How grids are searched.

    Attributes:
        ends_apart: Cut the two ends of a range independently, and fit steps to codes; else limit |w| as llm-awq does.
        passes: Further looks at every group, with the other groups' errors in mind.
    """

    ends_apart: bool = True
    passes: int = 2


def search_grids(weight: Tensor, gram: Tensor, scheme: QuantScheme, options: GridOptions) -> GroupGrid:
    """The grid of every group that minimises the linear's output error.

    Args:
        weight: fp32 [N, K], scaled already.
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: How it will be rounded.
        options: How far to search.
    """
    # A GPU takes all: there the number of calls sets the time.
    at_once = ROWS if weight.is_cpu else len(weight)
    found = [_search_rows(rows, gram, scheme, options) for rows in weight.split(at_once)]
    return GroupGrid(torch.cat([grid.scales for grid in found]), torch.cat([grid.zeros for grid in found]))


def cut_share(weight: Tensor, grid: GroupGrid, scheme: QuantScheme) -> float:
    """Share of groups whose grid is narrower than their range."""
    cut = []
    for group, columns in enumerate(weight.split(scheme.group_of(weight.shape[1]), dim=1)):
        whole = range_grid(*_range(columns), scheme)
        cut.append(grid.scales[:, group] < whole.scales)
    return float(torch.cat(cut).float().mean())


@dataclass
class _Group:
    """One group of some rows: the best grid so far, and its error. All [n, 1] unless said.

    Attributes:
        low: Lower end of the group's range, at most 0.
        high: Upper end, at least 0.
        scales: Step sizes.
        zeros: Zero points.
        loss: Output error of the group, pull included.
    """

    _weight: Tensor  # [n, G]
    _block: Tensor  # G_gg
    _scheme: QuantScheme
    _buffer: Tensor  # [n, G]
    low: Tensor
    high: Tensor
    scales: Tensor
    zeros: Tensor
    loss: Tensor
    _pull: Tensor | None = None  # 2 p, [n, G]

    @classmethod
    def unsearched(cls, weight: Tensor, block: Tensor, scheme: QuantScheme) -> _Group:
        """Before the first look, for weights [n, G] and their part G_gg of E[x x^T]."""
        weight = weight.contiguous()
        low, high = _range(weight)
        ones, zeros, loss = torch.ones_like(low), torch.zeros_like(low), torch.full_like(low, torch.inf)
        return cls(weight, block, scheme, torch.empty_like(weight), low, high, ones, zeros, loss)

    def look_again_(self, error_gradient: Tensor) -> None:
        """Starts a further look, from the grid found: `error_gradient` is (G D)_g of the whole row, [n, G]."""
        self._pull = 2 * (error_gradient - self.difference() @ self._block)
        self.loss = torch.full_like(self.loss, torch.inf)
        self.try_(GroupGrid(self.scales, self.zeros))

    def try_(self, grid: GroupGrid) -> Tensor:
        """Keeps a grid where it is better; returns where, bool [n, 1]."""
        difference = self._round(grid).mul_(grid.scales).sub_(self._weight)
        slope = difference @ self._block
        if self._pull is not None:
            slope += self._pull
        loss = slope.mul_(difference).sum(dim=-1, keepdim=True)
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.scales = torch.where(better, grid.scales, self.scales)
        self.zeros = torch.where(better, grid.zeros, self.zeros)
        return better

    def fit_step_(self) -> None:
        """Tries the step size that suits the codes best: the loss is quadratic in it."""
        levels = self._round(GroupGrid(self.scales, self.zeros))
        curved = levels @ self._block
        curvature = (curved * levels).sum(dim=-1, keepdim=True)
        target = (curved * self._weight).sum(dim=-1, keepdim=True)
        if self._pull is not None:
            target -= (self._pull * levels).sum(dim=-1, keepdim=True) / 2
        fitted = as_step(torch.where(curvature > 0, target / curvature, self.scales), self._scheme)
        sane = (fitted > 0.7 * self.scales) & (fitted < 1.4 * self.scales)
        self.try_(GroupGrid(torch.where(sane, fitted, self.scales), self.zeros))

    def difference(self) -> Tensor:
        """Rounded weight minus weight on the best grid, [n, G]."""
        return self._round(GroupGrid(self.scales, self.zeros)).mul(self.scales).sub_(self._weight)

    def _round(self, grid: GroupGrid) -> Tensor:
        """code - zero of every weight, in a buffer that the next call overwrites."""
        torch.div(self._weight, grid.scales, out=self._buffer)
        return self._buffer.round_().clamp_(-grid.zeros, self._scheme.levels - 1 - grid.zeros)


def _search_rows(weight: Tensor, gram: Tensor, scheme: QuantScheme, options: GridOptions) -> GroupGrid:
    columns = [slice(start, start + scheme.group_of(weight.shape[1])) for start in _starts(weight, scheme)]
    groups = [_Group.unsearched(weight[:, own], gram[own, own].contiguous(), scheme) for own in columns]
    for group in groups:
        _search_range_(group, scheme, options)
    if options.passes:
        gradient = torch.cat([group.difference() for group in groups], dim=1) @ gram
    for _ in range(options.passes):
        for group, own in zip(groups, columns, strict=True):
            before = group.difference()
            group.look_again_(gradient[:, own])
            _search_around_(group, scheme)
            gradient += (group.difference() - before) @ gram[own]
    return GroupGrid(
        torch.stack([group.scales for group in groups], dim=1), torch.stack([group.zeros for group in groups], dim=1)
    )


def _starts(weight: Tensor, scheme: QuantScheme) -> range:
    return range(0, weight.shape[1], scheme.group_of(weight.shape[1]))


def _search_range_(group: _Group, scheme: QuantScheme, options: GridOptions) -> None:
    """First look: the whole range, then less of it."""
    if not options.ends_apart:
        limit = torch.maximum(-group.low, group.high)
        for share in LIMITS:
            low, high = torch.maximum(group.low, -share * limit), torch.minimum(group.high, share * limit)
            group.try_(range_grid(low, high, scheme))
        return
    kept_low, kept_high = torch.ones_like(group.low), torch.ones_like(group.high)
    for low_share, high_share in _share_pairs(SHARES, scheme):
        better = group.try_(range_grid(low_share * group.low, high_share * group.high, scheme))
        kept_low, kept_high = kept_low.masked_fill(better, low_share), kept_high.masked_fill(better, high_share)
    for low_step, high_step in _share_pairs((-SHARE_STEP, 0.0, SHARE_STEP), scheme):
        low, high = (kept_low + low_step).clamp_(max=1) * group.low, (kept_high + high_step).clamp_(max=1) * group.high
        group.try_(range_grid(low, high, scheme))
    group.fit_step_()


def _share_pairs(values: tuple[float, ...], scheme: QuantScheme) -> Iterator[tuple[float, float]]:
    """Values for both ends; a symmetric grid has one end only."""
    return product(values, values) if scheme.zero_point else zip(values, values, strict=True)


def _search_around_(group: _Group, scheme: QuantScheme) -> None:
    """A further look: grids near the one found."""
    scales, zeros = group.scales, group.zeros
    for factor, shift in product(STEP_FACTORS, (-1, 0, 1) if scheme.zero_point else (0,)):
        group.try_(GroupGrid(as_step(factor * scales, scheme), (zeros + shift).clamp_(0, scheme.levels - 1)))
    group.fit_step_()


def _range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each row, 0 included, [n, 1]."""
    return weight.amin(dim=-1, keepdim=True).clamp_(max=0), weight.amax(dim=-1, keepdim=True).clamp_(min=0)
