"""The tower of Qwen2.5-VL as data: a vision transformer whose blocks attend within windows, except for a few.

In: sizes, and the grids of images. Out: shapes of tensors, which patches share a window, and where each stands. NumPy
only.

Source: arXiv:2502.13923 and `Qwen2_5_VisionTransformerPretrainedModel` of transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PATCH_PLACES, PATCH_SLOTS, PIXEL_VALUES, WINDOW_PATCHES
from awq2trt.models.vision.description import CHANNELS, SeeingSpec
from awq2trt.models.vision.prepared import MOST_ELONGATED, Grid, Pixels, PreparedImage

ROPE_BASE: Final = 10000.0
"""Base of the rotary embedding of rows and columns, each in half of a head."""

MIN_PIXELS: Final = "min_pixels"
MAX_PIXELS: Final = "max_pixels"
"""Keys of preprocessor_config.json, and of an exported model's settings."""


@dataclass(frozen=True, kw_only=True)
class WindowedTowerSpec:
    """A tower with windows, and the merger behind it, which makes one piece of a square of patches.

    Attributes:
        patch_size: Pixels along a patch's side.
        frames: Frames of a patch; a still image is repeated to fill them.
        merge: Patches along the side of a merged square.
        window_size: Pixels along a window's side.
        full_layers: Layers whose patches see the whole image.
        out_features: Width of a piece, which is that of the decoder's embeddings.
        activation: Activation of the MLPs.
        prefix: Prefix of the names of all its tensors.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    frames: int
    merge: int
    window_size: int
    full_layers: frozenset[int]
    out_features: int
    activation: str
    norm_eps: float
    prefix: str

    @property
    def patch_numbers(self) -> int:
        """How many numbers a prepared patch has, channel by channel, frame by frame."""
        return CHANNELS * self.frames * self.patch_size**2

    def layer_prefix(self, layer: int) -> str:
        """Prefix of the tensors of one layer."""
        return f"{self.prefix}blocks.{layer}."

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        size, inner, square = self.hidden_size, self.intermediate_size, self.hidden_size * self.merge**2
        patch = (size, CHANNELS, self.frames, self.patch_size, self.patch_size)
        shapes: dict[str, tuple[int, ...]] = {f"{self.prefix}patch_embed.proj.weight": patch}
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            shapes |= {f"{prefix}norm1.weight": (size,), f"{prefix}norm2.weight": (size,)}
            for name, rows, columns in (
                ("attn.qkv", 3 * size, size),
                ("attn.proj", size, size),
                ("mlp.gate_proj", inner, size),
                ("mlp.up_proj", inner, size),
                ("mlp.down_proj", size, inner),
            ):
                shapes |= {f"{prefix}{name}.weight": (rows, columns), f"{prefix}{name}.bias": (rows,)}
        merger = f"{self.prefix}merger."
        shapes[f"{merger}ln_q.weight"] = (size,)
        for name, rows in (("mlp.0", square), ("mlp.2", self.out_features)):
            shapes |= {f"{merger}{name}.weight": (rows, square), f"{merger}{name}.bias": (rows,)}
        return shapes

    @property
    def layout(self) -> WindowLayout:
        """How the tower divides images."""
        return WindowLayout(self.patch_size, self.merge, self.window_size)


@dataclass(frozen=True, kw_only=True)
class WindowedVisionSpec(SeeingSpec):
    """How a model sees images of any size, each with as many pieces as its size gives.

    Attributes:
        tower: It, with its merger.
        around: Tokens before and after an image's in a conversation, under the names of the model's configuration.
    """

    tower: WindowedTowerSpec
    around: Mapping[str, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers of its tower."""
        return self.tower.num_layers

    @property
    def pixels_shape(self) -> tuple[int]:
        """Numbers of a prepared patch."""
        return (self.tower.patch_numbers,)

    @property
    def example_grid(self) -> Grid:
        """A grid of more than two windows, of which three sides' edges cut off a part."""
        side, merge = self.tower.layout.side * self.tower.merge, self.tower.merge
        return Grid(1, side + merge, 2 * side + merge)

    @property
    def modules(self) -> tuple[str]:
        """Name of the tower, none of whose linears are quantized."""
        return (self.tower.prefix.rstrip("."),)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return self.tower.shapes()

    def record(self) -> VisionRecord:
        """What a runtime needs to know, for the manifest."""
        tower = self.tower
        return VisionRecord(
            family=self.family,
            image_token=self.image_token,
            tokens_per_image=None,
            settings={
                "patch_size": tower.patch_size,
                "temporal_patch_size": tower.frames,
                "spatial_merge_size": tower.merge,
                "window_size": tower.window_size,
                **self.around,
            },
        )


