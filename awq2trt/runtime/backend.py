"""The interface of everything that runs a decoder: a conversation's cache, and a call from tokens to scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.tables import Tables
from awq2trt.runtime.visible_ends import VisibleEnds


class Backend(Protocol):
    """A model together with the cache of one conversation."""

    @property
    def capacity(self) -> int:
        """Number of positions that the cache can hold."""

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""

    def reset(self) -> None:
        """Forgets the conversation."""

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens to the conversation.

        Args:
            tokens: At least one; at most `capacity - position`.

        Returns:
            Scores of the next token, float32 [V].

        Raises:
            UsageError: The cache cannot hold them.
        """


class Embeds(Protocol):
    """What a decoder of embeddings reads; `ort.embedder` and `trt.embedder` make it."""

    @property
    def tables(self) -> Tables | None:
        """Tables that the decoder reads, too; None for one without any."""

    def see(self, image: PreparedImage) -> NDArray[np.float32]:
        """Pieces of a prepared image, [pieces, W]."""

    def show(self, images: Sequence[PreparedImage]) -> None:
        """Looks at images whose tokens are among those that come next, in their order."""

    def forget(self) -> None:
        """Forgets the conversation, and images whose tokens did not come."""

    def rows(self, tokens: Sequence[int]) -> NDArray[Any]:
        """What the decoder reads of the next tokens, [S, W], as `parted` takes it; `tables` then know them, too.

        In fp32, or as `bits.STORED` has the decoder's type.
        """


class Conversation:
    """The state of a conversation: the part of `Backend` that is the same for all backends.

    Args:
        capacity: Number of positions that the cache can hold.
        vocab_size: Length of a row of logits.
        embedder: What makes what the decoder reads; None for one that reads tokens.
    """

    def __init__(self, capacity: int, vocab_size: int, embedder: Embeds | None = None) -> None:
        self._capacity = capacity
        self._vocab_size = vocab_size
        self._embedder = embedder
        self._position = 0

    @property
    def capacity(self) -> int:
        """Number of positions that the cache can hold."""
        return self._capacity

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return self._vocab_size

    @property
    def position(self) -> int:
        """Number of tokens in the cache."""
        return self._position

    def reset(self) -> None:
        """Forgets the conversation. The cache's old contents stay and are masked."""
        self._position = 0
        if self._embedder is not None:
            self._embedder.forget()

    def see(self, image: PreparedImage) -> NDArray[np.float32]:
        """Pieces of a prepared image, [pieces, W].

        Raises:
            UsageError: It is a model of text.
        """
        return self._eyes().see(image)

    def show(self, images: Sequence[PreparedImage]) -> None:
        """Shows images, whose tokens are among those that are appended next, in their order.

        Raises:
            UsageError: It is a model of text.
        """
        self._eyes().show(images)

    @property
    def _tables(self) -> Tables | None:
        """Tables that the decoder reads; None for one without any."""
        return None if self._embedder is None else self._embedder.tables

    def _calls(self, tokens: Sequence[int], longest: int) -> Iterator[Sequence[int]]:
        """Divides tokens into calls of at most `longest`, none of which cuts an image whose tokens see each other.

        Raises:
            UsageError: More tokens than that see each other.
        """
        if isinstance(self._tables, VisibleEnds):
            yield from self._tables.calls(tokens, longest)
            return
        for start in range(0, len(tokens), longest):
            yield tokens[start : start + longest]

    def _eyes(self) -> Embeds:
        if self._embedder is None:
            raise UsageError("a model of text cannot be shown images.", where="images", fix="load a model that sees.")
        return self._embedder

    def _require_room(self, tokens: Sequence[int]) -> None:
        """Refuses tokens that cannot be appended.

        Raises:
            UsageError: There are no tokens, or the cache cannot hold them.
        """
        if not tokens:
            raise UsageError("got no tokens to append, expected at least one.", where="forward")
        if self._position + len(tokens) > self._capacity:
            raise UsageError(
                f"{self._position} tokens and {len(tokens)} more do not fit into the cache of {self._capacity}.",
                where="cache",
                fix="use a shorter text, or export the model again with a larger --max-seq-len.",
            )


@runtime_checkable
class SeeingBackend(Backend, Protocol):
    """A backend that can be shown images, if its model sees."""

    def see(self, image: PreparedImage) -> NDArray[np.float32]:
        """As of `Conversation`."""

    def show(self, images: Sequence[PreparedImage]) -> None:
        """As of `Conversation`."""


@runtime_checkable
class ChoosingBackend(Backend, Protocol):
    """A backend that finds the best token on the scores' device, and copies no scores to the host."""

    def choose(self, tokens: Sequence[int]) -> int:
        """Appends tokens to the conversation; returns the token with the largest score, or the first of equal ones.

        Args:
            tokens: The same as in `forward`.
        """
