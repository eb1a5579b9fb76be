"""A panel of columns after another on a GPU: the parts of the descent on codes and of GPTQ that go column by column.

In: what is known of some rows, all in the GPU's memory. Out: new codes, and by how much the panel's weights changed.
A column at a time is too little work for PyTorch's operations: each of these kernels takes a whole panel, holds what
the next columns need in registers, and leaves what columns beyond the panel need to one matrix product. In Triton,
which comes with PyTorch for NVIDIA's GPUs on Linux.
"""

# Kernels are no Python functions, and Triton has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from awq2trt.quantization.panels import PANEL

ROWS = 32
"""Rows of a program: enough programs for all multiprocessors of an H100 from 4,096 rows on, and few registers each."""


@dataclass(frozen=True)
class PanelAt:
    """Where a panel is.

    Attributes:
        start: Its first column.
        length: Columns of a group.
        last: The largest code.
    """

    start: int
    length: int
    last: int

    def width(self, weight: Tensor) -> int:
        """How many columns of a weight [N, K] are in it."""
        return min(PANEL, weight.shape[1] - self.start)


# Arguments of all kernels: tensors are contiguous, [N, K] unless said; `length` is that of a group, `groups` how many a
# row has, `last` the largest code, `start` the panel's first column, `width` its columns, `panel` and `size` the powers
# of two that hold its columns and the rows of a program.


@triton.jit
def _nearest(value, last):
    return tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), last)


