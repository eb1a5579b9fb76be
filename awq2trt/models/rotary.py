"""Rotates queries and keys by their positions.

In: a `RopeSpec` and positions. Out: queries and keys, rotated by tables of cosines and sines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.models.families import RopeSpec

Windows = slice | Tensor | None
"""Which of a runner's sequences: indices; None for all."""


class Rotary:
    """cos and sin of one rotary embedding for the first positions; `for_positions` computes them.

    Args:
        rope: The embedding.
        short: cos and sin for texts within the original length, fp32 [positions, rotary_dim / 2], or [sequences,
            positions, rotary_dim / 2] where each sequence has its own.
    """

    def __init__(self, rope: RopeSpec, short: tuple[Tensor, Tensor]) -> None:
        self._rope = rope
        self._short = short
        self._long = (0, short)  # a length and its tables

    @classmethod
    def for_positions(cls, rope: RopeSpec, positions: int) -> Rotary:
        """Makes tables for texts of at most `positions` tokens."""
        return cls(rope, _rotary_tables(rope, positions, 0))

    def placed(self, positions: Tensor) -> Rotary:
        """The same for sequences with positions of three numbers.

        Args:
            positions: Frame, row and column of every token, int64 [sequences, 3, S].
        """
        of_pair = torch.as_tensor(self._rope.followed)
        rows = positions[:, of_pair].mT  # [sequences, S, rotary_dim / 2]
        cos, sin = (table[rows, torch.arange(len(of_pair))] for table in self._short)
        return Rotary(self._rope, (cos, sin))

    def rotate(self, x: Tensor, start: int, windows: Windows = None) -> Tensor:
        """Rotates the last queries or keys, [batch, heads, S, head_dim] at positions start .. start + S - 1.

        Args:
            x: The queries or keys.
            start: The first position.
            windows: Which of the sequences they are, where each has its own tables.
        """
        end = start + x.shape[2]
        cos, sin = self._of_length(end)
        if cos.ndim == 3:
            chosen = slice(None) if windows is None else windows
            cos, sin = (table[chosen].unsqueeze(1) for table in (cos, sin))  # [batch, 1, positions, rotary_dim / 2]
        cos, sin = (table[..., start:end, :] for table in (cos, sin))
        first, second = x[..., : self._rope.rotary_dim].chunk(2, dim=-1)
        rotated = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat((*rotated, x[..., self._rope.rotary_dim :]), dim=-1)

    def _of_length(self, length: int) -> tuple[Tensor, Tensor]:
        """Tables for a sequence of `length` tokens, kept for the next block, which asks for the same ones."""
        if not self._rope.is_long(length):
            return self._short
        if self._long[0] != length:
            self._long = (length, _rotary_tables(self._rope, len(self._short[0]), length))
        return self._long[1]


def _rotary_tables(rope: RopeSpec, positions: int, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin for a text of `length` tokens, fp32 [positions, rotary_dim / 2]."""
    cos, sin = rope.tables(positions, length)
    return torch.as_tensor(cos), torch.as_tensor(sin)
