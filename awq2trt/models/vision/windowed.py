"""The tower of Qwen2.5-VL as data: a vision transformer whose blocks attend within windows, except for a few.

In: sizes, and the grids of images. Out: shapes of tensors, the order in which windows take the patches, and where each
stands. NumPy only.

Source: arXiv:2502.13923 and `Qwen2_5_VisionTransformerPretrainedModel` of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import VisionRecord
from awq2trt.models.vision.description import CHANNELS, SeeingSpec


class Grid(NamedTuple):
    """Patches of an image: so many frames, rows and columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """All of them."""
        return self.frames * self.rows * self.columns


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

    def pieces(self, grid: Grid) -> int:
        """What an image becomes for the decoder."""
        return grid.patches // self.merge**2


@dataclass(frozen=True, kw_only=True)
class WindowedVisionSpec(SeeingSpec):
    """How a model sees images of any size, each with as many pieces as its size gives.

    Attributes:
        tower: It, with its merger.
        sections: Pairs of channels of the decoder's heads that follow frame, row and column.
    """

    tower: WindowedTowerSpec
    sections: tuple[int, ...]

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
                "mrope_section": list(self.sections),
            },
        )


class Windows(NamedTuple):
    """How windows take the merged squares of images.

    Attributes:
        order: Indices of the squares, window after window, int64.
        lengths: Patches of each window.
    """

    order: NDArray[np.int64]
    lengths: tuple[int, ...]


def windows_of(spec: WindowedTowerSpec, grids: Sequence[Grid]) -> Windows:
    """Windows of images, one after the other; those at an image's right and lower edge may be smaller."""
    side, square = spec.window_size // spec.merge // spec.patch_size, spec.merge**2
    order, lengths, first = [], list[int](), 0
    for grid in grids:
        rows, columns = grid.rows // spec.merge, grid.columns // spec.merge
        squares = np.arange(grid.frames * rows * columns).reshape(grid.frames, rows, columns)
        for frame in squares:
            for top in range(0, rows, side):
                for left in range(0, columns, side):
                    window = frame[top : top + side, left : left + side].reshape(-1)
                    order.append(first + window)
                    lengths.append(square * len(window))
        first += squares.size
    return Windows(np.concatenate(order), tuple(lengths))


def patch_places(spec: WindowedTowerSpec, grids: Sequence[Grid]) -> NDArray[np.int64]:
    """Row and column of every patch, int64 [2, patches], in the order of prepared patches: square by square."""
    places = []
    for grid in grids:
        rows, columns = np.indices((grid.rows, grid.columns))
        blocks = [
            table.reshape(grid.rows // spec.merge, spec.merge, grid.columns // spec.merge, spec.merge)
            .transpose(0, 2, 1, 3)
            .reshape(-1)
            for table in (rows, columns)
        ]
        places.append(np.tile(np.stack(blocks), grid.frames))
    return np.concatenate(places, axis=1)
