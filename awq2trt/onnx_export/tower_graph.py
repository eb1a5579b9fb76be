"""What the graphs of all towers are made of: linears, norms, activations, and the tensors of a checkpoint.

In: a description and its tensors. Out: nodes on a tape, and at last the complete graph. `vision_graph` writes towers
for images of one size with it, `patch_graph` the parts of those for images of any size. Linears of which a checkpoint
has codes are nodes as in the decoder; nothing else is quantized.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import IoContract
from awq2trt.models.families import GELU_TANH, RELU, SILU
from awq2trt.models.vision.description import QUICK_GELU, QUICK_GELU_SLOPE, SeeingSpec
from awq2trt.onnx_export.bodies import BodyVariant, make_body
from awq2trt.onnx_export.coded_nodes import linear_node
from awq2trt.onnx_export.external_data import ExternalDataWriter, initializer
from awq2trt.onnx_export.streamed_weights import Checkpoint, StreamedWeights

Tensors = Mapping[str, NDArray[np.generic]]
"""Tensors of a tower and what is behind it, by full name."""


@dataclass(frozen=True)
class TowerCodes:
    """Linears of a tower and of what is behind it that are quantized.

    Attributes:
        checkpoint: Has their codes.
        names: Their full names.
        function_bodies: Whether model-local functions define their operator.
    """

    checkpoint: Checkpoint
    names: frozenset[str]
    function_bodies: bool


class TowerBuilder(ABC):
    """Appends nodes to a tape.

    Args:
        spec: How the model sees.
        tensors: As `ModelSource.vision_tensors` gives them.
        writer: Writes them.
        dtype: Type of pixels, weights and embeddings.
        codes: Linears that are quantized, of which `tensors` has nothing; None if none are.
    """

    def __init__(
        self,
        spec: SeeingSpec,
        tensors: Tensors,
        writer: ExternalDataWriter,
        dtype: ir.DataType,
        codes: TowerCodes | None = None,
    ) -> None:
        self._family = spec.family
        self._tensors = tensors
        self._writer = writer
        self._dtype = dtype
        self._codes = codes
        self._variants: dict[BodyVariant, None] = {}  # a set that keeps its order
        self._tape = Tape()
        self._initializers: dict[str, ir.Value] = {}

    @abstractmethod
    def seen(self, inputs: Mapping[str, ir.Value]) -> ir.Value:
        """What the decoder reads or attends to, from the graph's inputs by name."""

    def model(self, contract: IoContract) -> ir.Model:
        """The whole graph."""
        inputs = {
            tensor.name: ir.Value(
                name=tensor.name,
                type=ir.TensorType(ir.DataType[tensor.dtype.upper()]),
                shape=ir.Shape(tensor.shape),
            )
            for tensor in contract.inputs
        }
        (embeddings,) = contract.outputs
        output = self.seen(inputs)
        output.name, output.dtype, output.shape = embeddings.name, self._dtype, ir.Shape(embeddings.shape)
        graph = ir.Graph(
            list(inputs.values()),
            [output],
            nodes=self._tape.nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": opset.ONNX_OPSET, **({opset.DOMAIN: opset.DOMAIN_VERSION} if self._variants else {})},
            name=f"{self._family}_vision",
        )
        bodies = self._codes is not None and self._codes.function_bodies
        functions = [make_body(variant) for variant in self._variants] if bodies else []
        return ir.Model(graph, ir_version=opset.ONNX_IR_VERSION, producer_name="awq2trt", functions=functions)

    def activation(self, kind: str, x: ir.Value) -> ir.Value:
        """An activation function of any shape; `kind` is one that a description has."""
        if kind == RELU:
            return self.op("Relu", [x])
        if kind == SILU:
            return self.op("Mul", [x, self.op("Sigmoid", [x])])
        if kind == QUICK_GELU:
            slope = self.constant("quick_gelu.slope", np.asarray(QUICK_GELU_SLOPE, np.float32))
            return self.op("Mul", [x, self.op("Sigmoid", [self.op("Mul", [x, slope])])])
        return self.op("Gelu", [x], {"approximate": "tanh" if kind == GELU_TANH else "none"})

    def linear(self, name: str, x: ir.Value) -> ir.Value:
        """[..., K] -> [..., N]; with a bias where the model has one; with codes where the checkpoint has them."""
        if self._codes is not None and name in self._codes.names:
            return self._coded(self._codes.checkpoint, name, x)
        transposed = self.op("Transpose", [self.keep(f"{name}.weight")], {"perm": [1, 0]})
        product = self.op("MatMul", [x, transposed], name=name)
        bias = f"{name}.bias"
        return self.op("Add", [product, self.keep(bias)]) if bias in self._tensors else product

    def _coded(self, checkpoint: Checkpoint, name: str, x: ir.Value) -> ir.Value:
        variant, kept = StreamedWeights(checkpoint, self._writer, self._dtype).linear(name)
        self._variants[variant] = None
        self._initializers.update({str(value.name): value for value in kept})
        return linear_node(self._tape, x, (variant, kept), name, leading=None)

    def layer_norm(self, name: str, x: ir.Value, eps: float) -> ir.Value:
        """A norm over the last axis, its squares and their mean in fp32."""
        inputs = [x, self.keep(f"{name}.weight"), self.keep(f"{name}.bias")]
        attributes = {"axis": -1, "epsilon": eps, "stash_type": int(ir.DataType.FLOAT)}
        return self.op("LayerNormalization", inputs, attributes, name=name)

    def keep(self, name: str) -> ir.Value:
        """Initializer of one of the model's tensors."""
        return self.constant(name, self._tensors[name])

    def constant(self, name: str, value: NDArray[np.generic]) -> ir.Value:
        """An initializer in the graph's dtype, written once."""
        if name not in self._initializers:
            self._initializers[name] = initializer(self._writer.write_float(name, value, self._dtype))
        return self._initializers[name]

    def integers(self, values: Sequence[int]) -> ir.Value:
        """An int64 constant."""
        return self.op("Constant", [], {"value_ints": list(values)})

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
    ) -> ir.Value:
        """Appends a node with one output."""
        return self._tape.op(op_type, inputs, attributes, name=name)
