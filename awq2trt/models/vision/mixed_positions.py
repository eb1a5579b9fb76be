"""Positions of texts and images in three numbers, frame, row and column, and the rotary tables that follow from them.

In: tokens, and grids of images. Out: positions, and cosines and sines token by token, so that what runs a decoder knows
positions of one number alone: the token's row in the table (mrope of arXiv:2409.12191).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.vision.windowed import Grid


def mixed_positions(tokens: Sequence[int], image_token: int, grids: Sequence[Grid], merge: int) -> NDArray[np.int64]:
    """Frame, row and column of every token, int64 [3, S].

    Three times the same number for a text. An image begins where the text before it ended, and the text behind it goes
    on after the image's longer side.

    Args:
        tokens: Tokens, with an image token for every piece of an image.
        image_token: The image token.
        grids: Grids of the images, in their order.
        merge: Patches along the side of a piece.
    """
    ids, rest = np.asarray(tokens), list(grids)
    parts, start, index = [], 0, 0
    while index < len(ids):
        if ids[index] == image_token and rest:
            frames, rows, columns = rest.pop(0)
            grid = np.indices((frames, rows // merge, columns // merge)).reshape(3, -1)
            parts.append(start + grid)
            start += max(rows, columns) // merge
            index += grid.shape[1]
            continue
        images = np.flatnonzero(ids[index:] == image_token) if rest else np.array([], np.int64)
        length = int(images[0]) if len(images) else len(ids) - index
        parts.append(np.tile(start + np.arange(length), (3, 1)))
        start += length
        index += length
    return np.concatenate(parts, axis=1)


def mixed_tables(
    inv_freq: Sequence[float], sections: Sequence[int], positions: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of every token, fp32 [S, pairs of channels].

    Args:
        inv_freq: Angular frequency of each pair.
        sections: Pairs that follow frame, row and column, one after the other; all of them together.
        positions: int64 [3, S].
    """
    of_pair = np.repeat(np.arange(len(sections)) % 3, sections)  # which of the three numbers
    angles = positions[of_pair].T.astype(np.float32) * np.asarray(inv_freq, np.float32)
    return np.cos(angles), np.sin(angles)
