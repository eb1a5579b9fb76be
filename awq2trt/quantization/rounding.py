"""Rounding weights to codes: the reference math of every method (AWQ paper, equation 1), in PyTorch.

In: fp32 weights [N, K] and a grid for every group, or the range to hold. Out: integer codes, fp16 step sizes, integer
zero points. Step sizes are rounded to the type that stores them *before* codes are chosen, so a checkpoint's scales
lose nothing. K is padded with zeros to whole groups inside; a zero never widens a range, since every range holds 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import CheckpointError
from awq2trt.machine.ranks import Ranks
from awq2trt.scheme import BFLOAT16, QuantizedLinear, QuantScheme


class Bfloat16Steps(QuantScheme):
    """A scheme by which step sizes are chosen that bf16 holds; what is stored is as of the scheme itself."""


def with_steps_of(scheme: QuantScheme, dtype: str) -> QuantScheme:
    """The scheme by which steps are chosen for a checkpoint of `dtype`, `FLOAT16` or `BFLOAT16`."""
    kind = Bfloat16Steps if dtype == BFLOAT16 else QuantScheme
    return kind(scheme.bits, scheme.group_size, scheme.zero_point)


@dataclass(frozen=True)
class GroupGrid:
    """The rounding grid of every group: w = scales * (code - zeros).

    Attributes:
        scales: fp32 values that the type which stores them holds exactly, [N, groups, 1].
        zeros: Integers in [0, 2^bits) as fp32, [N, groups, 1].
    """

    scales: Tensor
    zeros: Tensor

    @classmethod
    def of(cls, linear: QuantizedLinear) -> GroupGrid:
        """That of a stored linear; step sizes of another type are rounded to its scheme's."""
        scales = as_step(torch.as_tensor(linear.scales.astype(np.float32)), linear.scheme).unsqueeze(-1)
        if linear.zeros is None:
            return cls(scales, torch.full_like(scales, linear.scheme.symmetric_zero))
        return cls(scales, torch.as_tensor(linear.zeros.astype(np.float32)).unsqueeze(-1))

    def to(self, device: torch.device) -> GroupGrid:
        """The same on another device."""
        return GroupGrid(self.scales.to(device), self.zeros.to(device))


