"""Pieces of images in the place of image tokens, whatever runs the graphs that make pieces and rows.

In: prepared images, then tokens. Out: what a decoder of embeddings reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class PlacingEmbedder(ABC):
    """An `awq2trt.runtime.backend.Embeds` without the graphs.

    Args:
        image_token: Stands for a piece of an image among the tokens.
    """

    def __init__(self, image_token: int) -> None:
        self._image_token = image_token
        self._shown: list[NDArray[np.float32]] = []  # pieces whose tokens are still to come, [pieces, H] each

    @abstractmethod
    def see(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pieces of prepared images: [images, 3, side, side] -> [images, pieces, H]."""

    @abstractmethod
    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Rows of tokens, [S, H], which the caller may change."""

    def show(self, pixels: NDArray[np.float32]) -> None:
        """Looks at images whose tokens are among those that come next, in their order."""
        self._shown += [*self.see(pixels)]

    def forget(self) -> None:
        """Forgets images whose tokens did not come."""
        self._shown.clear()

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What the decoder reads of the next tokens, [S, H].

        An image token of no image has its own row, as in transformers: a model may write one, though it means nothing.
        """
        rows = self.embed(tokens)
        places = np.flatnonzero(np.asarray(tokens) == self._image_token)
        while len(places) and self._shown:
            count = min(len(places), len(self._shown[0]))
            rows[places[:count]] = self._shown[0][:count]
            places, rest = places[count:], self._shown[0][count:]
            self._shown[:1] = [rest] if len(rest) else []
        return rows
