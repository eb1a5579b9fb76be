"""The image processor of models that see images of any size: an image keeps its proportion and becomes patches.

In: RGB uint8 [height, width, 3]. Out: fp32 [patches, 3 * frames * patch_size**2] and their grid, bit for bit those of
transformers. It needs only NumPy and Pillow.

Source: `Qwen2VLImageProcessor` of transformers 5.24, with its Pillow backend, which is the original one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.images.processor_keys import LARGEST_SIDE, KeyReader, Levels, resized
from awq2trt.models.vision.description import CHANNELS
from awq2trt.models.vision.patch_layout import MAX_PIXELS, MIN_PIXELS
from awq2trt.models.vision.prepared import Grid, Pixels

_SIZES: Final = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
"""Fewest and most pixels, under the names that `size` has for them; the numbers are the class's defaults."""

_MOST_PIXELS: Final = LARGEST_SIDE**2


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The steps that prepare an image.

    Attributes:
        fewest: Pixels that an image is enlarged to if it has fewer.
        most: Pixels that an image is made smaller to if it has more.
        resample: Pillow's filter.
        levels: What becomes of the numbers of pixels.
        patch_size: Pixels along a patch's side.
        frames: Frames of a patch, which are all the same.
        merge: Patches along the side of a piece.
    """

    fewest: int
    most: int
    resample: Image.Resampling
    levels: Levels
    patch_size: int
    frames: int
    merge: int

    @property
    def side(self) -> int:
        """Pixels along a piece's side."""
        return self.patch_size * self.merge

    def at_most(self, pieces: int) -> Patches:
        """The same, with at most so many pieces of an image."""
        most = min(self.most, pieces * self.side**2)
        return replace(self, fewest=min(self.fewest, most), most=most)

    def changes(self) -> dict[str, Any]:
        """How many pixels an image may have, as preprocessor_config.json says it to old and new transformers."""
        numbers = self.settings()
        return {**numbers, "size": dict(zip(_SIZES, numbers.values(), strict=True))}

    @property
    def largest(self) -> str:
        """The largest image, in words."""
        return f"{self.most // self.side**2} tokens, {self.most:,} pixels"

    def settings(self) -> dict[str, int]:
        """How many pixels an image may have, for a manifest."""
        return {MIN_PIXELS: self.fewest, MAX_PIXELS: self.most}

    def grid(self, height: int, width: int) -> Grid:
        """Grid of the patches of an image."""
        rows, columns = (length // self.patch_size for length in self._size(height, width))
        return Grid(1, rows, columns)

    def pixels(self, image: NDArray[np.uint8]) -> Pixels:
        """Prepares an image, RGB uint8 [height, width, 3]: patches piece by piece, each channel by channel."""
        height, width = self._size(*image.shape[:2])
        prepared = self.levels.of(resized(image, height, width, self.resample))  # [3, height, width]
        grid, merge, size = self.grid(*image.shape[:2]), self.merge, self.patch_size
        split = prepared.reshape(CHANNELS, grid.rows // merge, merge, size, grid.columns // merge, merge, size)
        patches = split.transpose(1, 4, 2, 5, 0, 3, 6).reshape(grid.cells, CHANNELS, 1, size * size)
        return Pixels(np.repeat(patches, self.frames, axis=2).reshape(grid.cells, -1), grid)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that are multiples of a piece's, as `smart_resize` of transformers chooses them."""
        side = self.side
        tall, wide = round(height / side) * side, round(width / side) * side
        if tall * wide > self.most:
            factor = math.sqrt(height * width / self.most)
            tall, wide = (max(side, math.floor(length / factor / side) * side) for length in (height, width))
        elif tall * wide < self.fewest:
            factor = math.sqrt(self.fewest / (height * width))
            tall, wide = (math.ceil(length * factor / side) * side for length in (height, width))
        return tall, wide


def describe_patches(reader: KeyReader) -> Patches:
    """Makes the processor that a preprocessor_config.json describes; missing keys have the class's defaults.

    Raises:
        UnsupportedError: A key has an unsupported value.
    """
    reader.refuse_padding()
    if not reader.flag("do_resize"):
        raise reader.refusal("do_resize", "true, since patches have to fill an image")
    size = reader.config.get("size")
    if size is None:
        size = _SIZES
    if not isinstance(size, dict) or not all(isinstance(size.get(key), int) for key in _SIZES):
        raise reader.refusal("size", f"numbers under {' and '.join(_SIZES)}")
    fewest, most = (
        reader.count(key, size[default], _MOST_PIXELS)
        for key, default in zip((MIN_PIXELS, MAX_PIXELS), _SIZES, strict=True)
    )
    if not 0 < fewest <= most <= _MOST_PIXELS:
        between = f"{MIN_PIXELS} ({fewest}) to {_MOST_PIXELS}, and both positive"
        if reader.config.get(MAX_PIXELS) is not None:
            raise reader.refusal(MAX_PIXELS, between)
        raise reader.refusal("size", f"longest_edge from {between}")
    return Patches(
        fewest=fewest,
        most=most,
        resample=reader.resample(),
        levels=reader.levels(),
        patch_size=reader.count("patch_size", 14, LARGEST_SIDE),
        frames=reader.count("temporal_patch_size", 2, LARGEST_SIDE),
        merge=reader.count("merge_size", 2, LARGEST_SIDE),
    )
