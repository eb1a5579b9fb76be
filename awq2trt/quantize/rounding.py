"""Rounding weights to codes: the reference math of every method (AWQ paper, equation 1), in PyTorch.

In: fp32 weights [N, K] and, per group, how far the range is shrunk (clipping). Out: integer codes, fp16 step sizes,
integer zero points. Step sizes are rounded to fp16 *before* codes are chosen, so a checkpoint's fp16 scales lose
nothing. K is padded with zeros to whole groups inside; a zero never widens a range, since every range holds 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear, QuantScheme


@dataclass(frozen=True)
class GroupGrid:
    """The rounding grid of every group: w = scales * (code - zeros).

    Attributes:
        scales: fp32 values that fp16 holds exactly, [N, groups, 1].
        zeros: Integers in [0, 2^bits) as fp32, [N, groups, 1].
    """

    scales: Tensor
    zeros: Tensor


def to_groups(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """[N, K] -> [N, groups, G], the last group padded with zeros."""
    length = scheme.group_of(weight.shape[1])
    padded = F.pad(weight, (0, -weight.shape[1] % length))
    return padded.unflatten(1, (-1, length))


def from_groups(grouped: Tensor, in_features: int) -> Tensor:
    """Inverse of `to_groups`: [N, groups, G] -> [N, K]."""
    return grouped.flatten(1)[:, :in_features]


def group_grid(grouped: Tensor, scheme: QuantScheme, shrink: Tensor | float = 1.0) -> GroupGrid:
    """Chooses scale and zero point of every group from its extremes.

    With zero points the range [min(w, 0), max(w, 0)] is cut into 2^bits - 1 steps; without, [-max|w|, max|w|] into
    2^bits - 2, as llm-awq does. The range always holds 0: a group of one sign would otherwise need a zero point
    outside the codes.

    Args:
        grouped: fp32 [N, groups, G].
        scheme: Bits and kind.
        shrink: Factor on the range, broadcastable to [N, groups, 1]; below 1 clips the extremes.
    """
    if scheme.zero_point:
        low = grouped.amin(dim=-1, keepdim=True).clamp(max=0) * shrink
        high = grouped.amax(dim=-1, keepdim=True).clamp(min=0) * shrink
        scales = _as_half((high - low) / (scheme.levels - 1))
        zeros = (-low / scales).round().clamp(0, scheme.levels - 1)
    else:
        largest = grouped.abs().amax(dim=-1, keepdim=True) * shrink
        scales = _as_half(largest / (scheme.symmetric_zero - 1))
        zeros = torch.full_like(scales, scheme.symmetric_zero)
    return GroupGrid(scales, zeros)


def round_to_codes(grouped: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Tensor:
    """Nearest codes, as fp32 integers in [0, 2^bits), [N, groups, G]."""
    return torch.round(grouped / grid.scales).add_(grid.zeros).clamp_(0, scheme.levels - 1)


def fake_quantize(weight: Tensor, scheme: QuantScheme, shrink: Tensor | float = 1.0) -> Tensor:
    """The weight after rounding, fp32 [N, K]: what `quantize(...).dequantize()` returns."""
    grouped = to_groups(weight, scheme)
    grid = group_grid(grouped, scheme, shrink)
    codes = round_to_codes(grouped, grid, scheme)
    return from_groups(codes.sub_(grid.zeros).mul_(grid.scales), weight.shape[1])


def quantize(
    weight: Tensor, scheme: QuantScheme, *, shrink: Tensor | float = 1.0, bias: Tensor | None = None, where: str = ""
) -> QuantizedLinear:
    """Rounds one linear.

    Args:
        weight: fp32 [N, K].
        scheme: Bits, groups, zero points.
        shrink: See `group_grid`; [N, groups, 1] or a number.
        bias: fp32 [N].
        where: Name of the layer, for errors.

    Raises:
        CheckpointError: A step size is beyond fp16 or not a number.
    """
    grouped = to_groups(weight, scheme)
    grid = group_grid(grouped, scheme, shrink)
    if not torch.isfinite(grid.scales).all():
        raise CheckpointError(
            f"weights up to {float(weight.abs().max()):.4g} need step sizes that fp16 cannot hold.",
            where=where,
            fix="check the checkpoint; weights of this size are not those of a trained model.",
        )
    codes = from_groups(round_to_codes(grouped, grid, scheme), weight.shape[1])
    return QuantizedLinear(
        codes=codes.to(torch.uint8).numpy(),
        scales=grid.scales.squeeze(-1).half().numpy(),
        zeros=grid.zeros.squeeze(-1).to(torch.uint8).numpy() if scheme.zero_point else None,
        scheme=scheme,
        bias=None if bias is None else bias.half().numpy(),
    )


def _as_half(scales: Tensor) -> Tensor:
    """Rounds step sizes to fp16; an all-zero group, or one too small for fp16, gets 1, so its codes are its zero."""
    rounded = scales.half().float()
    return torch.where(rounded > 0, rounded, torch.where(rounded == 0, torch.ones_like(rounded), rounded))
