"""The tower of Qwen3-VL as data: a vision transformer with deepstack, whose blocks all see the whole image.

In: sizes. Out: shapes of tensors. The decoder gets features of some of the tower's layers, too (arXiv:2406.04334).
NumPy only.

Source: arXiv:2511.21631 and `Qwen3VLVisionModel` of transformers 5.24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from awq2trt.models.vision.patched import PatchTowerSpec, PatchVisionSpec
from awq2trt.models.vision.prepared import Grid


@dataclass(frozen=True, kw_only=True)
class MergerSpec:
    """What makes pieces of squares of patches: a LayerNorm, then two linears with GELU between them.

    Attributes:
        prefix: Prefix of its tensors.
        norm_size: Channels that the norm is over: those of a patch or, in a merger of deepstack, those of a square.
        square_size: Channels of a square.
        out_features: Channels of a piece.
    """

    prefix: str
    norm_size: int
    square_size: int
    out_features: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        shapes = _with_bias(f"{self.prefix}norm", (self.norm_size,))
        for name, rows in (("linear_fc1", self.square_size), ("linear_fc2", self.out_features)):
            shapes |= _with_bias(self.prefix + name, (rows, self.square_size))
        return shapes


@dataclass(frozen=True, kw_only=True)
class StackedTowerSpec(PatchTowerSpec):
    """A tower with a square table of trained positions, which is stretched over each image.

    Attributes:
        num_positions: Rows of the table.
        deepstack_layers: Layers whose outputs the decoder gets, in ascending order: the first one behind its first
            block, and so on.
    """

    num_positions: int
    deepstack_layers: tuple[int, ...]

    @property
    def position_side(self) -> int:
        """Rows along a side of the table's square."""
        return math.isqrt(self.num_positions)

    @property
    def piece_width(self) -> int:
        """Channels of a piece: those of the decoder's embeddings, then those that each of its first blocks adds."""
        return self.out_features * (1 + len(self.deepstack_layers))

    @property
    def positions(self) -> str:
        """Name of the table."""
        return f"{self.prefix}pos_embed.weight"

    @property
    def merger(self) -> MergerSpec:
        """What is behind the last layer."""
        return MergerSpec(
            prefix=f"{self.prefix}merger.",
            norm_size=self.hidden_size,
            square_size=self.square_size,
            out_features=self.out_features,
        )

    @property
    def deepstack(self) -> dict[int, MergerSpec]:
        """What is behind the other layers whose outputs the decoder gets, by layer."""
        return {
            layer: MergerSpec(
                prefix=f"{self.prefix}deepstack_merger_list.{index}.",
                norm_size=self.square_size,
                square_size=self.square_size,
                out_features=self.out_features,
            )
            for index, layer in enumerate(self.deepstack_layers)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        size, inner = self.hidden_size, self.intermediate_size
        patch = f"{self.prefix}patch_embed.proj"
        shapes: dict[str, tuple[int, ...]] = {
            f"{patch}.weight": self.patch_shape,
            f"{patch}.bias": (size,),
            self.positions: (self.num_positions, size),
        }
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            for name, shape in (
                ("norm1", (size,)),
                ("norm2", (size,)),
                ("attn.qkv", (3 * size, size)),
                ("attn.proj", (size, size)),
                ("mlp.linear_fc1", (inner, size)),
                ("mlp.linear_fc2", (size, inner)),
            ):
                shapes |= _with_bias(prefix + name, shape)
        for merger in (self.merger, *self.deepstack.values()):
            shapes |= merger.shapes()
        return shapes


@dataclass(frozen=True, kw_only=True)
class StackedVisionSpec(PatchVisionSpec):
    """How a model sees with a tower with deepstack."""

    tower: StackedTowerSpec

    @property
    def example_grid(self) -> Grid:
        """A grid of two rows and three columns of pieces, over which the table of positions is stretched unevenly."""
        return Grid(1, 2 * self.tower.merge, 3 * self.tower.merge)


def _with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of a weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
