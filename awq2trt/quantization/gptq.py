"""GPTQ: chooses codes column by column, and corrects later columns for each column's error.

In: fp32 weights [N, K] and E[x x^T] of their input. Out: codes and their grid. The objective is the output error
tr((W - W') H (W - W')^T), H = E[x x^T] + damping (GPTQ, arXiv:2210.17323, section 3). Rounding a column leaves an error
that the columns which are not rounded yet make up for. With H = A A^T, A upper triangular, D = W - W' and columns in
the order of rounding, the objective is the sum of squares of D A, whose column k knows only the errors up to k. So the
best value of a weight, given what was rounded before it and that all after it will do their best, is

    w_k + (sum over j < k of D_j A_jk) / A_kk,

to which it is rounded. GPTQ's codes are the same: it subtracts e_j U_jk of an error e = D A, with U = A^-1 (section
3.3, step 3). That takes an inverse, which is not needed here.

Columns are rounded from left to right, or by decreasing E[x_k^2] (`act_order`), so that the inputs that matter most are
rounded while all others can still compensate for them. Groups keep their columns in both cases. With `act_order`, grids
are fixed before the first column is rounded, so that no index of groups has to be stored (`static_groups` in the
authors' code). Without it, a group's grid is made when its first column is reached, from the weights as GPTQ has
updated them by then: as if none of the group's own columns were to be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from awq2trt.machine.cores import even_parts, side_by_side
from awq2trt.machine.device import CPU
from awq2trt.quantization.panels import PANEL, compiled, has_kernels
from awq2trt.quantization.rounding import GroupGrid, Rounded, group_grid, to_groups
from awq2trt.scheme import QuantScheme

DAMPING: Final = 0.01
"""The number added to the diagonal of H, as a share of its mean (section 3.3: 1 %)."""

ROWS: Final = 512
"""Rows that one of a CPU's cores rounds at a time."""

ROWS_AT_ONCE: Final = 128
"""Rows of which a CPU rounds a panel at once: 128 x 128 fp32 are 64 KiB. With 32 rows it takes half as long again."""


@dataclass(frozen=True)
class GptqOptions:
    """How columns are rounded.

    Attributes:
        act_order: Whether columns are rounded by decreasing E[x_k^2] instead of from left to right.
        damping: The damping as a share of the mean of H's diagonal.
        precision: The type in which H is factored. E[x x^T] is the square of activations, and has a condition number
            that fp32 does not bear unless each channel is damped.
    """

    act_order: bool = True
    damping: float = DAMPING
    precision: torch.dtype = torch.float64


@dataclass(frozen=True)
class ErrorSpread:
    """How errors of an input's columns are made up for: the same for all linears that read it.

    Attributes:
        order: Columns in the order of rounding, int64 [K].
        factors: A_jk / A_kk, by which an error of column j adds to what is left of column k, both in that order: upper
            triangular with 1 on the diagonal, fp32 [K, K].
        left_to_right: Whether this is the columns' own order, so that grids can be made on the way.
    """

    order: Tensor
    factors: Tensor
    left_to_right: bool

    @classmethod
    def of(cls, gram: Tensor, options: GptqOptions) -> ErrorSpread:
        """Computes it. Weights of a channel that is always zero are rounded to nearest.

        Args:
            gram: E[x x^T], finite, fp32 [K, K].
            options: How columns are rounded.
        """
        order = torch.arange(len(gram), device=gram.device)
        if options.act_order:
            order = gram.diagonal().argsort(descending=True, stable=True)
        # CUDA's Cholesky factor is stored by columns, and kernels read rows.
        factors = _factors(gram, order, options).to(gram.dtype).contiguous()
        return cls(order, factors, not options.act_order)

    def to(self, device: torch.device) -> ErrorSpread:
        """Returns the same on another device."""
        return replace(self, order=self.order.to(device), factors=self.factors.to(device))


def gptq_round(weight: Tensor, spread: ErrorSpread, scheme: QuantScheme, *, grid: GroupGrid | None = None) -> Rounded:
    """Rounds one linear.

    Args:
        weight: The weight, fp32 [N, K].
        spread: How errors are made up for, of the same type.
        scheme: Bits, groups, zero points.
        grid: The grid of every group; None for grids that span the range of the group's weights.

    Returns:
        Codes and grids, on the weight's device. It is computed there where kernels are, and on the CPU elsewhere.
    """
    if grid is None and not spread.left_to_right:
        grid = group_grid(to_groups(weight, scheme), scheme)
    if grid is not None and has_kernels(weight):
        return _round_by_kernels(weight, spread, grid, scheme)
    device, cpu = weight.device, torch.device(CPU)
    weight, spread, grid = weight.to(cpu), spread.to(cpu), grid.to(cpu) if grid else None
    parts = [(weight[own], grid.rows(own) if grid else None) for own in even_parts(len(weight), ROWS)]
    found = side_by_side(lambda part: _round_on_cpu(part[0], spread, part[1], scheme), parts)
    return Rounded.of_pieces(found).to(device)


