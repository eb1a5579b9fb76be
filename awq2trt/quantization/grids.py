"""Searches rounding grids: step size and zero point of every group, by the output error of the linear.

In: a scaled weight [N, K], and E[x x^T] of its scaled input. Out: a `GroupGrid`. This is AWQ's weight clipping (the
paper's released code: narrow a group's range if rounding gains more than clipping loses) with three additions: the ends
of a range are narrowed independently, the step is fitted to the codes, and a second look at every group takes into
account the errors of the other groups in its row.

With D the weight error of a row and G = E[x x^T], the row's output error is D G D^T. The part that group g can
change, given the others, is D_g G_gg D_g^T + 2 D_g p with p = sum over h != g of D_h G_hg, the pull of the other
groups. The first look has p = 0. Rows are independent, so they are searched in chunks that stay in a core's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as product_of
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.machine.cores import even_parts, side_by_side
from awq2trt.quantization.panels import has_kernels
from awq2trt.quantization.products import narrowed, product
from awq2trt.quantization.rounding import GroupGrid, as_step, range_grid
from awq2trt.scheme import QuantScheme

if TYPE_CHECKING:
    from awq2trt.quantization.cpu_grids import Rows

LIMITS: Final = tuple(1 - 0.05 * i for i in range(10))
"""Limits on |w| as shares of the largest: llm-awq's (`auto_clip_layer`, n_grid 20, max_shrink 0.5)."""

SHARES: Final = (1.0, 0.79, 0.58)
"""Shares of each end of a range that are tried first; then those next to the best, at a distance of `SHARE_STEP`."""

SHARE_STEP: Final = 0.07

STEP_FACTORS: Final = (0.93, 0.96, 1.0, 1.04, 1.07)
"""In a further look: step sizes around the one found, each with the zero point changed by -1, 0 and 1."""

ROWS: Final = 768
"""Rows that one of a CPU's cores searches at once. A weight [1536, 576] takes 111 ms of a core, and 139 with 512 rows,
since there are more calls; with 1,024 it takes 115."""

LONGEST_KERNEL_GROUP: Final = 128
"""Columns of which a kernel's program holds the errors of its rows, and their part of E[x x^T]."""

GPU_ROWS: Final = 1 << 14
"""Rows that a GPU searches at once: with 15 candidates 16,384 x 15 x 128 fp32 are 126 MB, of which four are alive."""


@dataclass(frozen=True)
class GridOptions:
    """How grids are searched.

    Attributes:
        ends_apart: Whether to narrow the two ends of a range independently, and to fit steps to codes; otherwise |w| is
            limited, as in llm-awq.
        passes: Number of further looks at every group, which take the other groups' errors into account.
    """

    ends_apart: bool = True
    passes: int = 2


def search_grids(weight: Tensor, gram: Tensor, scheme: QuantScheme, options: GridOptions) -> GroupGrid:
    """Finds the grid of every group that minimises the linear's output error.

    Args:
        weight: The scaled weight, fp32 [N, K].
        gram: E[x x^T] of its scaled input, fp32 [K, K].
        scheme: How the weight will be rounded.
        options: How far to search.
    """
    gram, tried = narrowed(gram), Tried.by(scheme)
    if options.ends_apart and _fits_kernels(weight, gram, scheme):
        from awq2trt.quantization.gpu_grids import search_rows

        return search_rows(weight, gram, scheme, options.passes, tried)
    parts = [weight[own] for own in even_parts(len(weight), ROWS)] if few_at_once(weight) else weight.split(GPU_ROWS)
    found = side_by_side(lambda rows: _search_rows(rows, gram, scheme, options, tried), parts)
    return GroupGrid(torch.cat([grid.scales for grid in found]), torch.cat([grid.zeros for grid in found]))


def few_at_once(weight: Tensor) -> bool:
    """Whether little is worked on at a time, to stay in a CPU's cache; on a GPU the number of calls sets the time."""
    return weight.is_cpu


def _fits_kernels(weight: Tensor, gram: Tensor, scheme: QuantScheme) -> bool:
    """Whether `awq2trt.quantization.gpu_grids` takes it: bf16, and groups that a program holds."""
    short = scheme.group_of(weight.shape[1]) <= LONGEST_KERNEL_GROUP
    return has_kernels(weight) and gram.dtype == torch.bfloat16 and short


def cut_share(weight: Tensor, grid: GroupGrid, scheme: QuantScheme) -> float:
    """The share of groups whose grid is narrower than their range."""
    cut = []
    for group, columns in enumerate(weight.split(scheme.group_of(weight.shape[1]), dim=1)):
        whole = range_grid(*_range(columns), scheme)
        cut.append(grid.scales[:, group] < whole.scales)
    return float(torch.cat(cut).float().mean())


