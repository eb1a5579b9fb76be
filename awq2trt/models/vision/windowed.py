"""The tower of Qwen2.5-VL as data: a vision transformer whose blocks attend within windows, except for a few.

In: sizes, and the grids of images. Out: shapes of tensors, which patches share a window, and where each stands. NumPy
only.

Source: arXiv:2502.13923 and `Qwen2_5_VisionTransformerPretrainedModel` of transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from awq2trt.io_contract import PATCH_SLOTS, WINDOW_PATCHES
from awq2trt.models.vision.patch_layout import MERGE, PATCH_SIZE, PatchLayout
from awq2trt.models.vision.patched import PatchTowerSpec, PatchVisionSpec
from awq2trt.models.vision.prepared import MOST_ELONGATED, Grid, Pixels, PreparedImage

WINDOW_SIZE: Final = "window_size"
"""Setting of a manifest's vision record, which only a tower with windows has."""


@dataclass(frozen=True, kw_only=True)
class WindowedTowerSpec(PatchTowerSpec):
    """A tower with windows.

    Attributes:
        window_size: Pixels along a window's side.
        full_layers: Layers whose patches see the whole image.
    """

    window_size: int
    full_layers: frozenset[int]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        size, inner, square = self.hidden_size, self.intermediate_size, self.square_size
        shapes: dict[str, tuple[int, ...]] = {f"{self.prefix}patch_embed.proj.weight": self.patch_shape}
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

    @property
    def settings(self) -> dict[str, int]:
        """What a runtime needs to know of it, for the manifest."""
        return {**super().settings, WINDOW_SIZE: self.window_size}


@dataclass(frozen=True, kw_only=True)
class WindowedVisionSpec(PatchVisionSpec):
    """How a model sees with a tower with windows."""

    tower: WindowedTowerSpec

    @property
    def example_grid(self) -> Grid:
        """A grid of more than two windows, of which three sides' edges cut off a part."""
        side, merge = self.tower.layout.side * self.tower.merge, self.tower.merge
        return Grid(1, side + merge, 2 * side + merge)


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
class WindowLayout(PatchLayout):
    """How a tower with windows divides images; a manifest has it under `settings`.

    Attributes:
        window_size: Pixels along a window's side.
    """

    window_size: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> WindowLayout:
        """Reads it from the `settings` of a manifest's vision record."""
        return cls(*(int(settings[key]) for key in (PATCH_SIZE, MERGE, WINDOW_SIZE)))

    @property
    def side(self) -> int:
        """Pieces along a window's side."""
        return self.window_size // self.merge // self.patch_size

    @property
    def slots(self) -> int:
        """Patches of a whole window."""
        return (self.side * self.merge) ** 2

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

    def prepared(self, pixels: Pixels) -> PreparedImage:
        """An image of prepared patches, as the vision graph takes it."""
        assert pixels.grid is not None
        image, windows = super().prepared(pixels), self.windows(pixels.grid)
        return replace(image, inputs={**image.inputs, WINDOW_PATCHES: windows.patches, PATCH_SLOTS: windows.slots})

    def most_windows(self, pieces: int) -> int:
        """The most windows that an image of at most so many pieces is divided into, whatever its shape.

        An image is at most `MOST_ELONGATED` times as long as wide, before both sides are rounded to pieces.
        """

        def windows(rows: int) -> int:
            columns = min(pieces // rows, 2 * rows * MOST_ELONGATED)
            return -(-rows // self.side) * -(-columns // self.side)

        return max(windows(rows) for rows in range(1, math.isqrt(pieces) + 1))