def _round_by_kernels(weight: Tensor, spread: ErrorSpread, grid: GroupGrid, scheme: QuantScheme) -> Rounded:
    """Rounds on a GPU, panel after panel of columns; `left` is what is left to round, in the order of rounding."""
    from awq2trt.quantization.gpu_panels import PanelAt, round_panel_

    weight = weight.contiguous()
    columns, codes, left = weight.shape[1], torch.empty_like(weight), weight[:, spread.order]
    groups = grid.scales.squeeze(-1).contiguous(), grid.zeros.squeeze(-1).contiguous()
    for start in range(0, columns, PANEL):
        end = min(start + PANEL, columns)
        at = PanelAt(start, scheme.group_of(columns), scheme.levels - 1)
        errors = round_panel_(codes, left, weight, groups, (spread.factors, spread.order), at)
        left[:, end:].addmm_(errors, spread.factors[start:end, end:])
    return Rounded(codes, grid)


def _round_on_cpu(weight: Tensor, spread: ErrorSpread, grid: GroupGrid | None, scheme: QuantScheme) -> Rounded:
    """Rounds [N, K] on one core.

    It works on transposed weights, [K, N], of whose rows a CPU takes many numbers at a time. `left` and `codes` are in
    the order of rounding; `scales` and `zeros`, [groups, N], in the columns' own.
    """
    columns, length, weight = weight.shape[1], scheme.group_of(weight.shape[1]), weight.T.contiguous()
    left, last = weight[spread.order], weight.new_tensor(scheme.levels - 1).numpy()[()]
    codes, shape, start = torch.empty_like(left), (scheme.groups(columns), left.shape[1]), 0
    scales = grid.scales.squeeze(-1).T.contiguous() if grid else weight.new_ones(shape)
    zeros = grid.zeros.squeeze(-1).T.contiguous() if grid else weight.new_zeros(shape)
    while start < columns:
        end = min(start + PANEL, columns)
        if grid is None:  # made from a group's weights when its first column is reached
            end = min(end, start - start % length + length)
            if start % length == 0:
                whole = slice(start, min(start + length, columns))
                made = group_grid(_updated(weight, left, spread, whole).T.unsqueeze(1), scheme)
                scales[start // length], zeros[start // length] = made.scales[:, 0, 0], made.zeros[:, 0, 0]
        panel = slice(start, end)
        chosen, factors = spread.order[panel], spread.factors[panel]
        errors, grids = weight[chosen], torch.stack((scales[chosen // length], zeros[chosen // length]))
        read = (left[panel], grids, factors[:, panel].contiguous(), codes[panel], errors)
        compiled(_round_columns)(*(value.numpy() for value in read), last)
        left[end:].addmm_(factors[:, end:].T, errors)
        start = end
    found = codes[spread.order.argsort()].T.contiguous()
    return Rounded(found, GroupGrid(scales.T.unsqueeze(-1), zeros.T.unsqueeze(-1)))


def _updated(weight: Tensor, left: Tensor, spread: ErrorSpread, group: slice) -> Tensor:
    """The weights of a group as if none of its columns were to be rounded, which makes what is left smaller; [G, N]."""
    moved = left[group] - weight[group]
    own = spread.factors[group, group].T
    update: Tensor = torch.linalg.solve_triangular(own, moved, upper=False, unitriangular=True)
    return update.add_(weight[group])


def _round_columns(left: Any, grids: Any, factors: Any, codes: Any, errors: Any, last: Any) -> None:
    """Rounds some columns, `ROWS_AT_ONCE` rows at a time, so that what is left of them stays in a core's cache.

    Args:
        left: What is left to round, [P, N].
        grids: Step size and zero point of every weight, [2, P, N].
        factors: How errors add to later columns, [P, P].
        codes: Becomes the codes, [P, N].
        errors: The original weights, [P, N]; becomes the same minus the rounded weights.
        last: The largest code, of the same type.
    """
    columns, rows = left.shape
    here, missed = np.empty((columns, ROWS_AT_ONCE), left.dtype), np.empty(ROWS_AT_ONCE, left.dtype)
    for start in range(0, rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, rows - start)
        for column in range(columns):
            for row in range(count):
                here[column, row] = left[column, start + row]
        for column in range(columns):
            for row in range(count):
                scale, zero = grids[0, column, start + row], grids[1, column, start + row]
                code = min(max(np.rint(here[column, row] / scale) + zero, np.float32(0)), last)
                codes[column, start + row] = code
                missed[row] = errors[column, start + row] - (code - zero) * scale
                errors[column, start + row] = missed[row]
            for later in range(column + 1, columns):
                factor = factors[column, later]
                for row in range(count):
                    here[later, row] += missed[row] * factor


def _factors(gram: Tensor, order: Tensor, options: GptqOptions) -> Tensor:
    """A_jk / A_kk in the order of rounding, [K, K].

    H = A A^T with A upper triangular is a Cholesky factorization from the last column to the first.
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
    factor: Tensor = torch.linalg.cholesky(hessian)
    del hessian  # so that two matrices exist at most
    factor = factor.flip(0, 1)
    factor.mul_(size.flip(0).unsqueeze(1))
    return factor.div_(factor.diagonal().clone())
