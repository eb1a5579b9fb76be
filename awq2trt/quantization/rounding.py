"""Rounding weights to codes: the reference math of every method (AWQ paper, equation 1), in PyTorch.

In: fp32 weights [N, K] and a grid for every group, or the range that it must cover. Out: integer codes, fp16 step
sizes, integer zero points. Step sizes are rounded to the type that stores them *before* codes are chosen, so that
storing them loses nothing. Internally K is padded with zeros to complete groups; a zero never widens a range, since
every range contains 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import CheckpointError
from awq2trt.machine.device import host_array
from awq2trt.machine.ranks import Ranks, Share
from awq2trt.scheme import BFLOAT16, QuantizedLinear, QuantScheme


class Bfloat16Steps(QuantScheme):
    """A scheme whose step sizes must be exact in bf16; stored linears have the plain scheme."""


def with_steps_of(scheme: QuantScheme, dtype: str) -> QuantScheme:
    """Returns the scheme whose steps suit a checkpoint of `dtype`, `FLOAT16` or `BFLOAT16`."""
    kind = Bfloat16Steps if dtype == BFLOAT16 else QuantScheme
    return kind(scheme.bits, scheme.group_size, scheme.zero_point)


@dataclass(frozen=True)
class GroupGrid:
    """The rounding grid of every group: w = scales * (code - zeros).

    Attributes:
        scales: Step sizes in fp32, which are exact in the type that stores them, [N, groups, 1].
        zeros: Integers in [0, 2^bits) as fp32, [N, groups, 1].
    """

    scales: Tensor
    zeros: Tensor

    @classmethod
    def of(cls, linear: QuantizedLinear) -> GroupGrid:
        """Returns the grid of a stored linear; step sizes of another type are rounded to that of its scheme."""
        scales = as_step(torch.as_tensor(linear.scales.astype(np.float32)), linear.scheme).unsqueeze(-1)
        if linear.zeros is None:
            return cls(scales, torch.full_like(scales, linear.scheme.symmetric_zero))
        return cls(scales, torch.as_tensor(linear.zeros.astype(np.float32)).unsqueeze(-1))

    def to(self, device: torch.device) -> GroupGrid:
        """Returns the same grid on another device."""
        return GroupGrid(self.scales.to(device), self.zeros.to(device))

    def rows(self, own: slice) -> GroupGrid:
        """Returns the grids of some rows."""
        return GroupGrid(self.scales[own], self.zeros[own])


def to_groups(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """[N, K] -> [N, groups, G]; the last group is padded with zeros."""
    length = scheme.group_of(weight.shape[1])
    padded = F.pad(weight, (0, -weight.shape[1] % length))
    return padded.view(len(padded), padded.shape[1] // length, length)  # no -1: a rank may have no row


def from_groups(grouped: Tensor, in_features: int) -> Tensor:
    """The inverse of `to_groups`: [N, groups, G] -> [N, K]."""
    return grouped.flatten(1)[:, :in_features]


def group_grid(grouped: Tensor, scheme: QuantScheme) -> GroupGrid:
    """The grid that covers the complete range of every group, fp32 [N, groups, G]."""
    low = grouped.amin(dim=-1, keepdim=True).clamp_(max=0)
    high = grouped.amax(dim=-1, keepdim=True).clamp_(min=0)
    return range_grid(low, high, scheme)


def range_grid(low: Tensor, high: Tensor, scheme: QuantScheme) -> GroupGrid:
    """Computes step sizes and zero points for ranges [low, high], low <= 0 <= high.

    With zero points, the range is divided into 2^bits - 1 steps; without them, the range up to the larger end on both
    sides is divided into 2^bits - 2 steps, as in llm-awq. The range contains 0, since a group of one sign would
    otherwise need a zero point outside the codes.
    """
    if scheme.zero_point:
        scales = as_step((high - low) / (scheme.levels - 1), scheme)
        zeros = (-low / scales).round_().clamp_(0, scheme.levels - 1)
    else:
        scales = as_step(torch.maximum(-low, high) / (scheme.symmetric_zero - 1), scheme)
        zeros = torch.full_like(scales, scheme.symmetric_zero)
    return GroupGrid(scales, zeros)


def round_to_codes(grouped: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Tensor:
    """Returns the nearest codes, as fp32 integers in [0, 2^bits), [N, groups, G]."""
    return torch.round(grouped / grid.scales).add_(grid.zeros).clamp_(0, scheme.levels - 1)


@dataclass(frozen=True)
class Rounded:
    """A weight on a grid.

    Attributes:
        codes: Integers in [0, 2^bits) as fp32, [N, K].
        grid: The grid of every group.
    """

    codes: Tensor
    grid: GroupGrid

    @classmethod
    def of(cls, linear: QuantizedLinear) -> Rounded:
        """Takes the codes and grid of a stored linear."""
        return cls(torch.as_tensor(linear.codes).float(), GroupGrid.of(linear))

    def to(self, device: torch.device) -> Rounded:
        """Returns the same weight on another device."""
        return Rounded(self.codes.to(device), self.grid.to(device))

    def narrow(self) -> Rounded:
        """The same with codes as bytes, to be kept or sent."""
        return Rounded(self.codes.to(torch.uint8), self.grid)

    @classmethod
    def of_pieces(cls, pieces: Sequence[Rounded]) -> Rounded:
        """Joins the rows of several into one weight."""
        if len(pieces) == 1:
            return pieces[0]
        grid = GroupGrid(
            torch.cat([piece.grid.scales for piece in pieces]), torch.cat([piece.grid.zeros for piece in pieces])
        )
        return cls(torch.cat([piece.codes for piece in pieces]), grid)

    def rows(self, own: slice) -> Rounded:
        """Returns some of its rows."""
        return Rounded(self.codes[own], self.grid.rows(own))

    @classmethod
    def of_ranks(
        cls, own: Sequence[Rounded], shares: Sequence[Share], ranks: Ranks, shape: tuple[int, int], scheme: QuantScheme
    ) -> Rounded:
        """Joins the rows of one weight that the ranks rounded.

        Args:
            own: This rank's shares, in their order, narrow where there are several ranks.
            shares: The shares of all ranks.
            ranks: The ranks.
            shape: N, K of the complete weight.
            scheme: How the rows were rounded.
        """
        if ranks.count == 1:
            return cls.of_pieces(own)
        codes, groups = torch.empty(shape, dtype=torch.uint8), (shape[0], scheme.groups(shape[1]), 1)
        scales, zeros = torch.empty(groups), torch.empty(groups)
        ranks.join_(codes, [part.codes for part in own], shares)
        ranks.join_(scales, [part.grid.scales for part in own], shares)
        ranks.join_(zeros, [part.grid.zeros for part in own], shares)
        return cls(codes.float(), GroupGrid(scales, zeros))

    def dequantize(self, scheme: QuantScheme) -> Tensor:
        """The weight that the codes stand for, fp32 [N, K]."""
        grouped = to_groups(self.codes, scheme)
        return from_groups((grouped - self.grid.zeros) * self.grid.scales, self.codes.shape[1])

    def to_linear(self, scheme: QuantScheme, *, bias: Tensor | None = None, where: str = "") -> QuantizedLinear:
        """Converts it to the form that later stages use.

        Args:
            scheme: How the codes were made.
            bias: The bias, fp32 [N].
            where: Name of the layer, for errors.

        Raises:
            CheckpointError: A step size is beyond fp16 or not a number.
        """
        if not torch.isfinite(self.grid.scales).all():
            raise CheckpointError(
                "the weights need step sizes that fp16 cannot hold.",
                where=where,
                fix="check the checkpoint; a trained model has no weights of this size.",
            )
        return QuantizedLinear(
            codes=host_array(self.codes.to(torch.uint8)),
            scales=self.grid.scales.squeeze(-1).half().numpy(force=True),
            zeros=self.grid.zeros.squeeze(-1).to(torch.uint8).numpy(force=True) if scheme.zero_point else None,
            scheme=scheme,
            bias=None if bias is None else bias.half().numpy(force=True),
        )


def round_to_grid(weight: Tensor, grid: GroupGrid, scheme: QuantScheme) -> Rounded:
    """Rounds fp32 [N, K] to the nearest codes on a given grid."""
    return Rounded(from_groups(round_to_codes(to_groups(weight, scheme), grid, scheme), weight.shape[1]), grid)


def fake_quantize(weight: Tensor, scheme: QuantScheme) -> Tensor:
    """Returns the weight after rounding to nearest on the complete ranges of its groups, fp32 [N, K]."""
    grouped = to_groups(weight, scheme)
    grid = group_grid(grouped, scheme)
    codes = round_to_codes(grouped, grid, scheme)
    return from_groups(codes.sub_(grid.zeros).mul_(grid.scales), weight.shape[1])


def as_step(scales: Tensor, scheme: QuantScheme) -> Tensor:
    """Rounds step sizes to the type that stores them; always to fp16, too, the only one that AutoAWQ's layout has.

    A group of zeros, or one that is too small for fp16, gets a step size of 1, so that its codes are its zero point.
    """
    # A number with bf16's 8 bits has no more bits after rounding to fp16, whatever its magnitude.
    rounded = (scales.bfloat16() if isinstance(scheme, Bfloat16Steps) else scales).half().float()
    return torch.where(rounded > 0, rounded, torch.where(rounded == 0, torch.ones_like(rounded), rounded))
