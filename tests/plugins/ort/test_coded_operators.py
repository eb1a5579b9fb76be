"""W8A16Linear and the embeddings of the plugin library in ONNX Runtime's CPU provider, against their definitions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_checkpoints import random_linear

from awq2trt import opset
from awq2trt.checkpoint.pack import pack_int4
from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

REPOSITORY = Path(__file__).parents[3]
NAME = "model.embed_tokens"

TYPES: dict[str, tuple[int, Any]] = {
    "float32": (onnx.TensorProto.FLOAT, np.float32),
    "float16": (onnx.TensorProto.FLOAT16, np.float16),
    "bfloat16": (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
TOLERANCE = {"float32": 1e-5, "float16": 6e-4, "bfloat16": 5e-3}
"""Rounding of y, with a margin; sums are fp32."""

SHAPES = [
    pytest.param(128, 576, 33, id="shorter-last-group"),
    pytest.param(WHOLE_ROW, 72, 7, id="whole-row"),
    pytest.param(32, 1544, 40, id="several-pieces"),
]


@pytest.fixture(scope="module")
def options() -> onnxruntime.SessionOptions:
    if not (REPOSITORY / "build" / "plugins" / plugin_library.LIBRARY_NAME).is_file():
        pytest.skip("needs the plugin library: make plugins")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    register_custom_ops_(options, find_plugin_library().path)
    return options


@dataclass
class One:
    """A model with one node of an operator with codes."""

    op_type: str
    linear: QuantizedLinear
    dtype: str = "float16"

    def codes(self, name: str, value: NDArray[np.uint8]) -> onnx.TensorProto:
        if self.linear.scheme.bits == 8:
            signed = (value.astype(np.int16) - 128).astype(np.int8)
            return onnx.helper.make_tensor(name, onnx.TensorProto.INT8, value.shape, signed.tobytes(), raw=True)
        return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, value.shape, pack_int4(value).tobytes(), raw=True)

    def floats(self, name: str, value: NDArray[Any]) -> onnx.TensorProto:
        kind, of_numpy = TYPES[self.dtype]
        return onnx.helper.make_tensor(name, kind, value.shape, value.astype(of_numpy).tobytes(), raw=True)

    def bytes(self, **changed: int) -> bytes:
        linear = self.linear
        tensors = {"codes": self.codes("codes", linear.codes), "scales": self.floats("scales", linear.scales)}
        if linear.zeros is not None:
            tensors["zeros"] = self.codes("zeros", linear.zeros)
        is_linear = self.op_type in opset.LINEAR_OF_BITS.values()
        if is_linear and linear.bias is not None:
            tensors["bias"] = self.floats("bias", linear.bias)
        order = ["x", "codes", "scales"] if is_linear else ["scales", "codes", "x"]
        attributes = {opset.ATTR_GROUP_SIZE: linear.group_length, opset.ATTR_HAS_ZEROS: int(linear.zeros is not None)}
        if is_linear:
            attributes[opset.ATTR_HAS_BIAS] = int(linear.bias is not None)
        inputs = [*order, *(name for name in ("zeros", "bias") if name in tensors)]
        node = onnx.helper.make_node(self.op_type, inputs, ["y"], name=NAME, domain=opset.DOMAIN)
        node.attribute.extend(onnx.helper.make_attribute(*pair) for pair in {**attributes, **changed}.items())
        given = onnx.TensorProto.FLOAT if is_linear else onnx.TensorProto.INT64
        kind = TYPES[self.dtype][0] if is_linear else given
        nodes = [
            onnx.helper.make_node("Cast", ["given"], ["x"], to=kind),
            node,
            onnx.helper.make_node("Cast", ["y"], ["result"], to=onnx.TensorProto.FLOAT),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "one",
            [onnx.helper.make_tensor_value_info("given", given, ("batch", "tokens", "k") if is_linear else ("b", "s"))],
            [onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, None)],
            list(tensors.values()),
        )
        imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
        return bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())

    def run(self, options: onnxruntime.SessionOptions, given: NDArray[Any]) -> NDArray[np.float32]:
        session = onnxruntime.InferenceSession(self.bytes(), options, providers=["CPUExecutionProvider"])
        result: NDArray[np.float32] = session.run(None, {"given": given})[0]
        return result

    def rounded(self) -> NDArray[np.float64]:
        """The node's weight, with scales in its type."""
        linear, of_numpy = self.linear, TYPES[self.dtype][1]
        group = np.arange(linear.in_features) // linear.group_length
        zeros: Any = linear.scheme.symmetric_zero
        if linear.zeros is not None:
            zeros = linear.zeros.astype(np.float64)[:, group]
        scales: NDArray[np.float64] = linear.scales.astype(of_numpy).astype(np.float64)[:, group]
        weight: NDArray[np.float64] = scales * (linear.codes.astype(np.float64) - zeros)
        return weight


