"""Which rank rounds which rows of a block's linears, where ranks share every block.

In: the linears' shapes, the ranks. Out: shares that together are all rows. CPUs take as many rows each of every linear.
A GPU's time for a linear is, up to thousands of rows, that of its calls, one after another for every group of columns,
whatever the number of rows: so GPUs are dealt pieces as large as one alone works on, which also leaves the bits of
products as they are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from awq2trt.machine.ranks import Ranks, Share

PIECE_WEIGHTS: Final = 1 << 26
"""Number of weights that are rounded at once: 256 MiB in fp32, of which a dozen copies exist. Linears of Llama-3-8B are
smaller, and those of Llama-2-70B are cut, always in the same way, since the bits of a product depend on the cut."""

_BUSY_WEIGHTS: Final = 1 << 28
"""Weights of a linear for which a GPU computes about as long as it takes to make the calls, estimated."""


@dataclass(frozen=True)
class Rows:
    """A linear, as far as dealing asks.

    Attributes:
        length: Rows.
        width: Columns.
        unit: Rows that are rounded together.
    """

    length: int
    width: int
    unit: int

    def pieces(self) -> Iterator[slice]:
        """Rows that are worked on at once, in whole units; at least one piece."""
        size = max(1, PIECE_WEIGHTS // (self.unit * self.width)) * self.unit
        for start in range(0, max(self.length, 1), size):
            yield slice(start, min(start + size, self.length))


def deal(linears: Mapping[str, Rows], ranks: Ranks) -> dict[str, list[Share]]:
    """The shares of every linear, the same on every rank.

    Args:
        linears: Rows of a block's linears, by name.
        ranks: The ranks that share the work; PyTorch computes on the same kind of device for each of them.
    """
    if ranks.count == 1 or not calls_set_the_time():
        return {name: ranks.shares(rows.length, rows.unit) for name, rows in linears.items()}
    pieces = [(_cost(rows, piece), name, piece) for name, rows in linears.items() for piece in rows.pieces()]
    dealt, loads = {name: list[Share]() for name in linears}, [0.0] * ranks.count
    for cost, name, piece in sorted(pieces, key=lambda found: found[0], reverse=True):
        rank = loads.index(min(loads))
        loads[rank] += cost
        dealt[name].append(Share(piece, rank))
    return {name: sorted(shares, key=lambda share: share.rows.start) for name, shares in dealt.items()}


def calls_set_the_time() -> bool:
    """Whether it matters little how many rows of a linear are worked on at once: on a GPU."""
    return not torch.empty(0).is_cpu


def dealt_unevenly(dealt: Mapping[str, Sequence[Share]], ranks: Ranks) -> bool:
    """Whether a rank may have to wait for another at one linear, and not at the next."""
    return any(len({share.rank for share in shares}) < ranks.count for shares in dealt.values())


def _cost(rows: Rows, piece: slice) -> float:
    """Relative cost of rounding rows on a GPU: calls for every group of columns, and what is computed in them."""
    weights: int = (piece.stop - piece.start) * rows.width
    return rows.width * (1 + weights / _BUSY_WEIGHTS)
