"""What the graphs of towers for images of any size are made of, beside linears and norms: rotated heads, attention.

In: a `PatchTowerSpec`, and values of a graph. Out: nodes on a tape. `windowed_graph` and `stacked_graph` write towers
with it; the same computation in PyTorch is `awq2trt.models.vision.patched_tower`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from awq2trt.io_contract import (
    IMAGE_EMBEDDINGS,
    PATCH_PLACES,
    PATCHES,
    PIECES,
    PIXEL_VALUES,
    IoContract,
    TensorContract,
)
from awq2trt.models.vision.patch_layout import ROPE_BASE
from awq2trt.models.vision.patched import PatchTowerSpec
from awq2trt.onnx_export.tower_graph import TowerBuilder

Heads = tuple[ir.Value, ir.Value, ir.Value]
"""Queries, keys and values, [P, heads, D] each."""


def patch_contract(
    tower: PatchTowerSpec, dtype: str, more: tuple[TensorContract, ...] = (), also: str = ""
) -> IoContract:
    """Inputs and outputs of the graph of a tower.

    Args:
        tower: The tower.
        dtype: Name of the type of pixels, weights and embeddings.
        more: Inputs that only this kind of tower has.
        also: What its output has beside what stands in the place of image tokens.
    """
    seen = f"What stands in the place of image tokens{also}."
    return IoContract(
        inputs=(
            TensorContract(PIXEL_VALUES, dtype, (PATCHES, tower.patch_numbers), "Prepared patches of an image."),
            TensorContract(PATCH_PLACES, "int64", (PATCHES, 2), "Row and column of every patch."),
            *more,
        ),
        outputs=(TensorContract(IMAGE_EMBEDDINGS, dtype, (PIECES, tower.piece_width), seen),),
    )


class PatchBuilder(TowerBuilder):
    """Appends the parts that these towers share.

    Shapes in comments: P patches, H channels of the tower, D of a head.

    `_angles`, which a tower sets before its first layer: as of `cosines_and_sines`.
    """

    _spec: PatchTowerSpec
    _angles: tuple[ir.Value, ir.Value]

    def read_patches(self, pixels: ir.Value) -> ir.Value:
        """What is read of prepared patches: [P, H]."""
        spec = self._spec
        name = f"{spec.prefix}patch_embed.proj"
        flat = self.op("Reshape", [self.keep(f"{name}.weight"), self.integers([spec.hidden_size, -1])])
        transposed = self.op("Transpose", [flat], {"perm": [1, 0]})
        return self.op("MatMul", [pixels, transposed], name=name)

    def cosines_and_sines(self, places: ir.Value, like: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Rotates by rows in one half of a head and by columns in the other: tables [P, 1, D / 2], computed in fp32."""
        quarter = self._spec.hidden_size // self._spec.num_heads // 4
        frequencies = ROPE_BASE ** -(np.arange(quarter) / quarter)
        wide = self.op("Cast", [places], {"to": int(ir.DataType.FLOAT)})
        steps = self.op("Unsqueeze", [wide, self.integers([2])])  # [P, 2, 1]
        factors = self.op("Constant", [], {"value_floats": frequencies.tolist()})
        shape = self.integers([0, 1, 2 * quarter])
        angles = self.op("Reshape", [self.op("Mul", [steps, factors]), shape], name="angles")
        cosines, sines = (self.op("CastLike", [self.op(kind, [angles]), like]) for kind in ("Cos", "Sin"))
        return cosines, sines

    def heads(self, prefix: str, normed: ir.Value) -> Heads:
        """Queries and keys, rotated, and values of [P, H]."""
        spec = self._spec
        projected = self.linear(f"{prefix}qkv", normed)  # [P, 3 H]
        split = self.op("Reshape", [projected, self.integers([0, 3 * spec.num_heads, -1])])  # [P, 3 heads, D]
        queries, keys, values = (self._heads_from(split, index) for index in range(3))
        return self._rotate(queries), self._rotate(keys), values

    def attend_to_all(self, heads: Heads, name: str) -> ir.Value:
        """Attention of all patches to each other: [P, H]."""
        batched = [
            self.op("Unsqueeze", [self.op("Transpose", [x], {"perm": [1, 0, 2]}), self.integers([0])]) for x in heads
        ]  # [1, heads, P, D]
        context = self.op("Attention", batched, {"scale": self.score_scale}, name=name)
        merged = self.op("Transpose", [context], {"perm": [0, 2, 1, 3]})
        return self.op("Reshape", [merged, self.integers([-1, self._spec.hidden_size])])

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return float((self._spec.hidden_size // self._spec.num_heads) ** -0.5)

    def _heads_from(self, split: ir.Value, index: int) -> ir.Value:
        """Queries, keys or values out of [P, 3 heads, D]."""
        first, count = index * self._spec.num_heads, self._spec.num_heads
        return self.op("Slice", [split, *(self.integers([value]) for value in (first, first + count, 1))])

    def _rotate(self, x: ir.Value) -> ir.Value:
        """Rotates [P, heads, D], halves of a head against each other."""
        half = self._spec.hidden_size // self._spec.num_heads // 2
        first, second = (
            self.op("Slice", [x, *(self.integers([value]) for value in (start, start + half, 2))])
            for start in (0, half)
        )
        cosines, sines = self._angles
        real = self.op("Sub", [self.op("Mul", [first, cosines]), self.op("Mul", [second, sines])])
        imaginary = self.op("Add", [self.op("Mul", [second, cosines]), self.op("Mul", [first, sines])])
        return self.op("Concat", [real, imaginary], {"axis": -1})