def _relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("zero_point", "bias"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("group_size", "features", "rows"), SHAPES)
def test_linear_of_bytes_follows_its_definition(
    group_size: int,
    features: int,
    rows: int,
    zero_point: bool,
    bias: bool,
    dtype: str,
    options: onnxruntime.SessionOptions,
) -> None:
    random = np.random.default_rng(3)
    linear = random_linear((rows, features), QuantScheme(8, group_size, zero_point), random, bias=bias)
    one = One(opset.W8A16_LINEAR, linear, dtype)
    for tokens in (1, 19):
        x = random.standard_normal((1, tokens, features)).astype(TYPES[dtype][1]).astype(np.float32)
        expected = x.astype(np.float64) @ one.rounded().T
        if linear.bias is not None:
            expected += linear.bias.astype(TYPES[dtype][1]).astype(np.float64)
        assert _relative_error(one.run(options, x), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("group_size", "features", "rows"), SHAPES)
def test_embedding_gathers_rows(
    group_size: int,
    features: int,
    rows: int,
    zero_point: bool,
    bits: int,
    dtype: str,
    options: onnxruntime.SessionOptions,
) -> None:
    linear = random_linear((rows, features), QuantScheme(bits, group_size, zero_point), np.random.default_rng(5))
    one = One(opset.EMBEDDING_OF_BITS[bits], linear, dtype)
    ids = np.array([[0, rows - 1, 3], [3, 1, 5]])
    expected = one.rounded()[ids].astype(TYPES[dtype][1]).astype(np.float32)  # rounded once
    np.testing.assert_array_equal(one.run(options, ids), expected)


def test_no_tokens_give_no_rows(options: onnxruntime.SessionOptions) -> None:
    linear = random_linear((9, 64), QuantScheme(8, 32, True), np.random.default_rng(0))
    assert One(opset.W8A16_LINEAR, linear).run(options, np.zeros((1, 0, 64), np.float32)).shape == (1, 0, 9)
    assert One(opset.W8A16_EMBEDDING, linear).run(options, np.zeros((1, 0), np.int64)).shape == (1, 0, 64)


@pytest.mark.parametrize("id_", [-1, 9])
def test_an_id_that_is_no_row_is_refused_by_node(id_: int, options: onnxruntime.SessionOptions) -> None:
    one = One(opset.W4A16_EMBEDDING, random_linear((9, 64), QuantScheme(4, 32, True), np.random.default_rng(0)))
    with pytest.raises(Exception, match=rf"{NAME}.*{opset.W4A16_EMBEDDING}: id {id_} is not one of the 9 rows"):
        one.run(options, np.array([[id_]]))


@pytest.mark.parametrize(
    ("op_type", "bits", "changed", "message"),
    [
        (opset.W8A16_LINEAR, 8, {"group_size": 0}, "group_size must be at least 1, got 0"),
        (opset.W8A16_LINEAR, 8, {"has_zeros": 0}, "expected 3 inputs for has_zeros = 0"),
        (opset.W8A16_EMBEDDING, 8, {"has_zeros": 2}, "has_zeros must be 0 or 1, got 2"),
        (opset.W4A16_EMBEDDING, 4, {"has_zeros": 0}, "expected 3 inputs for has_zeros = 0, got 4"),
    ],
)
def test_attributes_that_do_not_fit_are_refused_by_node(
    op_type: str, bits: int, changed: dict[str, int], message: str, options: onnxruntime.SessionOptions
) -> None:
    one = One(op_type, random_linear((9, 64), QuantScheme(bits, 32, True), np.random.default_rng(0)))
    with pytest.raises(Exception, match=rf"{NAME}.*{op_type}.*{message}"):
        onnxruntime.InferenceSession(one.bytes(**changed), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("op_type", [opset.W8A16_LINEAR, opset.W8A16_EMBEDDING])
def test_shapes_that_do_not_fit_are_refused_by_node(op_type: str, options: onnxruntime.SessionOptions) -> None:
    one = One(op_type, random_linear((9, 64), QuantScheme(8, 32, True), np.random.default_rng(0)))
    session = onnxruntime.InferenceSession(one.bytes(group_size=16), options, providers=["CPUExecutionProvider"])
    given = np.zeros((1, 1, 64), np.float32) if op_type == opset.W8A16_LINEAR else np.zeros((1, 1), np.int64)
    with pytest.raises(Exception, match=rf"{NAME}.*{op_type}: expected scales \[9, 4\]"):
        session.run(None, {"given": given})
