"""Models that see an image as tiles, and once more as a whole (Idefics3, SmolVLM), as data.

In: sizes, and grids of tiles. Out: shapes of tensors, rows of the table of positions, and what is written around the
pieces of every tile. NumPy only.

Source: arXiv:2408.12637, section 3.1; `Idefics3Model` and `Idefics3Processor` of transformers 5.24, of which SmolVLM's
classes are copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.description import CHANNELS, SeeingSpec, TowerSpec
from awq2trt.models.vision.prepared import Grid, Pixels, PreparedImage

SCALE_FACTOR: Final = "scale_factor"
"""Key of config.json and of an exported model's settings; no other family has it."""

_BEFORE_TILE: Final = "<fake_token_around_image>"
_WHOLE: Final = "<global-img>"

_ONE_TILE: Final = Grid(1, 1, 1)
"""Grid of an image that is not cut."""


@dataclass(frozen=True, kw_only=True)
class ConnectorSpec:
    """What makes a piece of a square of patches: their channels side by side, through one linear without a bias.

    Attributes:
        in_features: Channels of a patch.
        out_features: Channels of the decoder's embeddings.
        merge: Patches along the side of a square.
        prefix: Prefix of its tensor.
    """

    in_features: int
    out_features: int
    merge: int
    prefix: str

    @property
    def linear(self) -> str:
        """Name of the linear."""
        return f"{self.prefix}modality_projection.proj"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of its tensor, by full name."""
        return {f"{self.linear}.weight": (self.out_features, self.in_features * self.merge**2)}


@dataclass(frozen=True, kw_only=True)
class TiledVisionSpec(SeeingSpec):
    """How a model sees images in tiles of its tower's size.

    Attributes:
        tower: Its tower, which sees each tile by itself.
        connector: What is behind the tower.
    """

    tower: TowerSpec
    connector: ConnectorSpec

    @property
    def layout(self) -> TileLayout:
        """What an image's tiles become."""
        return TileLayout(self.tower.image_size, self.tower.patch_size, self.connector.merge)

    @property
    def depth(self) -> int:
        """Layers of its tower."""
        return self.tower.num_layers

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """Shape of a prepared tile."""
        return CHANNELS, self.tower.image_size, self.tower.image_size

    @property
    def example_grid(self) -> Grid:
        """One tile, since the tower sees each by itself."""
        return _ONE_TILE

    @property
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of what stands for one tile among the decoder's embeddings."""
        return self.layout.pieces, self.connector.out_features

    @property
    def modules(self) -> tuple[str, str]:
        """Names of the tower and the connector."""
        return self.tower.prefix.rstrip("."), self.connector.prefix.rstrip(".")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return self.tower.shapes() | self.connector.shapes()

    def position_rows(self) -> NDArray[np.int64]:
        """Row of the table of positions for every patch of a tile, int64 [patches]."""
        rows = bucketed(self.tower.side)
        return (rows[:, None] * self.tower.side + rows).reshape(-1)

    def record(self) -> VisionRecord:
        """What a runtime needs to know, for the manifest."""
        settings = {
            "image_size": self.tower.image_size,
            "patch_size": self.tower.patch_size,
            SCALE_FACTOR: self.connector.merge,
        }
        return VisionRecord(
            family=self.family, image_token=self.image_token, tokens_per_image=None, settings={**settings}
        )


@dataclass(frozen=True)
class TileLayout:
    """What tiles become; a manifest has it under `settings`.

    Attributes:
        image_size: Pixels along a tile's side.
        patch_size: Pixels along a patch's side.
        merge: Patches along the side of a piece.
    """

    image_size: int
    patch_size: int
    merge: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TileLayout:
        """Reads it from the `settings` of a manifest's vision record."""
        return cls(*(int(settings[key]) for key in ("image_size", "patch_size", SCALE_FACTOR)))

    @property
    def pieces(self) -> int:
        """Pieces of one tile."""
        return (self.image_size // self.patch_size // self.merge) ** 2

    def prepared(self, pixels: Pixels) -> PreparedImage:
        """An image of prepared tiles, as the vision graph takes it."""
        assert pixels.grid is not None
        texts = texts_around(pixels.grid)
        return PreparedImage({PIXEL_VALUES: pixels.values}, (len(texts) - 1) * self.pieces, texts=texts)


def texts_around(grid: Grid) -> tuple[str, ...]:
    """Texts before the pieces of each tile, row by row with the whole image last, and the text behind all."""
    if grid == _ONE_TILE:
        return f"{_BEFORE_TILE}{_WHOLE}", _BEFORE_TILE
    texts, end_of_row = [], ""
    for row in range(grid.rows):
        for column in range(grid.columns):
            texts.append(f"{end_of_row}{_BEFORE_TILE}<row_{row + 1}_col_{column + 1}>")
            end_of_row = ""
        end_of_row = "\n"
    return *texts, f"{end_of_row}\n{_BEFORE_TILE}{_WHOLE}", _BEFORE_TILE


def bucketed(side: int) -> NDArray[np.int64]:
    """Row or column of the table of positions for those of a tile, as transformers rounds them; int64 [side].

    It divides the side into buckets in fp32, and for some sides, though none of published models, neighbours share one.
    Boundaries are those of PyTorch's `arange` on CPUs, which rounds the first of eight numbers before it adds to it.
    """
    step = 1 / side
    index = np.arange(math.ceil((1 - step) / step))
    first = (step + step * (index // 8 * 8)).astype(np.float32) + step * (index % 8)
    in_vectors = index < len(index) // 16 * 16
    boundaries = np.where(in_vectors, first, step + step * index).astype(np.float32)
    places = np.arange(side, dtype=np.float32) * (np.float32(1) / np.float32(side))
    found = np.searchsorted(boundaries, np.minimum(places, np.float32(1 - 1e-6)), side="right")
    return np.asarray(found, np.int64)
