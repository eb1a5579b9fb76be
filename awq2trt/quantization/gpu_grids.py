"""The search for grids on a GPU: a kernel tries everything on a group that `awq2trt.quantization.grids` tries.

In: weights, E[x x^T] in bf16, what is tried. Out: step sizes and zero points, and the weight errors that they leave. A
look at one group is some 80 of PyTorch's operations, all too small for a GPU; here it is one, whose rows stay in
registers. In Triton, which comes with PyTorch for NVIDIA's GPUs on Linux.
"""

# Kernels are no Python functions, and Triton has no types.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from awq2trt.quantization.grids import Tried
from awq2trt.quantization.rounding import Bfloat16Steps, GroupGrid
from awq2trt.scheme import QuantScheme

ROWS = 32
"""Rows of a program."""

WARPS = 8
"""Warps of a program: with 4, what it holds of its rows does not fit their registers."""

_SMALLEST_FACTOR = 16
"""Columns that a product of tensor cores has at least."""


@triton.jit
def _as_step(scale, of_bf16: tl.constexpr):
    """`awq2trt.quantization.rounding.as_step`."""
    if of_bf16:
        scale = scale.to(tl.bfloat16).to(tl.float32)
    rounded = scale.to(tl.float16).to(tl.float32)
    return tl.where(rounded == 0, 1.0, rounded)


@triton.jit
def _levels(weight, step, zero, last):
    """code - zero of every weight, and the weights in steps, [n, G] each."""
    in_steps = weight / step[:, None]
    levels = tl.maximum(tl.floor(in_steps + 0.5), -zero[:, None])
    return tl.minimum(levels, last - zero[:, None]), in_steps


@triton.jit
def _loss(weight, pull, block, step, zero, last):
    """Output error of a group on a grid, [n]; not a number counts as infinite."""
    levels, in_steps = _levels(weight, step, zero, last)
    difference = levels - in_steps
    slope = tl.dot(difference.to(block.dtype), block) * step[:, None] + pull
    loss = tl.sum(slope * difference, axis=1) * step
    return tl.where(loss == loss, loss, float("inf"))


@triton.jit
def _fitted(weight, pull, block, step, zero, last, of_bf16: tl.constexpr):  # noqa: PLR0913  (kernels share no state)
    """The step size that suits the codes best; the same one where that is far off."""
    levels, _ = _levels(weight, step, zero, last)
    curved = tl.dot(levels.to(block.dtype), block)
    curvature = tl.sum(curved * levels, axis=1)
    target = tl.sum(curved * weight, axis=1) - tl.sum(pull * levels, axis=1) / 2
    fitted = _as_step(tl.where(curvature > 0, target / tl.where(curvature > 0, curvature, 1.0), step), of_bf16)
    return tl.where((fitted > 0.7 * step) & (fitted < 1.4 * step), fitted, step)


@triton.jit
def _grid_of(low, high, last, middle, asymmetric: tl.constexpr, of_bf16: tl.constexpr):
    """`awq2trt.quantization.rounding.range_grid`: the step size and zero point that cover a range."""
    if asymmetric:
        step = _as_step((high - low) / last, of_bf16)
        zero = tl.minimum(tl.maximum(tl.floor(-low / step + 0.5), 0.0), last)
    else:
        step = _as_step(tl.maximum(-low, high) / (middle - 1.0), of_bf16)
        zero = tl.zeros_like(step) + middle
    return step, zero


@triton.jit
def _first_look(  # noqa: PLR0913  (what a kernel reads is its arguments, and it is one function)
    weight, gram, differences, scales, zeros, low_shares, high_shares, low_steps, high_steps, rows, columns, groups,
    length, last, middle, pairs: tl.constexpr, asymmetric: tl.constexpr, of_bf16: tl.constexpr, size: tl.constexpr,
    padded: tl.constexpr,
):  # fmt: skip
    """All groups: shares of both ends of the range, then those around the best; then the step size is fitted.

    These are two loops: one that took the best shares anew in its middle left errors that were 1 to 3 % larger than
    those of the same search by calls (H100, Triton 3.6).
    """
    row, group = (tl.program_id(0) * size + tl.arange(0, size)).to(tl.int64), tl.program_id(1)
    column = group * length + tl.arange(0, padded)
    inside = (tl.arange(0, padded) < length) & (column < columns)
    mask = (row < rows)[:, None] & inside[None, :]
    own = tl.load(weight + row[:, None] * columns + column[None, :], mask, 0.0)
    at = column.to(tl.int64)[:, None] * columns + column[None, :]
    block = tl.load(gram + at, inside[:, None] & inside[None, :], 0.0)
    low, high = tl.minimum(tl.min(own, axis=1), 0.0), tl.maximum(tl.max(own, axis=1), 0.0)
    pull = tl.zeros((size, padded), tl.float32)
    best = tl.full((size,), float("inf"), tl.float32)
    step, zero = tl.full((size,), 1.0, tl.float32), tl.zeros((size,), tl.float32)
    low_share, high_share = tl.zeros((size,), tl.float32), tl.zeros((size,), tl.float32)
    for pair in range(pairs):
        its_low, its_high = tl.load(low_shares + pair), tl.load(high_shares + pair)
        tried, its_zero = _grid_of(its_low * low, its_high * high, last, middle, asymmetric, of_bf16)
        loss = _loss(own, pull, block, tried, its_zero, last)
        better = loss < best
        best, step, zero = tl.where(better, loss, best), tl.where(better, tried, step), tl.where(better, its_zero, zero)
        low_share, high_share = tl.where(better, its_low, low_share), tl.where(better, its_high, high_share)
    for pair in range(pairs):
        its_low = tl.minimum(low_share + tl.load(low_steps + pair), 1.0) * low
        its_high = tl.minimum(high_share + tl.load(high_steps + pair), 1.0) * high
        tried, its_zero = _grid_of(its_low, its_high, last, middle, asymmetric, of_bf16)
        loss = _loss(own, pull, block, tried, its_zero, last)
        better = loss < best
        best, step, zero = tl.where(better, loss, best), tl.where(better, tried, step), tl.where(better, its_zero, zero)
    fitted = _fitted(own, pull, block, step, zero, last, of_bf16)
    step = tl.where(_loss(own, pull, block, fitted, zero, last) < best, fitted, step)
    levels, _ = _levels(own, step, zero, last)
    left = (levels * step[:, None] - own).to(block.dtype)
    tl.store(differences + row[:, None] * columns + column[None, :], left, mask)
    tl.store(scales + row * groups + group, step, row < rows)
    tl.store(zeros + row * groups + group, zero, row < rows)


