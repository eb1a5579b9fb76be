"""What runs a decoder, whatever it is: a conversation's cache, and one operation. Tokens in, scores of the next out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Backend(Protocol):
    """One model with the cache of one conversation."""

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold."""

    @property
    def vocab_size(self) -> int:
        """Length of a logits row."""

    @property
    def position(self) -> int:
        """Tokens in the cache."""

    def reset(self) -> None:
        """Forgets the conversation."""

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens to the conversation.

        Args:
            tokens: At least one; at most `capacity - position`.

        Returns:
            Scores of the token that follows, float32 [V].

        Raises:
            UsageError: The cache cannot hold them.
        """


@runtime_checkable
class ChoosingBackend(Backend, Protocol):
    """A backend that finds the best token where the scores are, and copies no scores to the host."""

    def choose(self, tokens: Sequence[int]) -> int:
        """Appends tokens to the conversation; returns the one with the largest score, of equal ones the first.

        Args:
            tokens: As for `forward`.
        """
