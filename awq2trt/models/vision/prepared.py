"""A prepared image, as a vision graph takes it, whatever the family.

In: what an image processor makes of an image, and how its pieces are placed. Out: the inputs of a vision graph by name,
how many pieces come out, and where these stand. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_ELONGATED: Final = 200
"""Images with a larger ratio of their sides are refused, as by Qwen2-VL's processor: a tower would see nothing in them.
"""

MOST_TILES: Final = 1024
"""Models that make more tiles of an image are refused: sixty times as many as the 17 of the largest published one."""


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
        values: fp32: [3, height, width]; if there is a grid, patches [patches, numbers of a patch], or tiles [tiles, 3,
            height, width], of which the last is the whole image, made smaller.
        grid: Grid of the patches or tiles; None for an image that is not divided.
        size: Height and width of the image before, for a model that does not see the margins around its tiles; the
            whole image is then the first of the tiles, and not counted in the grid.
    """

    values: NDArray[np.float32]
    grid: Grid | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class PreparedImage:
    """One image, as a vision graph takes it.

    Attributes:
        inputs: Inputs of the graph by name: fp32, which becomes the graph's own type, or int64.
        pieces: How many pieces the model sees in it, for each of which there is an image token.
        grid: Grid of the pieces, by which a decoder with positions of three numbers places them; None for a decoder
            that counts pieces like words.
        texts: Texts before the pieces of each tile and behind those of the last, where a prompt has such texts. A row
            of the graph's inputs is then a tile, of which it takes one or several at a time.
        order: Which rows of what the graph makes of all tiles are the pieces, int64 [pieces]; rows of its inputs are
            tiles then, too. None if all of them are, in their order.
    """

    inputs: Mapping[str, NDArray[Any]]
    pieces: int
    grid: Grid | None = None
    texts: tuple[str, ...] = ()
    order: NDArray[np.int64] | None = None

    @property
    def tiles(self) -> int:
        """How many tiles with texts it has; an image without such is one."""
        return max(1, len(self.texts) - 1)

    def written(self, marker: str) -> str:
        """The text that stands for it in a prompt: with a marker for each piece if it has texts, else with one."""
        return (marker * (self.pieces // self.tiles)).join(self.texts) if self.texts else marker

    def calls(self, tiles: int = 1) -> Iterator[Mapping[str, NDArray[Any]]]:
        """Inputs of the graph for one call after another, which together see the image.

        Args:
            tiles: Most tiles of a call.
        """
        if not self.texts and self.order is None:
            yield self.inputs
            return
        for first in range(0, max(map(len, self.inputs.values())), tiles):
            yield {name: array[first : first + tiles] for name, array in self.inputs.items()}

    def joined(self, seen: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The pieces, from what the graph makes in one call after another, [rows, channels] each."""
        rows = np.concatenate(seen) if len(seen) > 1 else seen[0]
        return rows if self.order is None else rows[self.order]
