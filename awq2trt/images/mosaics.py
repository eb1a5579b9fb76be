"""The image processor of models that see an image made smaller, then its tiles as one large image.

In: RGB uint8 [height, width, 3]. Out: fp32 [tiles, 3, side, side], the whole image first, and the grid of the others,
bit for bit those of transformers. It needs only NumPy and Pillow.

Source: `LlavaNextImageProcessor` of transformers 5.24, with its Pillow backend, which is the original one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.images.processor_keys import DEFAULT_SIDE, KeyReader, resized
from awq2trt.images.tiles import cut_into_tiles
from awq2trt.models.vision.description import CHANNELS
from awq2trt.models.vision.mosaic import PINPOINTS, WANTED_SIZES, MosaicLayout, Sizes, sizes_in
from awq2trt.models.vision.prepared import Pixels


class TileSteps(Protocol):
    """What prepares a tile; two that do the same are equal."""

    @property
    def resample(self) -> Image.Resampling:
        """Pillow's filter."""

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [height, width, 3] -> fp32 [3, side, side]."""


@dataclass(frozen=True, kw_only=True)
class Mosaics:
    """The steps that prepare an image.

    Attributes:
        sizes: Heights and widths that an image may be given, all of them whole tiles.
        side: Pixels along a tile's side.
        whole: Height and width to which the whole image is resized first, whatever its proportion.
        steps: What is then done to it and to every tile.
    """

    sizes: Sizes
    side: int
    whole: tuple[int, int]
    steps: TileSteps

    @property
    def largest(self) -> str:
        """The largest image, in words."""
        height, width = max(self.sizes, key=math.prod)
        tiles = height * width // self.side**2 + 1
        return f"{height} x {width} pixels, {tiles} tiles in all"

    def at_most(self, pieces: int, layout: MosaicLayout) -> Mosaics:
        """The same, with those sizes of which no image has more pieces, or with the one that has fewest.

        Args:
            pieces: Most pieces of an image.
            layout: How many pieces an image of a size has.
        """
        kept = tuple(size for size in self.sizes if layout.most_pieces(size) <= pieces)
        return replace(self, sizes=kept or (min(self.sizes, key=layout.most_pieces),))

    def changes(self) -> dict[str, Any]:
        """The sizes, as preprocessor_config.json says them."""
        return {PINPOINTS: [list(size) for size in self.sizes]}

    def settings(self) -> dict[str, Any]:
        """The sizes, as a manifest says them."""
        return self.changes()

    def pixels(self, image: NDArray[np.uint8]) -> Pixels:
        """Prepares an image, RGB uint8 [height, width, 3]: the whole image, then tiles row by row."""
        height, width = image.shape[:2]
        tiles, grid = cut_into_tiles(self._large(image), self.side)
        whole = resized(image, *self.whole, self.steps.resample)
        prepared = [self.steps.prepare(tile) for tile in (whole, *tiles)]
        return Pixels(np.stack(prepared), grid, (height, width))

    def _large(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image in one of the sizes, in proportion, with black margins: uint8 [rows * side, columns * side, 3]."""
        height, width = image.shape[:2]
        target_height, target_width = self._best(height, width)
        by_height, by_width = target_height / height, target_width / width
        if by_width < by_height:
            fitted = min(math.ceil(height * by_width), target_height), target_width
        else:
            fitted = target_height, min(math.ceil(width * by_height), target_width)
        missing = target_height - fitted[0], target_width - fitted[1]
        margins = [(count // 2, count - count // 2) for count in missing]
        return np.pad(resized(image, *fitted, self.steps.resample), (*margins, (0, 0)))

    def _best(self, height: int, width: int) -> tuple[int, int]:
        """The first of the sizes that keep most of an image's pixels and waste fewest of their own."""

        def kept_and_wasted(size: tuple[int, int]) -> tuple[int, int]:
            scale = min(size[1] / width, size[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - math.prod(size)

        return max(self.sizes, key=kept_and_wasted)


def describe_mosaics(reader: KeyReader, steps: TileSteps) -> Mosaics:
    """Makes the processor that a preprocessor_config.json describes; missing keys have the class's defaults.

    Args:
        reader: Reads the file.
        steps: What it says of a single tile.

    Raises:
        UnsupportedError: A key has an unsupported value.
    """
    shortest_edge, exact = reader.resizing()
    whole = exact or (shortest_edge or DEFAULT_SIDE,) * 2
    side, width = reader.sides("crop_size", reader.config.get("crop_size", DEFAULT_SIDE))
    shape = (CHANNELS, side, side)
    if side != width or any(
        steps.prepare(np.zeros((*size, CHANNELS), np.uint8)).shape != shape for size in (whole, (side, side))
    ):
        raise reader.refusal("crop_size", f"a square, to which size {whole[0]} x {whole[1]} is cut or resized")
    sizes = sizes_in(reader.config, side)
    if not sizes:
        raise reader.refusal(PINPOINTS, WANTED_SIZES.format(side))
    return Mosaics(sizes=sizes, side=side, whole=whole, steps=steps)
