"""The graph of a tower with deepstack (Qwen3-VL), for one still image of any size.

In: a `StackedVisionSpec` and its tensors. Out: nodes, from prepared patches and their rows and columns to pieces, each
with what the decoder's first blocks add behind its own channels. The size of an image, over which the table of
positions is stretched, follows from its patches' rows and columns; so the graph has one free axis, patches.

The same computation in PyTorch is `awq2trt.models.vision.stacked_tower`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import onnx_ir as ir

from awq2trt.io_contract import PATCH_PLACES, PIXEL_VALUES, IoContract
from awq2trt.models.families import GELU
from awq2trt.models.vision.stacked import MergerSpec, StackedTowerSpec, StackedVisionSpec
from awq2trt.onnx_export.external_data import ExternalDataWriter
from awq2trt.onnx_export.patch_graph import PatchBuilder, patch_contract
from awq2trt.onnx_export.tower_graph import Tensors, TowerCodes


def stacked_contract(spec: StackedVisionSpec, dtype: str) -> IoContract:
    """Inputs and outputs of the graph.

    Args:
        spec: How the model sees.
        dtype: Name of the type of pixels, weights and embeddings.
    """
    return patch_contract(spec.tower, dtype, also=", then what each of the decoder's first blocks adds there")


class StackedBuilder(PatchBuilder):
    """A tower with deepstack, and its mergers.

    Shapes in comments: P patches, H channels of the tower.
    """

    _spec: StackedTowerSpec

    def __init__(
        self,
        spec: StackedVisionSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        super().__init__(spec, tensors, writer, dtype, codes)
        self._spec = spec.tower

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        spec = self._spec
        bias = self.keep(f"{spec.prefix}patch_embed.proj.bias")
        read = self.op("Add", [self.read_patches(inputs[PIXEL_VALUES]), bias])
        hidden = self.op("Add", [read, self._positions(inputs[PATCH_PLACES], read)], name="placed")
        self._angles = self.cosines_and_sines(inputs[PATCH_PLACES], hidden)
        deep = []
        for layer in range(spec.num_layers):
            hidden = self._layer(spec.layer_prefix(layer), hidden)
            if layer in spec.deepstack:
                deep.append(self._merge(spec.deepstack[layer], hidden))
        return self.op("Concat", [self._merge(spec.merger, hidden), *deep], {"axis": -1}, name="pieces")

    def _positions(self, places: ir.Value, like: ir.Value) -> ir.Value:
        """Position embeddings [P, H]: those of the four nearest places of the table, by distance, in fp32."""
        side, to_float = self._spec.position_side, {"to": int(ir.DataType.FLOAT)}
        wide = self.op("Cast", [places], to_float)  # [P, 2]
        last = self.op("ReduceMax", [wide, self.integers([0])], {"keepdims": 1})  # [1, 2]: the last patch's
        ones = self.op("Constant", [], {"value_floats": [1.0]})
        edge = self.op("Constant", [], {"value_floats": [float(side - 1)]})
        exact = self.op("Div", [self.op("Mul", [wide, edge]), self.op("Max", [last, ones])], name="positions")
        first = self.op("Floor", [exact])
        behind = self.op("Sub", [exact, first])  # shares of the places behind the first ones
        # For the places at or before a patch's own, then for the next ones: row and column in the table, and the shares
        # of their embeddings, [P, 2] each.
        steps = (
            (first, self.op("Sub", [ones, behind])),
            (self.op("Min", [self.op("Add", [first, ones]), edge]), behind),
        )
        (tops, bottoms), (lefts, rights) = ([self._axis(pair, axis) for pair in steps] for axis in (0, 1))
        table = self.op("Cast", [self.keep(self._spec.positions)], to_float)
        width = self.op("Constant", [], {"value_floats": [float(side)]})
        parts = []
        for (row, upper), (column, share) in product((tops, bottoms), (lefts, rights)):
            index = self.op("Add", [self.op("Mul", [row, width]), column])
            whole = self.op("Cast", [self.op("Squeeze", [index, self.integers([1])])], {"to": int(ir.DataType.INT64)})
            parts.append(self.op("Mul", [self.op("Gather", [table, whole]), self.op("Mul", [upper, share])]))
        return self.op("CastLike", [self.op("Sum", parts), like])

    def _axis(self, pair: tuple[ir.Value, ir.Value], axis: int) -> tuple[ir.Value, ir.Value]:
        """Places and shares of rows (0) or columns (1), [P, 1] each."""
        bounds = [self.integers([value]) for value in (axis, axis + 1, 1)]
        place, share = (self.op("Slice", [value, *bounds]) for value in pair)
        return place, share

    def _layer(self, prefix: str, hidden: ir.Value) -> ir.Value:
        """One layer: [P, H] -> [P, H]."""
        spec, attention = self._spec, f"{prefix}attn."
        normed = self.layer_norm(f"{prefix}norm1", hidden, spec.norm_eps)
        context = self.attend_to_all(self.heads(attention, normed), f"{attention}attention")
        hidden = self.op("Add", [hidden, self.linear(f"{attention}proj", context)])
        inner = self.linear(f"{prefix}mlp.linear_fc1", self.layer_norm(f"{prefix}norm2", hidden, spec.norm_eps))
        output = self.linear(f"{prefix}mlp.linear_fc2", self.activation(spec.activation, inner))
        return self.op("Add", [hidden, output], name=f"{prefix}residual")

    def _merge(self, merger: MergerSpec, hidden: ir.Value) -> ir.Value:
        """[P, H] -> [pieces, out_features]; the patches of a piece are neighbours."""
        rows = self.op("Reshape", [hidden, self.integers([-1, merger.norm_size])])
        normed = self.layer_norm(f"{merger.prefix}norm", rows, self._spec.norm_eps)
        squares = self.op("Reshape", [normed, self.integers([-1, merger.square_size])])
        inner = self.activation(GELU, self.linear(f"{merger.prefix}linear_fc1", squares))
        return self.linear(f"{merger.prefix}linear_fc2", inner)
