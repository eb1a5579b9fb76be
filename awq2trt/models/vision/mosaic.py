"""Models that see an image made smaller, then its tiles side by side as one large image (LLaVA 1.6), as data.

In: sizes, and grids of tiles. Out: shapes of tensors, and the order in which pieces of all tiles come: those of the
whole image first, then those of the large image, row by row without what its margins became, with a learned piece
behind every row. NumPy only.

Source: `LlavaNextModel.pack_image_features` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.description import SeeingSpec, VisionSpec
from awq2trt.models.vision.prepared import MOST_TILES, Grid, Pixels, PreparedImage

PINPOINTS: Final = "image_grid_pinpoints"
"""Key of config.json, of preprocessor_config.json and of an exported model's settings: heights and widths of the large
images that a model sees. No other family has it."""

_WHOLE_ONLY: Final = Grid(1, 1, 1)
"""Grid of an example, which has no tiles: the whole image alone."""

_DECIMALS: Final = 7
"""To so many transformers rounds a length before it cuts off what is behind the point."""

Sizes = tuple[tuple[int, int], ...]
"""Heights and widths."""

_DEFAULT_SIZES: Final[Sizes] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""Those of a file without any, which are the published models'."""

WANTED_SIZES: Final = f"heights and widths that are multiples of the tower's {{}} pixels, {MOST_TILES} tiles at most"
"""What `sizes_in` wants, in words."""


@dataclass(frozen=True, kw_only=True)
class MosaicSpec(SeeingSpec):
    """How a model sees images in tiles of its tower's size.

    Attributes:
        tile: How it sees a tile.
        newline: Full name of the tensor that stands at the end of every row of pieces.
        sizes: Heights and widths that an image may be given in pixels.
    """

    tile: VisionSpec
    newline: str
    sizes: Sizes

    @property
    def layout(self) -> MosaicLayout:
        """How pieces of tiles are ordered."""
        return MosaicLayout(self.tile.tower.image_size, self.tile.tower.patch_size)

    @property
    def depth(self) -> int:
        """Layers of its tower, as far as they are run."""
        return self.tile.depth

    @property
    def idle(self) -> tuple[str, ...]:
        """Prefixes of the tensors of layers that are stored, but not run."""
        return self.tile.idle

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """Shape of a prepared tile."""
        return self.tile.pixels_shape

    @property
    def example_grid(self) -> Grid:
        """The whole image alone, since the tower sees each tile by itself."""
        return _WHOLE_ONLY

    @property
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of what the vision graph makes of a tile: its pieces, and one for the end of a row."""
        pieces, channels = self.tile.pieces_shape
        return pieces + 1, channels

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the tower and the projector."""
        return self.tile.modules

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return {**self.tile.shapes(), self.newline: (self.tile.projector.out_features,)}

    def record(self) -> VisionRecord:
        """What a runtime needs to know, for the manifest."""
        return VisionRecord(
            family=self.family,
            image_token=self.image_token,
            tokens_per_image=None,
            settings={
                "image_size": self.tile.tower.image_size,
                "patch_size": self.tile.tower.patch_size,
                PINPOINTS: [list(size) for size in self.sizes],
            },
        )


@dataclass(frozen=True)
class MosaicLayout:
    """How pieces of tiles are ordered; a manifest has it under `settings`.

    Attributes:
        image_size: Pixels along a tile's side.
        patch_size: Pixels along the side of a patch, each of which becomes a piece.
    """

    image_size: int
    patch_size: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> MosaicLayout:
        """Reads it from the `settings` of a manifest's vision record."""
        return cls(*(int(settings[key]) for key in ("image_size", "patch_size")))

    @property
    def side(self) -> int:
        """Pieces along a tile's side."""
        return self.image_size // self.patch_size

    def most_pieces(self, size: tuple[int, int]) -> int:
        """Pieces of an image that fills a large image of this height and width in pixels."""
        rows, columns = (length // self.image_size * self.side for length in size)
        return self.side**2 + rows * (columns + 1)

    def order(self, grid: Grid, size: tuple[int, int]) -> NDArray[np.int64]:
        """Which of the rows that the vision graph makes of all tiles are an image's pieces, in their order.

        Args:
            grid: Grid of the tiles behind the whole image.
            size: Height and width of the image before it was prepared.

        Returns:
            int64 [pieces].
        """
        side, newline = self.side, self.side**2
        of_tile = np.arange(newline).reshape(side, side)
        # The first row of each tile behind the whole image; every tile has one for a newline behind its pieces.
        first = (np.arange(grid.cells).reshape(grid.rows, grid.columns) + 1) * (newline + 1)
        large = first[:, None, :, None] + of_tile[None, :, None, :]  # [rows, side, columns, side]
        kept = _without_margins(large.reshape(grid.rows * side, grid.columns * side), size)
        ended = np.pad(kept, ((0, 0), (0, 1)), constant_values=newline)
        return np.concatenate((of_tile.reshape(-1), ended.reshape(-1))).astype(np.int64)

    def prepared(self, pixels: Pixels) -> PreparedImage:
        """An image of prepared tiles, as the vision graph takes it; a whole image without tiles is one row."""
        tiles = len(pixels.values)
        if tiles == 1:
            order = np.arange(self.side**2 + 1)
        else:
            assert pixels.grid is not None
            assert pixels.size is not None
            order = self.order(pixels.grid, pixels.size)
        return PreparedImage({PIXEL_VALUES: pixels.values}, len(order), order=order)


def sizes_in(config: Mapping[str, Any], side: int) -> Sizes:
    """Heights and widths that a configuration says an image may be given; none if they make no sense.

    Args:
        config: config.json or preprocessor_config.json; if it has no such key, the sizes are transformers' own.
        side: Pixels along a tile's side, of which all of them are multiples.
    """
    value = config.get(PINPOINTS)
    if value is None:
        return sizes_in({PINPOINTS: [*_DEFAULT_SIZES]}, side)
    sizes = []
    for size in value if isinstance(value, list) else []:
        if not isinstance(size, list | tuple) or len(size) != 2:
            return ()
        height, width = size
        if not all(type(length) is int and length > 0 and length % side == 0 for length in size):
            return ()
        if height * width > MOST_TILES * side**2:
            return ()
        sizes.append((height, width))
    return tuple(sizes)


def _without_margins(large: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Leaves out rows or columns that lie in the margins around an image.

    Args:
        large: Anything for each piece of the large image, [rows, columns].
        size: Height and width of the image before it was prepared.

    Returns:
        [rows, columns] without those of the margins.
    """
    height, width = size
    rows, columns = large.shape
    if width / height > columns / rows:
        margin = (rows - _whole(height * (columns / width))) // 2
        return large[margin : rows - margin]
    margin = (columns - _whole(width * (rows / height))) // 2
    return large[:, margin : columns - margin]


def _whole(length: float) -> int:
    """Cuts off what is behind the point, as transformers does."""
    return int(round(length, _DECIMALS))