@triton.jit
def _descend_rows(  # noqa: PLR0913  (what a kernel reads is its arguments)
    codes,
    slope,
    steps,
    gram,
    change,
    rows,
    columns,
    start,
    length,
    groups,
    last,
    width: tl.constexpr,
    size: tl.constexpr,
    panel: tl.constexpr,
):
    """Rows that do not weigh on each other. `slope` is D G before the panel, `change` [N, width] what it does to D."""
    row = tl.program_id(0) * size + tl.arange(0, size)
    live = row < rows
    row = row.to(tl.int64)
    beside = tl.arange(0, panel)
    inside = start + beside < columns
    local = tl.load(slope + row[:, None] * columns + start + beside[None, :], live[:, None] & inside[None, :], 0.0)
    for index in range(width):
        column = start + index
        step = tl.load(steps + row * groups + column // length, live, 1.0)
        now = tl.load(codes + row * columns + column, live, 0.0)
        line = tl.load(gram + column.to(tl.int64) * columns + start + beside, inside, 0.0)
        curvature = tl.load(gram + column.to(tl.int64) * columns + column)
        own = tl.sum(tl.where(beside[None, :] == index, local, 0.0), axis=1)
        read = curvature > 0  # of an input that is always zero every code is as good as another
        code = tl.where(read, _nearest(now - own / (step * tl.where(read, curvature, 1.0)), last), now)
        moved = (code - now) * step
        local += moved[:, None] * line[None, :]
        tl.store(codes + row * columns + column, code, live)
        tl.store(change + row * width + index, moved, live)


@triton.jit
def _descend_heads(  # noqa: PLR0913  (what a kernel reads is its arguments)
    codes,
    slope,
    steps,
    gram,
    change,
    ties,
    columns,
    start,
    length,
    groups,
    last,
    width: tl.constexpr,
    head_rows: tl.constexpr,
    size: tl.constexpr,
    panel: tl.constexpr,
):
    """Rows of a head that weigh on each other: `ties` [heads, rows, rows], M_ab / M_bb, says how."""
    first = tl.program_id(0).to(tl.int64) * head_rows
    beside, within = tl.arange(0, panel), tl.arange(0, size)
    live = within < head_rows
    row = first + within
    inside = start + beside < columns
    local = tl.load(slope + row[:, None] * columns + start + beside[None, :], live[:, None] & inside[None, :], 0.0)
    ties += first * head_rows
    for index in range(width):
        column = start + index
        step = tl.load(steps + row * groups + column // length, live, 1.0)
        now = tl.load(codes + row * columns + column, live, 0.0)
        line = tl.load(gram + column.to(tl.int64) * columns + start + beside, inside, 0.0)
        curvature = tl.load(gram + column.to(tl.int64) * columns + column)
        own = tl.sum(tl.where(beside[None, :] == index, local, 0.0), axis=1)
        tied = tl.load(ties + within[:, None] * head_rows + within[None, :], live[:, None] & live[None, :], 0.0)
        pull = tl.sum(tied * own[:, None], axis=0)
        if curvature > 0:
            best = now - pull / (step * curvature)
            code = now
            for one in range(head_rows):
                mine = within == one
                wanted = tl.sum(tl.where(mine, best, 0.0), axis=0)
                before = tl.sum(tl.where(mine, now, 0.0), axis=0)
                its_step = tl.load(steps + (first + one) * groups + column // length)
                chosen = _nearest(wanted, last)
                falls = tl.load(ties + one * head_rows + within, live, 0.0)
                best -= falls * its_step / step * (chosen - before)
                code = tl.where(mine, chosen, code)
            moved = (code - now) * step
            local += moved[:, None] * line[None, :]
            tl.store(codes + row * columns + column, code, live)
            tl.store(change + row * width + index, moved, live)


@triton.jit
def _round_columns(  # noqa: PLR0913  (what a kernel reads is its arguments)
    left,
    weight,
    codes,
    steps,
    zeros,
    factors,
    order,
    errors,
    rows,
    columns,
    start,
    length,
    groups,
    last,
    width: tl.constexpr,
    size: tl.constexpr,
    panel: tl.constexpr,
):
    """GPTQ. `left` is what is left to round, its columns in the order of rounding; `order` [K] says which they are."""
    row = tl.program_id(0) * size + tl.arange(0, size)
    live = row < rows
    row = row.to(tl.int64)
    beside = tl.arange(0, panel)
    inside = start + beside < columns
    local = tl.load(left + row[:, None] * columns + start + beside[None, :], live[:, None] & inside[None, :], 0.0)
    for index in range(width):
        column = tl.load(order + start + index)
        step = tl.load(steps + row * groups + column // length, live, 1.0)
        zero = tl.load(zeros + row * groups + column // length, live, 0.0)
        at = (start + index).to(tl.int64) * columns + start
        line = tl.load(factors + at + beside, inside, 0.0)  # 0 before the diagonal
        own = tl.sum(tl.where(beside[None, :] == index, local, 0.0), axis=1)
        code = _nearest(own / step + zero, last)
        error = tl.load(weight + row * columns + column, live, 0.0) - (code - zero) * step
        local += error[:, None] * line[None, :]
        tl.store(codes + row * columns + column, code, live)
        tl.store(errors + row * width + index, error, live)


def descend_panel_(
    codes: Tensor, slope: Tensor, steps: Tensor, gram: Tensor, at: PanelAt, ties: Tensor | None = None
) -> Tensor:
    """New codes for the columns of a panel, each the best for its row with all others as they are.

    Args:
        codes: fp32 [N, K]; changed.
        slope: D G for the weight error D, fp32 [N, K].
        steps: Step sizes of every group, fp32 [N, groups].
        gram: G, fp32 [K, K].
        at: Which panel.
        ties: M_ab / M_bb of the rows a and b of every head, fp32 [heads, N / heads, N / heads]; None if no row's error
            weighs on another's.

    Returns:
        What this adds to the weights, fp32 [N, columns of the panel].
    """
    (rows, columns), width = codes.shape, at.width(codes)
    change = codes.new_empty(rows, width)
    sizes = (columns, at.start, at.length, steps.shape[1], at.last, width)
    with torch.cuda.device_of(codes):
        if ties is None:
            programs = (triton.cdiv(rows, ROWS),)
            _descend_rows[programs](codes, slope, steps, gram, change, rows, *sizes, ROWS, PANEL, num_warps=4)
        else:
            heads, head_rows, _ = ties.shape
            whole = head_rows, triton.next_power_of_2(head_rows)
            _descend_heads[(heads,)](codes, slope, steps, gram, change, ties, *sizes, *whole, PANEL, num_warps=8)
    return change


def round_panel_(
    codes: Tensor,
    left: Tensor,
    weight: Tensor,
    grid: tuple[Tensor, Tensor],
    spread: tuple[Tensor, Tensor],
    at: PanelAt,
) -> Tensor:
    """Codes for the columns of a panel by GPTQ, each column's error made up for in those after it.

    Args:
        codes: fp32 [N, K]; changed, at the panel's columns in the order of rounding.
        left: What is left to round, fp32 [N, K], in that order.
        weight: The original weights, fp32 [N, K], in their own order.
        grid: Step sizes and zero points of every group, fp32 [N, groups] each.
        spread: How errors add to later columns, in the order of rounding, fp32 [K, K]; and that order, int64 [K].
        at: Which panel.

    Returns:
        Weights minus rounded weights, which later columns have to make up for, fp32 [N, columns of the panel].
    """
    (rows, columns), width = codes.shape, at.width(codes)
    errors, (steps, zeros), (factors, order) = codes.new_empty(rows, width), grid, spread
    sizes = (rows, columns, at.start, at.length, steps.shape[1], at.last, width)
    programs = (triton.cdiv(rows, ROWS),)
    with torch.cuda.device_of(codes):
        read = left, weight, codes, steps, zeros, factors, order
        _round_columns[programs](*read, errors, *sizes, ROWS, PANEL, num_warps=4)
    return errors