@dataclass(frozen=True)
class Tried:
    """What every group is tried with, fp32: made once, since a GPU waits for every tensor that Python gives it.

    Attributes:
        limits: Shares of the largest |w|, [limits].
        shares: Shares of both ends, [pairs] each.
        share_steps: What is added to the best of them, [pairs] each.
        factors: Factors of the step sizes, [neighbours].
        shifts: Shifts of the zero points that go with them, [neighbours].
    """

    limits: Tensor
    shares: tuple[Tensor, Tensor]
    share_steps: tuple[Tensor, Tensor]
    factors: Tensor
    shifts: Tensor

    @classmethod
    def by(cls, scheme: QuantScheme) -> Tried:
        """What suits a scheme: a symmetric grid has one end only, and no zero point to move."""
        neighbours = product_of(STEP_FACTORS, (-1.0, 0.0, 1.0) if scheme.zero_point else (0.0,))
        factors, shifts = torch.tensor([*zip(*neighbours, strict=True)])
        shares, share_steps = _pairs(SHARES, scheme), _pairs((-SHARE_STEP, 0.0, SHARE_STEP), scheme)
        return cls(torch.tensor(LIMITS), shares, share_steps, factors, shifts)


def _pairs(values: tuple[float, ...], scheme: QuantScheme) -> tuple[Tensor, Tensor]:
    """Values for both ends, fp32 [pairs] each; with a symmetric grid they are equal."""
    pairs = product_of(values, values) if scheme.zero_point else zip(values, values, strict=True)
    low, high = torch.tensor([*zip(*pairs, strict=True)])
    return low, high


@dataclass
class _Group:
    """One group of some rows: the best grid so far, and its error. All tensors are [n, 1] unless stated otherwise.

    Attributes:
        low: Lower end of the group's range, at most 0.
        high: Upper end, at least 0.
        scales: Step sizes.
        zeros: Zero points.
        loss: Output error of the group, including the pull.
    """

    _weight: Tensor  # [n, 1, G]
    _block: Tensor  # G_gg, of the narrow type
    _scheme: QuantScheme
    _buffers: (
        tuple[Tensor, Tensor] | tuple[None, None]
    )  # [n, 1, G] each, overwritten by every rounding; None for new ones
    low: Tensor
    high: Tensor
    scales: Tensor
    zeros: Tensor
    loss: Tensor
    _pull: Tensor | None = None  # 2 p, [n, 1, G]

    @classmethod
    def unsearched(cls, weight: Tensor, block: Tensor, scheme: QuantScheme) -> _Group:
        """Makes a group before the first look, for weights [n, G] and their part G_gg of E[x x^T]."""
        low, high = _range(weight)
        ones, zeros, loss = torch.ones_like(low), torch.zeros_like(low), torch.full_like(low, torch.inf)
        weight = weight.unsqueeze(1).contiguous()
        buffers = (torch.empty_like(weight), torch.empty_like(weight)) if few_at_once(weight) else (None, None)
        return cls(weight, block.contiguous(), scheme, buffers, low, high, ones, zeros, loss)

    def look_again_(self, pull: Tensor) -> None:
        """Starts a further look, in which the grid found so far counts as untried; takes p, [n, G]."""
        self._pull = 2 * pull.unsqueeze(1)
        self.loss = torch.full_like(self.loss, torch.inf)

    def try_(self, grids: GroupGrid) -> Tensor:
        """Keeps the best of C grids, [n, C], if it is better than the current one; returns its index, [n, 1]."""
        return self._keep_best_(grids, self._losses_on(grids))

    def try_around_(self, tried: Tried) -> None:
        """Keeps the best of the current grid and those near it, if it is better than the current one."""
        zeros = (self.zeros + tried.shifts).clamp_(0, self._scheme.levels - 1)
        grids = GroupGrid(as_step(tried.factors * self.scales, self._scheme), zeros)
        if few_at_once(self._weight) and len(tried.factors) > len(STEP_FACTORS):
            from awq2trt.quantization.cpu_grids import losses_around

            shifts = len(tried.factors) // len(STEP_FACTORS)  # the zero points of a step size follow each other
            losses = losses_around(self._rows(), grids.scales[:, ::shifts], zeros[:, :shifts]).flatten(1)
        else:
            losses = self._losses_on(grids)
        self._keep_best_(grids, losses)

    def _keep_best_(self, grids: GroupGrid, losses: Tensor) -> Tensor:
        loss, best = losses.nan_to_num_(nan=torch.inf, posinf=torch.inf).min(dim=1, keepdim=True)
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.scales = torch.where(better, grids.scales.gather(1, best), self.scales)
        self.zeros = torch.where(better, grids.zeros.gather(1, best), self.zeros)
        return best

    def fit_step_(self) -> None:
        """Tries the step size that fits the codes best; the loss is a quadratic function of it."""
        fitted = as_step(self._fitted_step(), self._scheme)
        sane = (fitted > 0.7 * self.scales) & (fitted < 1.4 * self.scales)
        self.try_(GroupGrid(torch.where(sane, fitted, self.scales), self.zeros))

    def difference(self) -> Tensor:
        """Rounded weight minus weight on the best grid, [n, G]."""
        levels, _ = self._round(GroupGrid(self.scales, self.zeros))
        return levels.mul(self.scales.unsqueeze(-1)).sub_(self._weight).squeeze(1)

    def _fitted_step(self) -> Tensor:
        """The step size at which the current codes have the smallest error, [n, 1]."""
        if few_at_once(self._weight):
            from awq2trt.quantization.cpu_grids import fitted_steps

            return fitted_steps(self._rows(), self.scales, self.zeros)
        levels, _ = self._round(GroupGrid(self.scales, self.zeros))
        curved = product(levels, self._block)
        curvature, target = (curved * levels).sum(dim=-1), (curved * self._weight).sum(dim=-1)
        if self._pull is not None:
            target -= (self._pull * levels).sum(dim=-1) / 2
        return torch.where(curvature > 0, target / curvature, self.scales)

    def _rows(self) -> Rows:
        """The same as compiled loops take it."""
        from awq2trt.quantization.cpu_grids import Rows

        pull = None if self._pull is None else self._pull.squeeze(1)
        return Rows(self._weight.squeeze(1), self._block, self._scheme.levels - 1, pull)

    def _losses_on(self, grids: GroupGrid) -> Tensor:
        """Output errors on C grids, [n, C]. Differences stay in units of steps, which saves a pass over all of them."""
        if few_at_once(self._weight):
            from awq2trt.quantization.cpu_grids import losses_on  # a GPU does not wait for numba

            return losses_on(self._rows(), grids.scales, grids.zeros)
        levels, in_steps = self._round(grids)
        difference = levels.sub_(in_steps)
        slope = product(difference, self._block)
        if self._pull is None:
            return slope.mul_(difference).sum(dim=-1).mul_(grids.scales.square())
        slope = slope.mul_(grids.scales.unsqueeze(-1)).add_(self._pull)
        return slope.mul_(difference).sum(dim=-1).mul_(grids.scales)

    def _round(self, grids: GroupGrid) -> tuple[Tensor, Tensor]:
        """Returns code - zero of every weight on C grids, and the weights in units of steps, [n, C, G] each."""
        zeros, buffers = grids.zeros.unsqueeze(-1), self._buffers
        in_steps = torch.div(self._weight, grids.scales.unsqueeze(-1), out=buffers[0])
        levels = torch.round(in_steps, out=buffers[1])
        # Not clamp(): with tensors as limits, PyTorch has no vector code for it, and it takes ten times as long.
        torch.maximum(levels, -zeros, out=levels)
        return torch.minimum(levels, self._scheme.levels - 1 - zeros, out=levels), in_steps