def to_groups(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """[N, K] -> [N, groups, G], the last group padded with zeros."""
    length = scheme.group_of(weight.shape[1])
    padded = F.pad(weight, (0, -weight.shape[1] % length))
    return padded.view(len(padded), padded.shape[1] // length, length)  # no -1: a rank may have no row


def from_groups(grouped: Tensor, in_features: int) -> Tensor:
    """Inverse of `to_groups`: [N, groups, G] -> [N, K]."""
    return grouped.flatten(1)[:, :in_features]


def group_grid(grouped: Tensor, scheme: QuantScheme) -> GroupGrid:
    """The grid that holds the whole range of every group, fp32 [N, groups, G]."""
    low = grouped.amin(dim=-1, keepdim=True).clamp_(max=0)
    high = grouped.amax(dim=-1, keepdim=True).clamp_(min=0)
    return range_grid(low, high, scheme)


def range_grid(low: Tensor, high: Tensor, scheme: QuantScheme) -> GroupGrid:
    """Step size and zero point for ranges [low, high], low <= 0 <= high.

    With zero points the range is cut into 2^bits - 1 steps; without, the larger of the two ends both ways into
    2^bits - 2, as llm-awq does. The range holds 0: a group of one sign would otherwise need a zero point outside the
    codes.
    """
    if scheme.zero_point:
        scales = as_step((high - low) / (scheme.levels - 1), scheme)
        zeros = (-low / scales).round_().clamp_(0, scheme.levels - 1)
    else:
        scales = as_step(torch.maximum(-low, high) / (scheme.symmetric_zero - 1), scheme)
        zeros = torch.full_like(scales, scheme.symmetric_zero)
    return GroupGrid(scales, zeros)


def round_to_codes(grouped: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Tensor:
    """Nearest codes, as fp32 integers in [0, 2^bits), [N, groups, G]."""
    return torch.round(grouped / grid.scales).add_(grid.zeros).clamp_(0, scheme.levels - 1)


@dataclass(frozen=True)
class Rounded:
    """A weight on a grid.

    Attributes:
        codes: Integers in [0, 2^bits) as fp32, [N, K].
        grid: Of every group.
    """

    codes: Tensor
    grid: GroupGrid

    @classmethod
    def of(cls, linear: QuantizedLinear) -> Rounded:
        """A stored linear."""
        return cls(torch.as_tensor(linear.codes.astype(np.float32)), GroupGrid.of(linear))

    def to(self, device: torch.device) -> Rounded:
        """The same on another device."""
        return Rounded(self.codes.to(device), self.grid.to(device))

    @classmethod
    def of_pieces(cls, pieces: Sequence[Rounded]) -> Rounded:
        """One weight of the rows of several."""
        if len(pieces) == 1:
            return pieces[0]
        grid = GroupGrid(
            torch.cat([piece.grid.scales for piece in pieces]), torch.cat([piece.grid.zeros for piece in pieces])
        )
        return cls(torch.cat([piece.codes for piece in pieces]), grid)

    def rows(self, own: slice) -> Rounded:
        """Some rows of it."""
        return Rounded(self.codes[own], GroupGrid(self.grid.scales[own], self.grid.zeros[own]))

    def joined(self, ranks: Ranks, length: int, unit: int) -> Rounded:
        """Every rank's share of the rows of one weight put together.

        Args:
            ranks: Each gives its `Ranks.share`.
            length: Rows of all.
            unit: Rows that stay together.
        """
        if ranks.count == 1:
            return self
        codes, scales, zeros = (
            ranks.joined(part, length, unit) for part in (self.codes.to(torch.uint8), self.grid.scales, self.grid.zeros)
        )
        return Rounded(codes.float(), GroupGrid(scales, zeros))

    def dequantize(self, scheme: QuantScheme) -> Tensor:
        """The weight that the codes stand for, fp32 [N, K]."""
        grouped = to_groups(self.codes, scheme)
        return from_groups((grouped - self.grid.zeros) * self.grid.scales, self.codes.shape[1])

    def to_linear(self, scheme: QuantScheme, *, bias: Tensor | None = None, where: str = "") -> QuantizedLinear:
        """As the stages after this one take it.

        Args:
            scheme: How the codes were made.
            bias: fp32 [N].
            where: Name of the layer, for errors.

        Raises:
            CheckpointError: A step size is beyond fp16 or not a number.
        """
        if not torch.isfinite(self.grid.scales).all():
            raise CheckpointError(
                "the weights need step sizes that fp16 cannot hold.",
                where=where,
                fix="check the checkpoint; weights of this size are not those of a trained model.",
            )
        return QuantizedLinear(
            codes=self.codes.to(torch.uint8).numpy(force=True),
            scales=self.grid.scales.squeeze(-1).half().numpy(force=True),
            zeros=self.grid.zeros.squeeze(-1).to(torch.uint8).numpy(force=True) if scheme.zero_point else None,
            scheme=scheme,
            bias=None if bias is None else bias.half().numpy(force=True),
        )


def round_to_grid(weight: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Rounded:
    """Nearest codes of fp32 [N, K] on a given grid."""
    return Rounded(from_groups(round_to_codes(to_groups(weight, scheme), grid, scheme), weight.shape[1]), grid)


def fake_quantize(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """The weight after rounding to nearest, on its groups' whole ranges, fp32 [N, K]."""
    grouped = to_groups(weight, scheme)
    grid = group_grid(grouped, scheme)
    codes = round_to_codes(grouped, grid, scheme)
    return from_groups(codes.sub_(grid.zeros).mul_(grid.scales), weight.shape[1])


def as_step(scales: Tensor, scheme: QuantScheme) -> Tensor:
    """Rounds step sizes to the type that stores them; always to what fp16 holds, too, which is all that AutoAWQ's has.

    An all-zero group, or one too small for fp16, gets 1, so its codes are its zero.
    """
    # What has bf16's 8 bits has no more after rounding to fp16, whatever its magnitude.
    rounded = (scales.bfloat16() if isinstance(scheme, Bfloat16Steps) else scales).half().float()
    return torch.where(rounded > 0, rounded, torch.where(rounded == 0, torch.ones_like(rounded), rounded))