class Windows(NamedTuple):
    """Which patches of an image share a window.

    Attributes:
        patches: Index of the patch in every slot of every window, int64 [windows, slots]; -1 in a slot that an image's
            right or lower edge leaves empty.
        slots: Slot of every patch, counted through all windows, int64 [patches].
    """

    patches: NDArray[np.int64]
    slots: NDArray[np.int64]


@dataclass(frozen=True)
class WindowLayout:
    """How a tower with windows divides images; a manifest has it under `settings`.

    Attributes:
        patch_size: Pixels along a patch's side.
        merge: Patches along the side of a piece.
        window_size: Pixels along a window's side.
    """

    patch_size: int
    merge: int
    window_size: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> WindowLayout:
        """Reads it from the `settings` of a manifest's vision record."""
        return cls(*(int(settings[key]) for key in ("patch_size", "spatial_merge_size", "window_size")))

    @property
    def side(self) -> int:
        """Pieces along a window's side."""
        return self.window_size // self.merge // self.patch_size

    @property
    def slots(self) -> int:
        """Patches of a whole window."""
        return (self.side * self.merge) ** 2

    def pieces(self, grid: Grid) -> Grid:
        """Pieces of an image with this grid of patches."""
        return Grid(grid.frames, grid.rows // self.merge, grid.columns // self.merge)

    def windows(self, grid: Grid) -> Windows:
        """Windows of an image; prepared patches come piece after piece, row by row."""
        pieces, square = self.pieces(grid), self.merge**2
        missing = [-length % self.side for length in pieces[1:]]
        indices = np.arange(pieces.cells).reshape(pieces)
        padded = np.pad(indices, ((0, 0), *((0, count) for count in missing)), constant_values=-1)
        frames, rows, columns = padded.shape
        split = padded.reshape(frames, rows // self.side, self.side, columns // self.side, self.side)
        of_window = split.transpose(0, 1, 3, 2, 4).reshape(-1, self.side**2, 1)  # [windows, pieces of one, 1]
        patches = np.where(of_window < 0, -1, of_window * square + np.arange(square)).reshape(-1, self.slots)
        slots = np.empty(grid.cells, np.int64)
        taken = np.flatnonzero(patches.reshape(-1) >= 0)
        slots[patches.reshape(-1)[taken]] = taken
        return Windows(patches, slots)

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
        windows, pieces = self.windows(pixels.grid), self.pieces(pixels.grid)
        inputs: dict[str, NDArray[Any]] = {
            PIXEL_VALUES: pixels.values,
            PATCH_PLACES: self.places(pixels.grid),
            WINDOW_PATCHES: windows.patches,
            PATCH_SLOTS: windows.slots,
        }
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

    def most_windows(self, pieces: int) -> int:
        """The most windows that an image of at most so many pieces is divided into, whatever its shape.

        An image is at most `MOST_ELONGATED` times as long as wide, before both sides are rounded to pieces.
        """

        def windows(rows: int) -> int:
            columns = min(pieces // rows, 2 * rows * MOST_ELONGATED)
            return -(-rows // self.side) * -(-columns // self.side)

        return max(windows(rows) for rows in range(1, math.isqrt(pieces) + 1))
