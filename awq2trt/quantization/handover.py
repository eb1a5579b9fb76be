"""Takes finished blocks to the first rank, which keeps all of them in order.

In: blocks, each from the rank that quantized it, or from all if they share every block. Out: each as it is stored, with
the residual streams behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awq2trt.machine.behind import Take, working_behind
from awq2trt.machine.ranks import Ranks
from awq2trt.models.decoder import Shown
from awq2trt.progress import Advance
from awq2trt.quantization.block import QuantizedBlock
from awq2trt.quantization.store import StoredBlock
from awq2trt.tracing import span


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


Finish = Callable[[int, Found | None, Streams | None], None]


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

    @contextmanager
    def under_way(self) -> Iterator[Finish]:
        """Lets finished blocks be on their way while the next is quantized; all have arrived when the context ends.

        Yields:
            What takes a block's number; the block, or None if another rank has it; and on the first rank the streams
            behind it, for all windows. It waits if too many are on their way.
        """
        with working_behind(min(1, self._most_behind)) as store, working_behind(self._most_behind) as behind:

            def finish(layer: int, found: Found | None, after: Streams | None) -> None:
                if found is not None or self.ranks.first:  # otherwise there is nothing to do, and nothing to wait for
                    behind(partial(self._finish, store, layer, found, after))

            yield finish

    @property
    def _most_behind(self) -> int:
        """How many blocks may be on their way.

        A CPU alone does everything in turn, since it would take the time from what it computes. The first of several
        ranks may have to wait for a block of each of the others.
        """
        if self.apart and self.ranks.count > 1:
            return self.ranks.count if self.ranks.first else 1
        return 0 if torch.empty(0).is_cpu else 1

    def _finish(self, store: Take, layer: int, found: Found | None, after: Streams | None) -> None:
        """Has a block stored on the first rank, while the next is packed or received; or sends it there."""
        if self.ranks.first and after is not None:
            packed, largest = self._received(layer) if found is None else self._packed(layer, found)
            store(partial(self._keep, layer, Link(packed, after, largest)))
        elif self.apart and found is not None:
            self._send(layer, *self._packed(layer, found))

    def _keep(self, layer: int, link: Link) -> None:
        with span("store", block=layer):
            self.outcome.keep(layer, link)
        turns, done = self.ranks.count if self.apart else 1, layer + 1 - self.first
        if done % turns == 0 or layer + 1 == self.layers:
            self.advance((done - 1) % turns + 1)

    def _owner(self, layer: int) -> int:
        return (layer - self.first) % self.ranks.count

    def _packed(self, layer: int, found: Found) -> tuple[StoredBlock, float]:
        with span("pack", block=layer):
            return self.outcome.pack(layer, found.block), found.largest

    def _send(self, layer: int, block: StoredBlock, largest: float) -> None:
        said = [*block.tensors], [*block.search], dict(block.reports), largest
        with span("send", block=layer):
            self.ranks.send(said, [*block.tensors.values(), *block.search.values()])

    def _received(self, layer: int) -> tuple[StoredBlock, float]:
        with span("receive", block=layer):
            (tensors, search, reports, largest), arrays = self.ranks.received(self._owner(layer))
        of_tensors = dict(zip(tensors, arrays, strict=False))
        return StoredBlock(of_tensors, reports, dict(zip(search, arrays[len(tensors) :], strict=True))), largest
