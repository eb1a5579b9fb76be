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
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from awq2trt.machine.device import CPU
from awq2trt.quantization.panels import PANEL, compiled, has_kernels
from awq2trt.quantization.rounding import GroupGrid, Rounded, group_grid, to_groups
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
        precision: The type in which H is factored. G is the square of activations, and has a condition number that fp32
            does not bear unless each channel is damped.
    """

    act_order: bool = True
    damping: float = DAMPING
    precision: torch.dtype = torch.float64


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
    spread = _error_spread(gram, order, options).to(weight.dtype)
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
    codes, start = torch.empty_like(weight), 0
    shape = (len(weight), scheme.groups(columns))
    scales = grid.scales.squeeze(-1) if grid else weight.new_ones(shape)
    zeros = grid.zeros.squeeze(-1) if grid else weight.new_zeros(shape)
    while start < columns:
        end = min(start + PANEL, columns)
        if (
            grid is None
        ):  # the columns are in their own order: made from a group's weights when its first one is reached
            end = min(end, start - start % length + length)
            if start % length == 0:
                made = group_grid(remaining[:, start : start + length].unsqueeze(1), scheme)
                scales[:, start // length], zeros[:, start // length] = made.scales[:, 0, 0], made.zeros[:, 0, 0]
        group = order[start:end] // length
        left, found = remaining[:, start:end].contiguous(), torch.empty_like(remaining[:, start:end])
        errors, own = torch.empty_like(found), spread[start:end, start:end].contiguous()
        grids = torch.stack((scales[:, group], zeros[:, group]))
        read = (value.numpy() for value in (left, grids, own, found, errors))
        compiled(_round_rows)(*read, scheme.levels - 1)
        codes[:, order[start:end]] = found
        remaining[:, end:] -= errors @ spread[start:end, end:]
        start = end
    return Rounded(codes, GroupGrid(scales.unsqueeze(-1), zeros.unsqueeze(-1)))


def _round_rows(left: Any, grids: Any, spread: Any, codes: Any, errors: Any, last: int) -> None:
    """Rounds some columns, row by row.

    Args:
        left: What is left to round, [N, P]; it is changed.
        grids: Step size and zero point of every weight, [2, N, P].
        spread: How an error spreads to later columns, [P, P].
        codes: Becomes the codes, [N, P].
        errors: Becomes what has to be spread to the columns after these, [N, P].
        last: The largest code.
    """
    rows, columns = left.shape
    for row in range(rows):
        for column in range(columns):
            scale, zero = grids[0, row, column], grids[1, row, column]
            codes[row, column] = min(max(np.rint(left[row, column] / scale) + zero, 0), last)
            error = (left[row, column] - (codes[row, column] - zero) * scale) / spread[column, column]
            for later in range(column, columns):
                left[row, later] -= error * spread[column, later]
            errors[row, column] = error


def _error_spread(gram: Tensor, order: Tensor, options: GptqOptions) -> Tensor:
    """U, upper triangular, with U^T U = H^-1, both in the order of rounding, [K, K].

    H = A A^T with A upper triangular is a Cholesky factorization from the last column to the first, and U = A^-1.
    """
    backwards = order.flip(0)
    hessian = gram[backwards][:, backwards].to(options.precision)
    energy = hessian.diagonal()
    energy += options.damping * energy.mean()
    # Without any input, all roundings are equally good: the identity chooses the nearest.
    energy += energy == 0
    size = energy.sqrt()
    # Over each channel's size, H has the smallest condition number that scales can give it.
    hessian.div_(size).div_(size.unsqueeze(1))
    hessian = torch.linalg.cholesky(hessian).flip(0, 1)  # under the same name, so that three matrices exist at most
    unit = torch.eye(len(size), dtype=hessian.dtype, device=hessian.device)
    spread: Tensor = torch.linalg.solve_triangular(hessian, unit, upper=True)
    return spread.div_(size.flip(0))
