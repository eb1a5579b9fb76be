"""Linears fused with their neighbours: when they are fused, that results stay the same, and that it can be undone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint.pack import pack_int4
from awq2trt.graph.activations import write_activation
from awq2trt.graph.fused_linear import fuse_linears_, split_linears_
from awq2trt.graph.ort_lowering import linear_shapes
from awq2trt.onnx_export.fused_bodies import add_bodies_

WIDTH, ROWS, GROUP = 72, 48, 32
PARTS = (opset.RESIDUAL_NORM, opset.W4A16_LINEAR, opset.GATED_ACTIVATION)


@dataclass(frozen=True)
class Chain:
    """A norm, a linear, an activation and a sum, one behind the other. `norm`: "", "rms", "layer" or "layer-bias".

    `activation` is the code of a `GatedActivation`, or the name of one without a gate.
    """

    norm: str = "rms"
    residual: bool = True
    activation: int | str | None = 0
    addend: bool = False

    def model(self) -> ir.Model:
        """A new model of the chain; its outputs are y and, with a residual, the sum."""
        random = np.random.default_rng(7)
        nodes = _Nodes()
        y, total = nodes.given("x"), None
        if self.norm:
            y, total = self._append_norm_(nodes, y, random)
        y = _append_linear_(nodes, y, random)
        if isinstance(self.activation, str):
            y = write_activation(nodes.standard, self.activation, y)
        elif self.activation is not None:
            y = nodes.add(opset.GATED_ACTIVATION, [y], {opset.ATTR_ACTIVATION: self.activation}).outputs[0]
        if self.addend:
            y = nodes.standard("Add", y, nodes.given("addend", ROWS))
        nodes.graph.outputs.extend([y] if total is None else [y, total])
        return ir.Model(nodes.graph, ir_version=opset.ONNX_IR_VERSION)

    def _append_norm_(
        self, nodes: _Nodes, x: ir.Value, random: np.random.Generator
    ) -> tuple[ir.Value, ir.Value | None]:
        inputs = [x, *([nodes.given("residual")] if self.residual else [])]
        inputs.append(nodes.constant("gain", random.uniform(0.5, 1.5, WIDTH).astype(np.float32)))
        has_bias = self.norm == "layer-bias"
        if has_bias:
            inputs.append(nodes.constant("norm_bias", random.standard_normal(WIDTH).astype(np.float32)))
        numbers = {"has_residual": int(self.residual), "has_bias": int(has_bias), "rms": int(self.norm == "rms")}
        norm = nodes.add(opset.RESIDUAL_NORM, inputs, {**numbers, "epsilon": 1e-3}, 1 + self.residual)
        return norm.outputs[0], norm.outputs[1] if self.residual else None


class _Nodes:
    """A graph of operators in fp32 that a test appends to."""

    def __init__(self) -> None:
        imports = {"": opset.ONNX_OPSET, opset.DOMAIN: 1}
        self.graph = ir.Graph([], [], nodes=[], opset_imports=imports, name="chain")

    def given(self, name: str, width: int = WIDTH) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["tokens", width]))
        self.graph.inputs.append(value)
        return value

    def constant(self, name: str, array: NDArray[np.float32]) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def standard(self, op_type: str, *inputs: ir.Value, **attributes: str) -> ir.Value:
        node = ir.node(op_type, list(inputs), {**attributes}, name=op_type)
        node.outputs[0].name, node.outputs[0].type = f"{op_type}:0", ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return node.outputs[0]

    def add(self, op_type: str, inputs: list[ir.Value], numbers: dict[str, int | float], count: int = 1) -> ir.Node:
        attributes: dict[str, int | float | str] = {**numbers, **opset.PLUGIN_ATTRIBUTES}
        node = ir.node(op_type, inputs, attributes, domain=opset.DOMAIN, num_outputs=count, name=op_type)
        for index, output in enumerate(node.outputs):
            output.name, output.type = f"{op_type}:{index}", ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return node


def _append_linear_(nodes: _Nodes, x: ir.Value, random: np.random.Generator) -> ir.Value:
    groups = -(-WIDTH // GROUP)
    codes = pack_int4(random.integers(0, 16, (ROWS, WIDTH)).astype(np.uint8))
    packed = ir.PackedTensor(codes, ir.DataType.INT4, shape=ir.Shape((ROWS, WIDTH)), name="codes")
    value = ir.Value(name="codes", type=ir.TensorType(ir.DataType.INT4), shape=packed.shape, const_value=packed)
    nodes.graph.register_initializer(value)
    scales = nodes.constant("scales", random.uniform(0.01, 0.02, (ROWS, groups)).astype(np.float32))
    bias = nodes.constant("bias", random.standard_normal(ROWS).astype(np.float32))
    numbers = {opset.ATTR_GROUP_SIZE: GROUP, opset.ATTR_HAS_ZEROS: 0, opset.ATTR_HAS_BIAS: 1}
    y = nodes.add(opset.W4A16_LINEAR, [x, value, scales, bias], {**numbers}).outputs[0]
    y.shape = ir.Shape(["tokens", ROWS])  # as in an exported model
    return y


CHAINS = [
    Chain(),
    Chain(residual=False),
    Chain(norm="layer", activation=2),
    Chain(norm="layer-bias", activation=None),
    Chain(norm="", residual=False, activation=3),
    Chain(norm="layer", activation="gelu"),
    Chain(norm="layer-bias", residual=False, activation="gelu_tanh"),
    Chain(norm="", residual=False, activation="relu"),
    Chain(norm="", residual=False, activation="silu", addend=True),
    Chain(norm="", residual=False, activation=None, addend=True),
]


def _run(model: ir.Model) -> list[NDArray[np.float32]]:
    """Outputs, by the bodies of the operators."""
    add_bodies_(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random = np.random.default_rng(3)
    feeds = {
        value.name: random.standard_normal((5, value.shape[1])).astype(np.float32) for value in session.get_inputs()
    }
    return [np.asarray(output) for output in session.run(None, feeds)]


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_one_node_means_what_its_parts_mean(chain: Chain) -> None:
    expected, model = _run(chain.model()), chain.model()
    fuse_linears_(model.graph)
    assert _kinds(model) == [opset.FUSED_LINEAR]
    assert next(iter(model.graph)).name == opset.W4A16_LINEAR  # the layer's name
    assert list(linear_shapes(model)) == [(ROWS, WIDTH)]
    for found, wanted in zip(_run(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_it_can_be_taken_apart(chain: Chain) -> None:
    before, model = chain.model(), chain.model()
    fuse_linears_(model.graph)
    split_linears_(model.graph)
    assert _kinds(model) == _kinds(before)
    for node, original in zip(model.graph, before.graph, strict=True):
        assert node.attributes == original.attributes
    for found, wanted in zip(_run(model), _run(before), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_norm_that_others_read_stays() -> None:
    model = Chain(activation=None).model()
    norm = next(iter(model.graph))
    model.graph.outputs.append(norm.outputs[0])
    fuse_linears_(model.graph)
    assert _kinds(model) == list(PARTS[:2])


def test_a_linear_that_others_read_keeps_its_activation_apart() -> None:
    model = Chain().model()
    linear = next(node for node in model.graph if node.op_type == opset.W4A16_LINEAR)
    model.graph.outputs.append(linear.outputs[0])
    fuse_linears_(model.graph)
    assert _kinds(model) == [opset.FUSED_LINEAR, opset.GATED_ACTIVATION]


@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_an_activation_that_is_not_the_only_reader_stays(kind: str) -> None:
    model = Chain(norm="", residual=False, activation=kind).model()
    linear = next(node for node in model.graph if node.op_type == opset.W4A16_LINEAR)
    before = _kinds(model)
    model.graph.append(ir.node("Neg", [linear.outputs[0]], name="other"))
    model.graph.outputs.append(list(model.graph)[-1].outputs[0])
    fuse_linears_(model.graph)
    assert _kinds(model) == [*before, "Neg"]


def test_a_sigmoid_that_others_read_keeps_its_silu_apart() -> None:
    model = Chain(norm="", residual=False, activation="silu").model()
    before = _kinds(model)
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Sigmoid").outputs[0])
    fuse_linears_(model.graph)
    assert _kinds(model) == before


def test_a_sum_with_a_norm_or_a_gate_before_it_stays() -> None:
    for chain in (Chain(activation=None, addend=True), Chain(norm="", residual=False, addend=True)):
        model = chain.model()
        fuse_linears_(model.graph)
        assert _kinds(model) == [opset.FUSED_LINEAR, "Add"]


def test_only_computed_values_of_the_same_shape_are_addends() -> None:
    for shape in (ir.Shape([ROWS]), ir.Shape(["tokens", 1])):
        model = Chain(norm="", residual=False, activation=None, addend=True).model()
        model.graph.inputs[-1].shape = shape
        fuse_linears_(model.graph)
        assert _kinds(model) == [opset.W4A16_LINEAR, "Add"]
    model = Chain(norm="", residual=False, activation=None, addend=True).model()
    addition = list(model.graph)[-1]
    constant = ir.Value(name="c", const_value=ir.Tensor(np.ones((1, ROWS), np.float32)))
    model.graph.register_initializer(constant)
    addition.replace_input_with(1, constant)
    fuse_linears_(model.graph)
    assert _kinds(model) == [opset.W4A16_LINEAR, "Add"]


def test_an_addend_may_be_made_after_the_linear() -> None:
    def model() -> ir.Model:
        made = Chain(norm="", residual=False, activation="gelu", addend=True).model()
        addition = list(made.graph)[-1]
        late = ir.node("Neg", [addition.inputs[1]], name="late")
        late.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        made.graph.insert_before(addition, late)
        addition.replace_input_with(1, late.outputs[0])
        return made

    fused = model()
    fuse_linears_(fused.graph)
    assert _kinds(fused) == ["Neg", opset.FUSED_LINEAR]
    for found, wanted in zip(_run(fused), _run(model()), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_widths_that_no_kernel_takes_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opset, "FUSED_WIDTH_MULTIPLE", 2 * ROWS)
    for chain in (
        Chain(norm="", residual=False, activation="relu"),
        Chain(norm="", residual=False, activation=None, addend=True),
    ):
        model, before = chain.model(), _kinds(chain.model())
        fuse_linears_(model.graph)
        assert _kinds(model) == before


def test_a_linear_alone_stays() -> None:
    model = Chain(norm="", residual=False, activation=None).model()
    fuse_linears_(model.graph)
    assert _kinds(model) == [opset.W4A16_LINEAR]