@triton.jit
def _look_again(  # noqa: PLR0913  (what a kernel reads is its arguments)
    weight, gram, pulls, differences, scales, zeros, factors, shifts, rows, columns, groups, group, length, last,
    neighbours: tl.constexpr, of_bf16: tl.constexpr, size: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    """One group, with the pull of the others: grids near the one found; then the step size is fitted."""
    row = (tl.program_id(0) * size + tl.arange(0, size)).to(tl.int64)
    column = group * length + tl.arange(0, padded)
    inside = (tl.arange(0, padded) < length) & (column < columns)
    mask = (row < rows)[:, None] & inside[None, :]
    own = tl.load(weight + row[:, None] * columns + column[None, :], mask, 0.0)
    at = column.to(tl.int64)[:, None] * columns + column[None, :]
    block = tl.load(gram + at, inside[:, None] & inside[None, :], 0.0)
    width = tl.minimum(length, columns - group * length)
    pull = 2 * tl.load(pulls + row[:, None] * width + tl.arange(0, padded)[None, :], mask, 0.0).to(tl.float32)
    first_step = tl.load(scales + row * groups + group, row < rows, 1.0)
    first_zero = tl.load(zeros + row * groups + group, row < rows, 0.0)
    best, step, zero = tl.full((size,), float("inf"), tl.float32), first_step, first_zero
    for one in range(neighbours):
        tried = _as_step(tl.load(factors + one) * first_step, of_bf16)
        its_zero = tl.minimum(tl.maximum(first_zero + tl.load(shifts + one), 0.0), last)
        loss = _loss(own, pull, block, tried, its_zero, last)
        better = loss < best
        best, step, zero = tl.where(better, loss, best), tl.where(better, tried, step), tl.where(better, its_zero, zero)
    fitted = _fitted(own, pull, block, step, zero, last, of_bf16)
    step = tl.where(_loss(own, pull, block, fitted, zero, last) < best, fitted, step)
    levels, _ = _levels(own, step, zero, last)
    left = (levels * step[:, None] - own).to(block.dtype)
    tl.store(differences + row[:, None] * columns + column[None, :], left, mask)
    tl.store(scales + row * groups + group, step, row < rows)
    tl.store(zeros + row * groups + group, zero, row < rows)


def search_rows(weight: Tensor, gram: Tensor, scheme: QuantScheme, passes: int, tried: Tried) -> GroupGrid:
    """What `grids` finds with both ends of ranges cut apart, except for ties and last bits.

    Args:
        weight: fp32 [N, K], scaled already; groups of at most `LONGEST_KERNEL_GROUP` of there.
        gram: E[x x^T] of its scaled input, bf16 [K, K].
        scheme: How it will be rounded.
        passes: Further looks at every group.
        tried: What is tried.
    """
    weight, gram = weight.contiguous(), gram.contiguous()
    (rows, columns), length = weight.shape, scheme.group_of(weight.shape[1])
    groups, last = scheme.groups(columns), float(scheme.levels - 1)
    scales, zeros = weight.new_empty(rows, groups), weight.new_empty(rows, groups)
    differences = torch.empty_like(weight, dtype=gram.dtype)
    padded = max(_SMALLEST_FACTOR, triton.next_power_of_2(length))
    programs, of_bf16 = triton.cdiv(rows, ROWS), isinstance(scheme, Bfloat16Steps)
    with torch.cuda.device_of(weight):
        _first_look[(programs, groups)](
            *(weight, gram, differences, scales, zeros, *tried.shares, *tried.share_steps, rows, columns, groups),
            *(length, last, float(scheme.symmetric_zero), len(tried.shares[0]), scheme.zero_point, of_bf16),
            *(ROWS, padded),
            num_warps=WARPS,
        )
        for _ in range(passes):
            for group in range(groups):
                own = slice(group * length, min((group + 1) * length, columns))
                differences[:, own].zero_()
                pulls = differences @ gram[:, own]
                _look_again[(programs,)](
                    *(weight, gram, pulls, differences, scales, zeros, tried.factors, tried.shifts, rows, columns),
                    *(groups, group, length, last, len(tried.factors), of_bf16, ROWS, padded),
                    num_warps=WARPS,
                )
    return GroupGrid(scales.unsqueeze(-1), zeros.unsqueeze(-1))
