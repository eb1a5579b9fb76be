"""Writes what a model sees with, its tower and what is behind it, as an ONNX graph of its own beside the decoder.

In: a `SeeingSpec` and its tensors. Out: `vision.onnx` and `vision.onnx.data`: a prepared image -> what stands among the
decoder's embeddings in its place, or keys and values for a decoder that attends to it.

Here are the towers that see images of one size, or tiles of images; `windowed_graph` and `stacked_graph` have the
others, and `resampler_graph` what makes keys and values. The same computation in PyTorch is
`awq2trt.models.vision.tower`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from awq2trt.errors import UnsupportedError
from awq2trt.io_contract import (
    IMAGE_EMBEDDINGS,
    IMAGES,
    PIXEL_VALUES,
    VISION_FILE,
    VISION_WEIGHTS_FILE,
    IoContract,
    TensorContract,
)
from awq2trt.models.vision.description import AttendedSpec, ProjectorSpec, SeeingSpec, StillSpec, TowerSpec, VisionSpec
from awq2trt.models.vision.mosaic import MosaicSpec
from awq2trt.models.vision.pooled import PooledVisionSpec, PoolerSpec
from awq2trt.models.vision.stacked import StackedVisionSpec
from awq2trt.models.vision.tiled import TiledVisionSpec
from awq2trt.models.vision.windowed import WindowedVisionSpec
from awq2trt.onnx_export.external_data import ExternalDataWriter, write_graph
from awq2trt.onnx_export.resampler_graph import keys_and_values, resample
from awq2trt.onnx_export.stacked_graph import StackedBuilder, stacked_contract
from awq2trt.onnx_export.tower_graph import Tensors, TowerBuilder, TowerCodes
from awq2trt.onnx_export.windowed_graph import WindowedBuilder, windowed_contract


def vision_contract(spec: SeeingSpec, dtype: ir.DataType) -> IoContract:
    """Inputs and outputs of the graph that `export_vision` writes with the same arguments.

    Raises:
        UnsupportedError: There is no graph for this kind of tower.
    """
    name = dtype.name.lower()
    if isinstance(spec, WindowedVisionSpec):
        return windowed_contract(spec, name)
    if isinstance(spec, StackedVisionSpec):
        return stacked_contract(spec, name)
    still = _still(spec)
    pixels, pieces = (IMAGES, *still.pixels_shape), (IMAGES, *still.pieces_shape)
    meaning = "What stands in the place of image tokens."
    if isinstance(spec, AttendedSpec):
        meaning = "Keys, then values, of every layer that attends to images."
    return IoContract(
        inputs=(TensorContract(PIXEL_VALUES, name, pixels, "Prepared images, or tiles."),),
        outputs=(TensorContract(IMAGE_EMBEDDINGS, name, pieces, meaning),),
    )


def export_vision(
    spec: SeeingSpec, tensors: Tensors, directory: Path, dtype: ir.DataType, codes: TowerCodes | None = None
) -> IoContract:
    """Writes the graph and its weights into `directory`.

    Args:
        spec: How the model sees.
        tensors: As `ModelSource.vision_tensors` gives them, and the readers of an `AttendedSpec`.
        directory: Where the files go.
        dtype: Type of pixels, weights and embeddings: FLOAT16 or BFLOAT16.
        codes: Linears that are quantized, of which `tensors` has nothing; None if none are.

    Raises:
        UnsupportedError: A weight is beyond what `dtype` holds, or there is no graph for this kind of tower.
        ArtifactError: The files cannot be written.
    """
    contract = vision_contract(spec, dtype)

    def build(writer: ExternalDataWriter) -> ir.Model:
        if isinstance(spec, WindowedVisionSpec):
            return WindowedBuilder(spec, tensors, writer, dtype, codes).model(contract)
        if isinstance(spec, StackedVisionSpec):
            return StackedBuilder(spec, tensors, writer, dtype, codes).model(contract)
        if isinstance(spec, TiledVisionSpec):
            return _TiledBuilder(spec, tensors, writer, dtype, codes).model(contract)
        if isinstance(spec, MosaicSpec):
            return _MosaicBuilder(spec, tensors, writer, dtype, codes).model(contract)
        assert isinstance(spec, StillSpec)  # since it has a contract
        return _StillBuilder(spec, tensors, writer, dtype, codes).model(contract)

    write_graph(directory / VISION_FILE, directory / VISION_WEIGHTS_FILE, build)
    return contract


def _still(spec: SeeingSpec) -> StillSpec | TiledVisionSpec | MosaicSpec:
    if not isinstance(spec, StillSpec | TiledVisionSpec | MosaicSpec):
        raise UnsupportedError(
            f"there is no vision graph for the towers of {spec.family}.",
            where="the vision graph",
            fix="CONTRIBUTING.md, 'A new model family', shows where to add one.",
        )
    return spec


class _LayersBuilder(TowerBuilder):
    """The layers of a tower as CLIP's or SigLIP's.

    Shapes in comments: I images or tiles, P pieces of one with any class token, H channels of the tower.
    """

    def _states(self, spec: TowerSpec, pixels: ir.Value, *, last: int) -> list[ir.Value]:
        """The first layer's input, then the outputs of the first `last` layers: [I, P, H] each."""
        states = [self._embed(spec, pixels)]
        for layer in range(last):
            states.append(self._layer(spec, spec.layer_prefix(layer), states[-1]))
        return states

    def _embed(self, spec: TowerSpec, pixels: ir.Value) -> ir.Value:
        """What the first layer reads: [I, P, H]."""
        prefix = f"{spec.prefix}embeddings."
        patch = [spec.patch_size, spec.patch_size]
        name = f"{prefix}patch_embedding"
        weights = [self.keep(f"{name}.weight"), *([] if spec.class_token else [self.keep(f"{name}.bias")])]
        # [I, H, rows, columns]
        grid = self.op("Conv", [pixels, *weights], {"strides": patch, "kernel_shape": patch}, name=name)
        flat = self.op("Reshape", [grid, self.integers([0, spec.hidden_size, -1])])
        patches = self.op("Transpose", [flat], {"perm": [0, 2, 1]})  # [I, patches, H]
        positions = self._positions(f"{prefix}position_embedding.weight")
        if not spec.class_token:
            return self.op("Add", [patches, positions])
        images = self.op("Shape", [pixels], {"start": 0, "end": 1})
        sizes = self.op("Concat", [images, self.integers([1, spec.hidden_size])], {"axis": 0})
        first = self.op("Expand", [self.keep(f"{prefix}class_embedding"), sizes])
        placed = self.op("Add", [self.op("Concat", [first, patches], {"axis": 1}), positions])
        return self.layer_norm(f"{spec.prefix}pre_layrnorm", placed, spec.norm_eps)

    def _positions(self, table: str) -> ir.Value:
        """Embeddings of the positions of an image's pieces: [P, H]."""
        return self.keep(table)

    def _layer(self, spec: TowerSpec, prefix: str, hidden: ir.Value) -> ir.Value:
        """One layer: [I, P, H] -> [I, P, H]."""
        attention = f"{prefix}self_attn."
        normed = self.layer_norm(f"{prefix}layer_norm1", hidden, spec.norm_eps)
        split = self.integers([0, 0, spec.num_heads, -1])
        heads = [
            self.op(
                "Transpose",
                [self.op("Reshape", [self.linear(attention + name, normed), split])],
                {"perm": [0, 2, 1, 3]},
            )
            for name in ("q_proj", "k_proj", "v_proj")
        ]  # [I, heads, P, H / heads]
        scale = (spec.hidden_size // spec.num_heads) ** -0.5
        context = self.op("Attention", heads, {"scale": scale}, name=f"{attention}attention")
        merged = self.op("Transpose", [context], {"perm": [0, 2, 1, 3]})
        flat = self.op("Reshape", [merged, self.integers([0, 0, -1])])
        hidden = self.op("Add", [hidden, self.linear(f"{attention}out_proj", flat)])
        inner = self.linear(f"{prefix}mlp.fc1", self.layer_norm(f"{prefix}layer_norm2", hidden, spec.norm_eps))
        output = self.linear(f"{prefix}mlp.fc2", self.activation(spec.activation, inner))
        return self.op("Add", [hidden, output], name=f"{prefix}residual")


class _StillBuilder(_LayersBuilder):
    """A tower for images of one size, and what is behind it."""

    def __init__(
        self,
        spec: StillSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        super().__init__(spec, tensors, writer, dtype, codes)
        self._spec = spec

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        spec, features = self._spec, self._features(inputs[PIXEL_VALUES])
        if isinstance(spec, PooledVisionSpec):
            normed = self.layer_norm(f"{spec.tower.prefix}post_layernorm", features, spec.tower.norm_eps)
            return self._pool(spec.pooler, spec.tower.side, normed)
        if isinstance(spec, AttendedSpec):
            return keys_and_values(self, spec.readers, resample(self, spec.resampler, features))
        assert isinstance(spec, VisionSpec)
        return self._project(spec.projector, features)

    def _features(self, pixels: ir.Value) -> ir.Value:
        """What stands behind the tower reads this of pixels [I, 3, side, side]: [I, tokens, channels]."""
        spec = self._spec
        states = self._states(spec.tower, pixels, last=max(spec.feature_layers))
        chosen = [states[layer] for layer in spec.feature_layers]
        features = chosen[0] if len(chosen) == 1 else self.op("Concat", chosen, {"axis": -1})
        if spec.keeps_class or not spec.tower.class_token:
            return features
        starts, ends, axes = self.integers([1]), self.integers([2**63 - 1]), self.integers([1])
        return self.op("Slice", [features, starts, ends, axes], name="without_class")

    def _pool(self, spec: PoolerSpec, side: int, patches: ir.Value) -> ir.Value:
        """Means of squares of patches, projected: [I, patches, H] -> [I, pieces, out_features]."""
        channels = self.op("Transpose", [patches], {"perm": [0, 2, 1]})
        grid = self.op("Reshape", [channels, self.integers([0, 0, side, side])])
        square = [spec.merge, spec.merge]
        means = self.op("AveragePool", [grid], {"kernel_shape": square, "strides": square}, name=f"{spec.prefix}pool")
        flat = self.op("Reshape", [means, self.integers([0, 0, -1])])
        pieces = self.op("Transpose", [flat], {"perm": [0, 2, 1]})  # [I, pieces, H]
        gain = self.op("Add", [self.keep(spec.norm), self.constant(f"{spec.norm}.offset", np.asarray(1, np.float32))])
        attributes = {"axis": -1, "epsilon": spec.norm_eps, "stash_type": int(ir.DataType.FLOAT)}
        normed = self.op("RMSNormalization", [pieces, gain], attributes, name=f"{spec.prefix}norm")
        return self.op("MatMul", [normed, self.keep(spec.projection)], name=f"{spec.prefix}projection")

    def _project(self, spec: ProjectorSpec, features: ir.Value) -> ir.Value:
        inner = self.activation(spec.activation, self.linear(f"{spec.prefix}linear_1", features))
        return self.linear(f"{spec.prefix}linear_2", inner)


class _MosaicBuilder(_StillBuilder):
    """A tower for tiles that lie side by side, and its projector: a tile's pieces, and one for the end of a row."""

    def __init__(
        self,
        spec: MosaicSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        super().__init__(spec.tile, tensors, writer, dtype, codes)
        self._newline = spec.newline

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        pieces = super().seen(inputs)  # [I, P, channels]
        tiles = self.op("Shape", [pieces], {"start": 0, "end": 1})
        sizes = self.op("Concat", [tiles, self.integers([1, 1])], {"axis": 0})
        ends = self.op("Expand", [self.keep(self._newline), sizes])  # [I, 1, channels]
        return self.op("Concat", [pieces, ends], {"axis": 1}, name="with_newline")


class _TiledBuilder(_LayersBuilder):
    """A tower for tiles, and the connector, whose input is a square of patches (`models.vision.tiled_tower`)."""

    def __init__(
        self,
        spec: TiledVisionSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        super().__init__(spec, tensors, writer, dtype, codes)
        self._spec = spec

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        tower, merge = self._spec.tower, self._spec.connector.merge
        last = self._states(tower, inputs[PIXEL_VALUES], last=tower.num_layers)[-1]
        normed = self.layer_norm(f"{tower.prefix}post_layernorm", last, tower.norm_eps)
        split = self.op("Reshape", [normed, self.integers([-1, merge, tower.side // merge, merge * tower.hidden_size])])
        squares = self.op("Transpose", [split], {"perm": [0, 2, 1, 3]})  # [I rows, columns, merge, merge H]
        pieces = self._spec.layout.pieces
        flat = self.op("Reshape", [squares, self.integers([-1, pieces, merge**2 * tower.hidden_size])])
        return self.linear(self._spec.connector.linear, flat)

    def _positions(self, table: str) -> ir.Value:
        rows = self.integers([int(row) for row in self._spec.position_rows()])
        return self.op("Gather", [self.keep(table), rows], {"axis": 0})
