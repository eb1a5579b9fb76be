"""Writes what a model sees with, its tower and what is behind it, as an ONNX graph of its own beside the decoder.

In: a `SeeingSpec` and its tensors. Out: `vision.onnx` and `vision.onnx.data`: a prepared image -> what stands among the
decoder's embeddings in its place, or keys and values for a decoder that attends to it. Nothing in it is quantized.

Here are the towers that see images of one size; `windowed_graph` has the others, and `resampler_graph` what makes keys
and values. The same computation in PyTorch is
`awq2trt.models.vision.tower`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
from awq2trt.models.vision.description import (
    CHANNELS,
    AttendedSpec,
    ProjectorSpec,
    SeeingSpec,
    StillSpec,
    TowerSpec,
    VisionSpec,
)
from awq2trt.models.vision.windowed import WindowedVisionSpec
from awq2trt.onnx_export.external_data import ExternalDataWriter, write_graph
from awq2trt.onnx_export.resampler_graph import keys_and_values, resample
from awq2trt.onnx_export.tower_graph import Tensors, TowerBuilder
from awq2trt.onnx_export.windowed_graph import WindowedBuilder, windowed_contract


def vision_contract(spec: SeeingSpec, dtype: ir.DataType) -> IoContract:
    """Inputs and outputs of the graph that `export_vision` writes with the same arguments.

    Raises:
        UnsupportedError: There is no graph for this kind of tower.
    """
    name = dtype.name.lower()
    if isinstance(spec, WindowedVisionSpec):
        return windowed_contract(spec, name)
    side, embeddings = _still(spec).tower.image_size, (IMAGES, *_still(spec).pieces_shape)
    meaning = "What stands in the place of image tokens."
    if isinstance(spec, AttendedSpec):
        meaning = "Keys, then values, of every layer that attends to images."
    return IoContract(
        inputs=(TensorContract(PIXEL_VALUES, name, (IMAGES, CHANNELS, side, side), "Prepared images."),),
        outputs=(TensorContract(IMAGE_EMBEDDINGS, name, embeddings, meaning),),
    )


def export_vision(spec: SeeingSpec, tensors: Tensors, directory: Path, dtype: ir.DataType) -> IoContract:
    """Writes the graph and its weights into `directory`.

    Args:
        spec: How the model sees.
        tensors: As `ModelSource.vision_tensors` gives them, and the readers of an `AttendedSpec`.
        directory: Where the files go.
        dtype: Type of pixels, weights and embeddings: FLOAT16 or BFLOAT16.

    Raises:
        UnsupportedError: A weight is beyond what `dtype` holds, or there is no graph for this kind of tower.
        ArtifactError: The files cannot be written.
    """
    contract = vision_contract(spec, dtype)

    def build(writer: ExternalDataWriter) -> ir.Model:
        if isinstance(spec, WindowedVisionSpec):
            return WindowedBuilder(spec, tensors, writer, dtype).model(contract)
        return _StillBuilder(_still(spec), tensors, writer, dtype).model(contract)

    write_graph(directory / VISION_FILE, directory / VISION_WEIGHTS_FILE, build)
    return contract


def _still(spec: SeeingSpec) -> StillSpec:
    if not isinstance(spec, StillSpec):
        raise UnsupportedError(
            f"there is no vision graph for the towers of {spec.family}.",
            where="the vision graph",
            fix="CONTRIBUTING.md, 'A new model family', shows where to add one.",
        )
    return spec


class _StillBuilder(TowerBuilder):
    """A tower for images of one size, and what is behind it.

    Shapes in comments: I images, P pieces of an image with the class token, H channels of the tower.
    """

    def __init__(self, spec: StillSpec, tensors: Tensors, writer: ExternalDataWriter, dtype: ir.DataType) -> None:
        super().__init__(spec, tensors, writer, dtype)
        self._spec = spec

    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        spec, features = self._spec, self._features(inputs[PIXEL_VALUES])
        if isinstance(spec, AttendedSpec):
            return keys_and_values(self, spec.readers, resample(self, spec.resampler, features))
        assert isinstance(spec, VisionSpec)
        return self._project(spec.projector, features)

    def _features(self, pixels: ir.Value) -> ir.Value:
        """What stands behind the tower reads this of pixels [I, 3, side, side]: [I, patches, channels]."""
        spec = self._spec
        states = [self._embed(spec.tower, pixels)]
        for layer in range(max(spec.feature_layers)):
            states.append(self._layer(spec.tower, spec.tower.layer_prefix(layer), states[-1]))
        chosen = [states[layer] for layer in spec.feature_layers]
        features = chosen[0] if len(chosen) == 1 else self.op("Concat", chosen, {"axis": -1})
        if spec.keeps_class:
            return features
        starts, ends, axes = self.integers([1]), self.integers([2**63 - 1]), self.integers([1])
        return self.op("Slice", [features, starts, ends, axes], name="without_class")

    def _embed(self, spec: TowerSpec, pixels: ir.Value) -> ir.Value:
        """What the first layer reads: [I, P, H]."""
        prefix = f"{spec.prefix}embeddings."
        patch = [spec.patch_size, spec.patch_size]
        name = f"{prefix}patch_embedding"
        grid = self.op(
            "Conv", [pixels, self.keep(f"{name}.weight")], {"strides": patch, "kernel_shape": patch}, name=name
        )  # [I, H, rows, columns]
        flat = self.op("Reshape", [grid, self.integers([0, spec.hidden_size, -1])])
        patches = self.op("Transpose", [flat], {"perm": [0, 2, 1]})  # [I, patches, H]
        images = self.op("Shape", [pixels], {"start": 0, "end": 1})
        sizes = self.op("Concat", [images, self.integers([1, spec.hidden_size])], {"axis": 0})
        first = self.op("Expand", [self.keep(f"{prefix}class_embedding"), sizes])
        pieces = self.op("Concat", [first, patches], {"axis": 1})
        placed = self.op("Add", [pieces, self.keep(f"{prefix}position_embedding.weight")])
        return self.layer_norm(f"{spec.prefix}pre_layrnorm", placed, spec.norm_eps)

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

    def _project(self, spec: ProjectorSpec, features: ir.Value) -> ir.Value:
        inner = self.activation(spec.activation, self.linear(f"{spec.prefix}linear_1", features))
        return self.linear(f"{spec.prefix}linear_2", inner)
