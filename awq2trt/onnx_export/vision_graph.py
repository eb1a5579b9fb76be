"""Writes what a model sees with, its tower and projector, as an ONNX graph of its own beside the decoder.

In: a `VisionSpec` and its tensors. Out: `vision.onnx` and `vision.onnx.data`: prepared pixels -> what stands among the
decoder's embeddings in the image's place. Nothing in it is quantized.

The same computation in PyTorch is `awq2trt.models.vision.tower`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import (
    IMAGE_EMBEDDINGS,
    IMAGES,
    PIXEL_VALUES,
    VISION_FILE,
    VISION_WEIGHTS_FILE,
    IoContract,
    TensorContract,
)
from awq2trt.models.families import GELU_TANH, RELU, SILU
from awq2trt.models.vision.description import CHANNELS, QUICK_GELU, TowerSpec, VisionSpec
from awq2trt.onnx_export.external_data import ExternalDataWriter, initializer, write_graph

_QUICK_GELU_SLOPE: Final = 1.702

Tensors = Mapping[str, NDArray[np.generic]]
"""Tensors of a tower and its projector, by full name."""


def vision_contract(spec: VisionSpec, dtype: ir.DataType) -> IoContract:
    """Inputs and outputs of the graph that `export_vision` writes with the same arguments."""
    name, side = dtype.name.lower(), spec.tower.image_size
    embeddings = (IMAGES, spec.tokens_per_image, spec.projector.out_features)
    return IoContract(
        inputs=(TensorContract(PIXEL_VALUES, name, (IMAGES, CHANNELS, side, side), "Prepared images."),),
        outputs=(TensorContract(IMAGE_EMBEDDINGS, name, embeddings, "What stands in the place of image tokens."),),
    )


def export_vision(spec: VisionSpec, tensors: Tensors, directory: Path, dtype: ir.DataType) -> IoContract:
    """Writes the graph and its weights into `directory`.

    Args:
        spec: How the model sees.
        tensors: As `ModelSource.vision_tensors` gives them.
        directory: Where the files go.
        dtype: Type of pixels, weights and embeddings: FLOAT16 or BFLOAT16.

    Raises:
        UnsupportedError: A weight is beyond what `dtype` holds.
        ArtifactError: The files cannot be written.
    """
    contract = vision_contract(spec, dtype)

    def build(writer: ExternalDataWriter) -> ir.Model:
        return _VisionBuilder(spec, tensors, writer, dtype).model(contract)

    write_graph(directory / VISION_FILE, directory / VISION_WEIGHTS_FILE, build)
    return contract


class _VisionBuilder:
    """Appends nodes to a tape.

    Shapes in comments: I images, P pieces of an image with the class token, H channels of the tower.
    """

    def __init__(self, spec: VisionSpec, tensors: Tensors, writer: ExternalDataWriter, dtype: ir.DataType) -> None:
        self._spec = spec
        self._tensors = tensors
        self._writer = writer
        self._dtype = dtype
        self._tape = Tape()
        self._initializers: dict[str, ir.Value] = {}

    def model(self, contract: IoContract) -> ir.Model:
        """The whole graph."""
        pixels, embeddings = contract.inputs[0], contract.outputs[0]
        shape = ir.Shape(pixels.shape)
        value = ir.Value(name=pixels.name, type=ir.TensorType(self._dtype), shape=shape)
        output = self._project(self._features(value))
        output.name, output.dtype, output.shape = embeddings.name, self._dtype, ir.Shape(embeddings.shape)
        graph = ir.Graph(
            [value],
            [output],
            nodes=self._tape.nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset.ONNX_OPSET},
            name=f"{self._spec.family}_vision",
        )
        return ir.Model(graph, ir_version=opset.ONNX_IR_VERSION, producer_name="awq2trt")

    def _features(self, pixels: ir.Value) -> ir.Value:
        """What the projector reads of pixels [I, 3, side, side]: [I, tokens, channels]."""
        spec = self._spec
        states = [self._embed(spec.tower, pixels)]
        for layer in range(max(spec.feature_layers)):
            states.append(self._layer(spec.tower, spec.tower.layer_prefix(layer), states[-1]))
        chosen = [states[layer] for layer in spec.feature_layers]
        features = chosen[0] if len(chosen) == 1 else self._op("Concat", chosen, {"axis": -1})
        if spec.keeps_class:
            return features
        starts, ends, axes = self._integers([1]), self._integers([2**63 - 1]), self._integers([1])
        return self._op("Slice", [features, starts, ends, axes], name="without_class")

    def _embed(self, spec: TowerSpec, pixels: ir.Value) -> ir.Value:
        """What the first layer reads: [I, P, H]."""
        prefix = f"{spec.prefix}embeddings."
        patch = [spec.patch_size, spec.patch_size]
        name = f"{prefix}patch_embedding"
        grid = self._op(
            "Conv", [pixels, self._keep(f"{name}.weight")], {"strides": patch, "kernel_shape": patch}, name=name
        )  # [I, H, rows, columns]
        flat = self._op("Reshape", [grid, self._integers([0, spec.hidden_size, -1])])
        patches = self._op("Transpose", [flat], {"perm": [0, 2, 1]})  # [I, patches, H]
        images = self._op("Shape", [pixels], {"start": 0, "end": 1})
        sizes = self._op("Concat", [images, self._integers([1, spec.hidden_size])], {"axis": 0})
        first = self._op("Expand", [self._keep(f"{prefix}class_embedding"), sizes])
        pieces = self._op("Concat", [first, patches], {"axis": 1})
        placed = self._op("Add", [pieces, self._keep(f"{prefix}position_embedding.weight")])
        return self._norm(spec, f"{spec.prefix}pre_layrnorm", placed)

    def _layer(self, spec: TowerSpec, prefix: str, hidden: ir.Value) -> ir.Value:
        """One layer: [I, P, H] -> [I, P, H]."""
        attention = f"{prefix}self_attn."
        normed = self._norm(spec, f"{prefix}layer_norm1", hidden)
        split = self._integers([0, 0, spec.num_heads, -1])
        heads = [
            self._op(
                "Transpose",
                [self._op("Reshape", [self._linear(attention + name, normed), split])],
                {"perm": [0, 2, 1, 3]},
            )
            for name in ("q_proj", "k_proj", "v_proj")
        ]  # [I, heads, P, H / heads]
        scale = (spec.hidden_size // spec.num_heads) ** -0.5
        context = self._op("Attention", heads, {"scale": scale}, name=f"{attention}attention")
        merged = self._op("Transpose", [context], {"perm": [0, 2, 1, 3]})
        flat = self._op("Reshape", [merged, self._integers([0, 0, -1])])
        hidden = self._op("Add", [hidden, self._linear(f"{attention}out_proj", flat)])
        inner = self._linear(f"{prefix}mlp.fc1", self._norm(spec, f"{prefix}layer_norm2", hidden))
        output = self._linear(f"{prefix}mlp.fc2", self._activation(spec.activation, inner))
        return self._op("Add", [hidden, output], name=f"{prefix}residual")

    def _project(self, features: ir.Value) -> ir.Value:
        spec = self._spec.projector
        inner = self._activation(spec.activation, self._linear(f"{spec.prefix}linear_1", features))
        return self._linear(f"{spec.prefix}linear_2", inner)

    def _activation(self, kind: str, x: ir.Value) -> ir.Value:
        if kind == RELU:
            return self._op("Relu", [x])
        if kind == SILU:
            return self._op("Mul", [x, self._op("Sigmoid", [x])])
        if kind == QUICK_GELU:
            slope = self._constant("quick_gelu.slope", np.asarray(_QUICK_GELU_SLOPE, np.float32))
            return self._op("Mul", [x, self._op("Sigmoid", [self._op("Mul", [x, slope])])])
        return self._op("Gelu", [x], {"approximate": "tanh" if kind == GELU_TANH else "none"})

    def _linear(self, name: str, x: ir.Value) -> ir.Value:
        """[I, P, K] -> [I, P, N]; with a bias where the model has one."""
        transposed = self._op("Transpose", [self._keep(f"{name}.weight")], {"perm": [1, 0]})
        product = self._op("MatMul", [x, transposed], name=name)
        bias = f"{name}.bias"
        return self._op("Add", [product, self._keep(bias)]) if bias in self._tensors else product

    def _norm(self, spec: TowerSpec, name: str, x: ir.Value) -> ir.Value:
        """A norm over the last axis, its squares and their mean in fp32."""
        inputs = [x, self._keep(f"{name}.weight"), self._keep(f"{name}.bias")]
        attributes = {"axis": -1, "epsilon": spec.norm_eps, "stash_type": int(ir.DataType.FLOAT)}
        return self._op("LayerNormalization", inputs, attributes, name=name)

    def _keep(self, name: str) -> ir.Value:
        """Initializer of one of the model's tensors."""
        return self._constant(name, self._tensors[name])

    def _constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """An initializer in the graph's dtype, written once."""
        if name not in self._initializers:
            self._initializers[name] = initializer(self._writer.write_float(name, value, self._dtype))
        return self._initializers[name]

    def _integers(self, values: Sequence[int]) -> ir.Value:
        return self._op("Constant", [], {"value_ints": list(values)})

    def _op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> ir.Value:
        return self._tape.op(op_type, inputs, attributes, name=name)