def _search_rows(weight: Tensor, gram: Tensor, scheme: QuantScheme, options: GridOptions, tried: Tried) -> GroupGrid:
    columns = [slice(start, start + scheme.group_of(weight.shape[1])) for start in _starts(weight, scheme)]
    groups = [_Group.unsearched(weight[:, own], gram[own, own], scheme) for own in columns]
    for group in groups:
        if options.ends_apart:
            _search_ends_(group, scheme, tried)
        else:
            _search_limit_(group, scheme, tried)
    if options.passes:
        differences = torch.cat([group.difference().to(gram.dtype) for group in groups], dim=1)
    for _ in range(options.passes):
        for group, own in zip(groups, columns, strict=True):
            differences[:, own] = 0
            group.look_again_(product(differences, gram[:, own]))
            _search_around_(group, tried)
            differences[:, own] = group.difference()
    return GroupGrid(
        torch.stack([group.scales for group in groups], dim=1), torch.stack([group.zeros for group in groups], dim=1)
    )


def _starts(weight: Tensor, scheme: QuantScheme) -> range:
    return range(0, weight.shape[1], scheme.group_of(weight.shape[1]))


def _search_limit_(group: _Group, scheme: QuantScheme, tried: Tried) -> None:
    """Takes the first look as llm-awq does: tries narrower and narrower ranges."""
    limits = torch.maximum(-group.low, group.high) * tried.limits
    low, high = torch.maximum(group.low, -limits), torch.minimum(group.high, limits)
    group.try_(range_grid(low, high, scheme))


def _search_ends_(group: _Group, scheme: QuantScheme, tried: Tried) -> None:
    """Takes the first look: tries the complete range, then ranges that are narrower at either end."""
    low_shares, high_shares = tried.shares
    best = group.try_(range_grid(low_shares * group.low, high_shares * group.high, scheme))
    low_steps, high_steps = tried.share_steps
    low = (low_shares[best] + low_steps).clamp_(max=1) * group.low
    high = (high_shares[best] + high_steps).clamp_(max=1) * group.high
    group.try_(range_grid(low, high, scheme))
    group.fit_step_()


def _search_around_(group: _Group, tried: Tried) -> None:
    """Takes a further look: tries the grid that was found, and those near it."""
    group.try_around_(tried)
    group.fit_step_()


def _range(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of each row, 0 included, [n, 1]."""
    return weight.amin(dim=-1, keepdim=True).clamp_(max=0), weight.amax(dim=-1, keepdim=True).clamp_(min=0)
