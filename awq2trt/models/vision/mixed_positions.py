"""Positions of texts and images in three numbers, frame, row and column, and the rotary tables that follow from them.

In: tokens, and grids of images. Out: positions, and cosines and sines token by token, so that what runs a decoder knows
positions of one number alone: the token's row in the table (mrope of arXiv:2409.12191).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.vision.prepared import Grid


class MixedPositions:
    """Counts positions through a text with images, however it comes in parts.

    A text has the same number three times. An image begins where the text before it ended, and the text behind it goes
    on after the image's longer side.

    Args:
        image_token: Stands for a piece of an image; where there is no image for it, it is a token like any other.
        grids: Grids of the pieces of the images, in their order; frames, rows, columns.

    Attributes:
        next: The number of the next token of a text.
    """

    def __init__(self, image_token: int, grids: Iterable[Grid] = ()) -> None:
        self.next = 0
        self._image_token = image_token
        self._grids = deque(grids)
        self._begun: deque[NDArray[np.int64]] = deque()  # positions of the pieces to come of one image, [3] each

    @property
    def awaits(self) -> bool:
        """Whether tokens of images are to come."""
        return bool(self._grids or self._begun)

    def show(self, grids: Iterable[Grid]) -> None:
        """Adds images whose tokens are to come."""
        self._grids.extend(grids)

    def of(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """Frame, row and column of each of the next tokens, int64 [3, S]."""
        positions = np.empty((3, len(tokens)), np.int64)
        for index, token in enumerate(tokens):
            if token == self._image_token and self.awaits:
                positions[:, index] = self._next_piece()
            else:
                positions[:, index] = self.next
                self.next += 1
        return positions

    def _next_piece(self) -> NDArray[np.int64]:
        if not self._begun:
            grid = self._grids.popleft()
            self._begun.extend(self.next + np.indices(grid).reshape(3, -1).T)
            self.next += max(grid.rows, grid.columns)
        return self._begun.popleft()


def mixed_rows(
    table: NDArray[np.float32], followed: NDArray[np.int64], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines or sines of tokens, fp32 [S, pairs of channels].

    Args:
        table: Those of a text, fp32 [positions, pairs].
        followed: Which of the three numbers each pair follows, int64 [pairs].
        positions: int64 [3, S].
    """
    return table[positions[followed].T, np.arange(len(followed))]
