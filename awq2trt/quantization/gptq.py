"""GPTQ: chooses codes column by column, and corrects later columns for each column's error.

In: fp32 weights [N, K] and E[x x^T] of their input. Out: codes and their grid. The objective is the output error
tr((W' - W) G (W' - W)^T) (GPTQ, arXiv:2210.17323, section 3). Rounding a column leaves an error that the optimal brain
surgeon spreads over the columns that are not rounded yet; with H = G + damping and U the upper Cholesky factor of
H^-1, that is a rank-one step along the column's row of U (section 3.3, step 3).

Columns are rounded from left to right, or by decreasing E[x_k^2] (`act_order`), so that the inputs that matter most are
rounded while all others can still compensate for them. Groups keep their columns in both cases. With `act_order`, grids
are fixed before the first column is rounded, so that no index of groups has to be stored (`static_groups` in the
authors' code). Without it, a group's grid is made when its first column is reached, from the weights as updated by
then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from awq2trt.machine.device import CPU
from awq2trt.quantization.panels import PANEL, has_kernels
from awq2trt.quantization.rounding import GroupGrid, Rounded, group_grid, round_to_codes, to_groups
from awq2trt.quantization.statistics import require_finite
from awq2trt.scheme import QuantScheme

DAMPING: Final = 0.01
"""The number added to the diagonal of H, as a share of its mean (section 3.3: 1 %)."""


@dataclass(frozen=True)
class GptqOptions:
    """How columns are rounded.

    Attributes:
        act_order: Whether columns are rounded by decreasing E[x_k^2] instead of from left to right.
        damping: The damping as a share of the mean of H's diagonal.
    """

    act_order: bool = True
    damping: float = DAMPING


def gptq_round(
    weight: Tensor,
    gram: Tensor,
    scheme: QuantScheme,
    options: GptqOptions,
    *,
    grid: GroupGrid | None = None,
    where: str = "",
) -> Rounded:
    """Rounds one linear.

    Args:
        weight: The weight, [N, K].
        gram: E[x x^T] of its input, [K, K]. Weights of a channel that is always zero are rounded to nearest.
        scheme: Bits, groups, zero points.
        options: Order and damping.
        grid: The grid of every group; None for grids that span the range of the group's weights.
        where: Name of the layer, for errors.

    Raises:
        CalibrationError: The input had NaN or infinite values.
    """
    require_finite(gram, where)
    if grid is None and options.act_order:
        grid = group_grid(to_groups(weight, scheme), scheme)
    device, home = weight.device, weight.device
    if grid is None or not has_kernels(weight):
        home = torch.device(CPU)
    weight, gram, grid = weight.to(home), gram.to(home), grid.to(home) if grid else None
    order = torch.arange(weight.shape[1], device=home)
    if options.act_order:
        order = gram.diagonal().argsort(descending=True, stable=True)
    spread = _error_spread(gram[order][:, order], options.damping).to(weight.dtype)
    if grid is not None and has_kernels(weight):
        return _round_by_kernels(weight, spread, order, grid, scheme)
    return _round_on_cpu(weight, spread, order, grid, scheme).to(device)


def _round_by_kernels(weight: Tensor, spread: Tensor, order: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Rounded:
    from awq2trt.quantization.gpu_panels import PanelAt, round_panel_

    columns, codes, left, spread = weight.shape[1], torch.empty_like(weight), weight[:, order], spread.contiguous()
    groups = grid.scales.squeeze(-1).contiguous(), grid.zeros.squeeze(-1).contiguous()
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        at = PanelAt(start, scheme.group_of(columns), scheme.levels - 1)
        errors = round_panel_(codes, left, groups, spread, order, at)
        left[:, end:] -= errors @ spread[start:end, end:]
    return Rounded(codes, grid)


def _round_on_cpu(
    weight: Tensor, spread: Tensor, order: Tensor, grid: GroupGrid | None, scheme: QuantScheme
) -> Rounded:
    columns, length = weight.shape[1], scheme.group_of(weight.shape[1])
    remaining = weight[:, order]  # a copy of what is still to be rounded, updated as errors spread
    codes = torch.empty_like(weight)
    grids = _Grids.given(grid, scheme) if grid else _Grids.to_make(weight, scheme)
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        panel, errors = remaining[:, start:end].clone(), torch.empty_like(remaining[:, start:end])
        for index in range(end - start):
            column = int(order[start + index])
            if not grids.known(column // length):
                # From left to right, so that the group's columns are adjacent: all in this panel or, for a group longer
                # than a panel, beginning with its first column.
                members = panel[:, index : index + length] if length <= PANEL else remaining[:, start : start + length]
                grids.make_(column // length, members)
            scales, zeros = grids.of(column // length)
            code = round_to_codes(panel[:, index], GroupGrid(scales, zeros), scheme)
            errors[:, index] = (panel[:, index] - (code - zeros) * scales) / spread[start + index, start + index]
            panel[:, index:] -= torch.outer(errors[:, index], spread[start + index, start + index : end])
            codes[:, column] = code
        remaining[:, end:] -= errors @ spread[start:end, end:]
    return Rounded(codes, grids.whole())


class _Grids:
    """Scale and zero point of every group, [N] each: given at the start, or made at the group's first column."""

    def __init__(self, scheme: QuantScheme, known: list[bool], scales: Tensor, zeros: Tensor) -> None:
        self._scheme = scheme
        self._known = known
        self._scales = scales  # [N, groups]
        self._zeros = zeros

    @classmethod
    def given(cls, grid: GroupGrid, scheme: QuantScheme) -> _Grids:
        """Takes grids that are all known."""
        scales, zeros = grid.scales.squeeze(-1), grid.zeros.squeeze(-1)
        return cls(scheme, [True] * scales.shape[1], scales, zeros)

    @classmethod
    def to_make(cls, weight: Tensor, scheme: QuantScheme) -> _Grids:
        """Makes room for the grids of a weight [N, K], none of which is known yet."""
        shape = (weight.shape[0], scheme.groups(weight.shape[1]))
        return cls(scheme, [False] * shape[1], weight.new_ones(shape), weight.new_zeros(shape))

    def known(self, group: int) -> bool:
        return self._known[group]

    def make_(self, group: int, members: Tensor) -> None:
        """Chooses a group's grid from its current columns, [N, at most G]."""
        grid = group_grid(members.unsqueeze(1), self._scheme)
        self._scales[:, group], self._zeros[:, group] = grid.scales[:, 0, 0], grid.zeros[:, 0, 0]
        self._known[group] = True

    def of(self, group: int) -> tuple[Tensor, Tensor]:
        """Returns the scales and zero points of a group."""
        return self._scales[:, group], self._zeros[:, group]

    def whole(self) -> GroupGrid:
        return GroupGrid(self._scales.unsqueeze(-1), self._zeros.unsqueeze(-1))


def _error_spread(gram: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U = (G + damping * mean(diag G))^-1, float64 [K, K].

    It is float64, since G is the square of activations, whose condition number is that of a trained model.
    """
    hessian = gram.to(torch.float64, copy=True)
    mean = float(hessian.diagonal().mean())
    # Without any input, all roundings are equally good: the identity chooses the nearest.
    hessian.diagonal().add_(damping * mean if mean > 0 else 1.0)
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    return upper
