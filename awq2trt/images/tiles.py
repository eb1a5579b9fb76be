"""The image processor of models that see an image in tiles and as a whole.

In: RGB uint8 [height, width, 3]. Out: fp32 [tiles, 3, side, side], the whole image last, and the grid of the others,
bit for bit those of transformers. It needs only NumPy and Pillow.

Source: `Idefics3ImageProcessor` of transformers 5.24, of which `SmolVLMImageProcessor` is a copy, with its Pillow
backend, which is the original one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.images.processor_keys import LONGEST_EDGE, KeyReader, Levels, resized
from awq2trt.models.vision.prepared import MOST_TILES, Grid, Pixels

_DEFAULT_SIDE: Final = 364
_DEFAULT_LONGEST: Final = 4 * _DEFAULT_SIDE
_DEFAULT_MEAN: Final = (0.5, 0.5, 0.5)
_DEFAULT_STD: Final = (0.5, 0.5, 0.5)
"""What the class has where the file says nothing."""

_LONGEST_ALLOWED: Final = 4096
"""No side of an image becomes longer, in pixels, whatever the file says (`MAX_IMAGE_SIZE` of transformers)."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The steps that prepare an image.

    Attributes:
        longest: Pixels along an image's longer side.
        side: Pixels along a tile's side.
        splits: Whether an image is cut into tiles at all; if not, it is made one.
        resample: Pillow's filter.
        levels: What becomes of the numbers of pixels.
    """

    longest: int
    side: int
    splits: bool
    resample: Image.Resampling
    levels: Levels

    @property
    def most(self) -> int:
        """Tiles of the image that has most, with the whole image."""
        along = math.ceil(min(_even(self.longest), _LONGEST_ALLOWED) / self.side)  # those of a square, made even
        return along**2 + 1 if along > 1 and self.splits else 1

    @property
    def largest(self) -> str:
        """The largest image, in words."""
        return f"{self.longest} pixels a side, {self.most} tile{'s' if self.most > 1 else ''} in all"

    def at_most(self, tiles: int) -> Tiles:
        """The same, with at most so many tiles of an image, or with those of images as long as a tile."""
        limited = self
        while limited.most > tiles and limited.longest > self.side:
            limited = replace(self, longest=(limited.longest - 1) // self.side * self.side)
        return limited

    def changes(self) -> dict[str, Any]:
        """How long an image may be, as preprocessor_config.json says it."""
        return {"size": {LONGEST_EDGE: self.longest}}

    def settings(self) -> dict[str, int]:
        """What a manifest says of the limit: nothing, since graphs take one tile at a time."""
        return {}

    def pixels(self, image: NDArray[np.uint8]) -> Pixels:
        """Prepares an image, RGB uint8 [height, width, 3]: tiles row by row, and at last the whole image."""
        image = resized(image, *self._scaled(*image.shape[:2]), self.resample)
        if not self.splits:
            return Pixels(self._stacked([self._whole(image)]), Grid(1, 1, 1))
        image = resized(image, *self._filled(*image.shape[:2]), self.resample)
        tiles, grid = cut_into_tiles(image, self.side)
        return Pixels(self._stacked([*tiles, self._whole(image)] if len(tiles) > 1 else tiles), grid)

    def _whole(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image as one tile, uint8 [side, side, 3], whatever its proportion."""
        return resized(image, self.side, self.side, self.resample)

    def _stacked(self, tiles: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Tiles, uint8 [side, side, 3] each -> fp32 [tiles, 3, side, side]."""
        return np.stack([self.levels.of(tile) for tile in tiles])

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width with the longer side as it must be, and the shorter one even and in proportion."""
        proportion = width / height
        if width >= height:
            height, width = _even(int(self.longest / proportion)), self.longest
        else:
            height, width = self.longest, _even(int(self.longest * proportion))
        height, width = max(height, 1), max(width, 1)
        proportion = width / height
        if width >= height and width > _LONGEST_ALLOWED:
            height, width = int(_LONGEST_ALLOWED / proportion), _LONGEST_ALLOWED
        elif height > width and height > _LONGEST_ALLOWED:
            height, width = _LONGEST_ALLOWED, int(_LONGEST_ALLOWED * proportion)
        return max(height, 1), max(width, 1)

    def _filled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that are whole tiles."""
        proportion, side = width / height, self.side
        if width >= height:
            width = math.ceil(width / side) * side
            height = math.ceil(int(width / proportion) / side) * side
        else:
            height = math.ceil(height / side) * side
            width = math.ceil(int(height * proportion) / side) * side
        return height, width


def cut_into_tiles(image: NDArray[np.uint8], side: int) -> tuple[list[NDArray[np.uint8]], Grid]:
    """Tiles of an image, row by row, uint8 [side, side, 3] each, and their grid.

    Args:
        image: uint8 [rows * side, columns * side, 3].
        side: Pixels along a tile's side.
    """
    rows, columns = (length // side for length in image.shape[:2])
    tiles = [
        image[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    return tiles, Grid(1, rows, columns)


def describe_tiles(reader: KeyReader) -> Tiles:
    """Makes the processor that a preprocessor_config.json describes; missing keys have the class's defaults.

    Raises:
        UnsupportedError: A key has an unsupported value.
    """
    if not reader.flag("do_resize"):
        raise reader.refusal("do_resize", "true, or a large image would have tiles without a limit")
    tiles = Tiles(
        longest=reader.longest_edge("size", _DEFAULT_LONGEST),
        side=reader.longest_edge("max_image_size", _DEFAULT_SIDE),
        splits=reader.flag("do_image_splitting"),
        resample=reader.resample(Image.Resampling.LANCZOS),
        levels=reader.levels(_DEFAULT_MEAN, _DEFAULT_STD),
    )
    if tiles.most > MOST_TILES:
        square = f"a square image of {tiles.longest} pixels"
        raise reader.refusal("max_image_size", f"tiles of which {square} has {MOST_TILES} at most")
    return tiles


def _even(length: int) -> int:
    """The same length, or 1 more if it is odd."""
    return length + length % 2
