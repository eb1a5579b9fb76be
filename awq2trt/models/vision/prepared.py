"""A prepared image, as a vision graph takes it, whatever the family.

In: what an image processor makes of an image, and how its pieces are placed. Out: the inputs of a vision graph by name,
how many pieces come out, and where these stand. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_ELONGATED: Final = 200
"""Images with a larger ratio of their sides are refused, as by Qwen2-VL's processor: a tower would see nothing in them.
"""


class Grid(NamedTuple):
    """Patches of an image, or pieces of one: so many frames, rows and columns."""

    frames: int
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        """All of them."""
        return self.frames * self.rows * self.columns


class Pixels(NamedTuple):
    """What an image processor makes of an image.

    Attributes:
        values: fp32: [3, height, width], or patches [patches, numbers of a patch] if there is a grid.
        grid: Grid of the patches; None for an image that is not cut into patches.
    """

    values: NDArray[np.float32]
    grid: Grid | None = None


@dataclass(frozen=True)
class PreparedImage:
    """One image, as a vision graph takes it.

    Attributes:
        inputs: Inputs of the graph by name: fp32, which becomes the graph's own type, or int64.
        pieces: How many pieces the model sees in it, for each of which there is an image token.
        grid: Grid of the pieces, by which a decoder with positions of three numbers places them; None for a decoder
            that counts pieces like words.
    """

    inputs: Mapping[str, NDArray[Any]]
    pieces: int
    grid: Grid | None = None
