"""Takes finished blocks to the first rank, which keeps all of them in order.

In: blocks, each from the rank that quantized it, or from all if they share every block. Out: each as it is stored, with
the residual streams behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from awq2trt.machine.ranks import Ranks
from awq2trt.models.decoder import Shown
from awq2trt.progress import Advance
from awq2trt.quantization.block import QuantizedBlock
from awq2trt.quantization.store import StoredBlock


@dataclass(frozen=True)
class Streams:
    """The state of the chain: residual streams before a block.

    Attributes:
        hidden: fp32 [samples, seqlen, hidden_size]: the quantized model's if the method is sequential.
        original: The original model's, for a method that compares blocks with it.
        positions: Positions of the tokens, as `BlockRunner.placed` takes them: int64 [samples, 3, seqlen]; None where
            tokens are counted one by one.
        media: What blocks see of the windows' images, as `BlockRunner.placed` takes it; None for text alone.
    """

    hidden: Tensor
    original: Tensor | None
    positions: Tensor | None = None
    media: Shown | None = None


@dataclass(frozen=True)
class Found:
    """A block that was just quantized.

    Attributes:
        block: The quantized block.
        largest: Largest magnitude among its activations.
    """

    block: QuantizedBlock
    largest: float


@dataclass(frozen=True)
class Link:
    """A finished block.

    Attributes:
        block: The block as it is stored.
        after: The streams behind it, for all windows.
        largest: Largest magnitude among its activations.
    """

    block: StoredBlock
    after: Streams
    largest: float


@dataclass(frozen=True)
class Outcome:
    """What becomes of finished blocks. Both functions may be called in another thread, while others are quantized.

    Attributes:
        pack: Makes of a block, given its number, what is stored; called on the rank that quantized it.
        keep: Called with every block's number and link, in order, on the first rank.
    """

    pack: Callable[[int, QuantizedBlock], StoredBlock]
    keep: Callable[[int, Link], None]


@dataclass(frozen=True)
class Handover:
    """The way of blocks to the first rank.

    Attributes:
        ranks: All ranks.
        apart: Whether they take blocks in turn; otherwise they share every block.
        first: The first block's number.
        layers: Number of blocks in the model.
        outcome: What becomes of blocks.
        advance: Told how many more are kept. Where ranks take blocks in turn, it is told of all turns at once, since
            they end nearly at the same time.
    """

    ranks: Ranks
    apart: bool
    first: int
    layers: int
    outcome: Outcome
    advance: Advance

    def is_own(self, layer: int) -> bool:
        """Whether this rank has work on a block."""
        return not self.apart or self._owner(layer) == self.ranks.rank

    @property
    def most_behind(self) -> int:
        """How many blocks may be on their way while the next is quantized.

        A CPU alone does everything in turn, since it would take the time from what it computes. The first of several
        ranks may have to wait for a block of each of the others.
        """
        if self.apart and self.ranks.count > 1:
            return self.ranks.count if self.ranks.first else 1
        return 0 if torch.empty(0).is_cpu else 1

    def finish(self, layer: int, found: Found | None, after: Streams | None) -> None:
        """Keeps a block on the first rank, or sends it there.

        Args:
            layer: The block's number.
            found: The block; None on the first rank if another one has it.
            after: The streams behind it, for all windows; None on other ranks.
        """
        if self.ranks.first and after is not None:
            packed, largest = self._received(layer) if found is None else self._packed(layer, found)
            self.outcome.keep(layer, Link(packed, after, largest))
            self._advance(layer)
        elif self.apart and found is not None:
            self._send(*self._packed(layer, found))

    def _owner(self, layer: int) -> int:
        return (layer - self.first) % self.ranks.count

    def _packed(self, layer: int, found: Found) -> tuple[StoredBlock, float]:
        return self.outcome.pack(layer, found.block), found.largest

    def _send(self, block: StoredBlock, largest: float) -> None:
        said = [*block.tensors], [*block.search], dict(block.reports), largest
        self.ranks.send(said, [*block.tensors.values(), *block.search.values()])

    def _received(self, layer: int) -> tuple[StoredBlock, float]:
        (tensors, search, reports, largest), arrays = self.ranks.received(self._owner(layer))
        of_tensors = dict(zip(tensors, arrays, strict=False))
        return StoredBlock(of_tensors, reports, dict(zip(search, arrays[len(tensors) :], strict=True))), largest

    def _advance(self, layer: int) -> None:
        turns, done = self.ranks.count if self.apart else 1, layer + 1 - self.first
        if done % turns == 0 or layer + 1 == self.layers:
            self.advance((done - 1) % turns + 1)
