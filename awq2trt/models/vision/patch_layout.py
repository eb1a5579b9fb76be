"""How a tower for images of any size divides them: patches, and pieces, each a square of patches.

In: sizes, and the grids of images. Out: where each patch stands, and how many pieces there are. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.io_contract import PATCH_PLACES, PIXEL_VALUES
from awq2trt.models.vision.prepared import MOST_ELONGATED, Grid, Pixels, PreparedImage

ROPE_BASE: Final = 10000.0
"""Base of the rotary embedding of rows and columns, each in half of a head."""

MIN_PIXELS: Final = "min_pixels"
MAX_PIXELS: Final = "max_pixels"
"""Keys of preprocessor_config.json, and of an exported model's settings."""

PATCH_SIZE: Final = "patch_size"
FRAMES: Final = "temporal_patch_size"
MERGE: Final = "spatial_merge_size"
"""Settings of a manifest's vision record, under the names of the models' configurations."""


@dataclass(frozen=True)
class PatchLayout:
    """Sizes of patches and pieces; a manifest has them under `settings`.

    Attributes:
        patch_size: Pixels along a patch's side.
        merge: Patches along the side of a piece.
    """

    patch_size: int
    merge: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> PatchLayout:
        """Reads it from the `settings` of a manifest's vision record."""
        return cls(*(int(settings[key]) for key in (PATCH_SIZE, MERGE)))

    def pieces(self, grid: Grid) -> Grid:
        """Pieces of an image with this grid of patches."""
        return Grid(grid.frames, grid.rows // self.merge, grid.columns // self.merge)

    def places(self, grid: Grid) -> NDArray[np.int64]:
        """Row and column of every patch, int64 [patches, 2], in the order of prepared patches."""
        blocks = [
            table.reshape(grid.rows // self.merge, self.merge, grid.columns // self.merge, self.merge)
            .transpose(0, 2, 1, 3)
            .reshape(-1)
            for table in np.indices((grid.rows, grid.columns))
        ]
        return np.tile(np.stack(blocks, axis=1), (grid.frames, 1))

    def prepared(self, pixels: Pixels) -> PreparedImage:
        """An image of prepared patches, as the vision graph takes it."""
        assert pixels.grid is not None
        pieces = self.pieces(pixels.grid)
        inputs: dict[str, NDArray[Any]] = {PIXEL_VALUES: pixels.values, PATCH_PLACES: self.places(pixels.grid)}
        return PreparedImage(inputs, pieces.cells, pieces)

    def most_pieces(self, fewest: int, most: int) -> int:
        """No image has more pieces than this.

        A very long one may have more than `most` pixels, since its shorter side cannot be less than a piece.

        Args:
            fewest: Pixels that an image is enlarged to if it has fewer.
            most: Pixels that an image is made smaller to if it has more.
        """
        small, large = (pixels / (self.patch_size * self.merge) ** 2 for pixels in (fewest, most))
        # Sides a and b of an image have a b = pieces and b <= MOST_ELONGATED a, and are rounded up by one at most.
        enlarged, longest = (math.sqrt(MOST_ELONGATED * pieces) for pieces in (small, large))
        return max(int(large), int(longest), math.ceil(small + enlarged + small / enlarged) + 1)
