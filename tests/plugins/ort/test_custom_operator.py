"""The operators of `plugins/ort` in ONNX Runtime's CPU build: compared with an oracle in every type; and refusals."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint import pack
from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_
from awq2trt.scheme import QuantizedLinear, QuantScheme

REPOSITORY = Path(__file__).parents[3]

ONNX_TYPES: Final = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}
SIGNIFICAND_BITS: Final = {"float32": 24, "float16": 11, "bfloat16": 8}


@dataclass(frozen=True)
class Layer:
    """Inputs of one node as in FORMAT.md: unsigned codes and zeros, scales and bias of `dtype`."""

    codes: NDArray[np.uint8]  # [N, K]
    scales: NDArray[Any]  # [N, ceil(K/G)]
    zeros: NDArray[np.uint8] | None
    bias: NDArray[Any] | None
    group_size: int

    @property
    def dtype(self) -> str:
        return self.scales.dtype.name

    def weight(self) -> NDArray[np.float64]:
        """W [N, K], by the definition in FORMAT.md."""
        group = np.arange(self.codes.shape[1]) // self.group_size
        zeros = 8 if self.zeros is None else self.zeros[:, group].astype(np.float64)
        return self.scales.astype(np.float64)[:, group] * (self.codes.astype(np.float64) - zeros)

    def attributes(self) -> dict[str, int | str]:
        return {
            opset.ATTR_GROUP_SIZE: self.group_size,
            opset.ATTR_HAS_ZEROS: int(self.zeros is not None),
            opset.ATTR_HAS_BIAS: int(self.bias is not None),
            opset.ATTR_PLUGIN_VERSION: opset.PLUGIN_VERSION,
            opset.ATTR_PLUGIN_NAMESPACE: opset.PLUGIN_NAMESPACE,
        }

    def initializers(self) -> list[onnx.TensorProto]:
        tensors = [_int4("codes", self.codes), _float("scales", self.scales)]
        if self.zeros is not None:
            tensors.append(_int4("zeros", self.zeros))
        if self.bias is not None:
            tensors.append(_float("bias", self.bias))
        return tensors


@dataclass
class Model:
    """A model of one node between casts, so that the caller's tensors are fp32 for every type of the node."""

    layer: Layer
    attributes: dict[str, int | str] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    x_type: int = 0
    x_shape: tuple[int | str, ...] | None = ("batch", "tokens", "channels")

    def __post_init__(self) -> None:
        self.attributes = self.attributes or self.layer.attributes()
        self.initializers = self.initializers or self.layer.initializers()
        self.x_type = self.x_type or ONNX_TYPES[self.layer.dtype]

    def bytes(self) -> bytes:
        fp32 = onnx.TensorProto.FLOAT
        node = onnx.helper.make_node(
            opset.W4A16_LINEAR,
            ["x", *(tensor.name for tensor in self.initializers)],
            ["y"],
            name="model.layers.0.mlp.up_proj",
            domain=opset.DOMAIN,
        )
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in self.attributes.items())
        nodes = [
            onnx.helper.make_node("Cast", ["given"], ["x"], to=self.x_type),
            node,
            onnx.helper.make_node("Cast", ["y"], ["result"], to=fp32),
        ]
        graph = onnx.helper.make_graph(
            nodes,
            "linear",
            [onnx.helper.make_tensor_value_info("given", fp32, self.x_shape)],
            [onnx.helper.make_tensor_value_info("result", fp32, None)],
            self.initializers,
        )
        imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10, functions=self.functions)
        return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def library() -> plugin_library.PluginLibrary:
    if not (REPOSITORY / "build" / "plugins" / plugin_library.LIBRARY_NAME).is_file():
        pytest.skip("needs the plugin library: make plugins")
    return find_plugin_library()


@pytest.fixture
def options(library: plugin_library.PluginLibrary) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are expected here, and raised
    options.intra_op_num_threads = 2
    register_custom_ops_(options, library.path)
    return options


@pytest.mark.parametrize("dtype", list(ONNX_TYPES))
@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("shape", "features", "group_size"),
    [
        pytest.param((1, 1), (7, 576), 128, id="ragged-last-group"),
        pytest.param((2, 9), (61, 2056), 64, id="many-tokens-two-pieces-of-k"),
        pytest.param((33,), (3, 64), -1, id="one-group-a-row"),
        pytest.param((), (5, 8), 32, id="no-leading-dimension"),
        pytest.param((1, 0), (4, 64), 32, id="no-tokens"),
        pytest.param((2, 1, 2), (130, 1032), 32, id="more-rows-than-a-task"),
    ],
)
def test_it_computes_what_the_oracle_says(
    options: onnxruntime.SessionOptions,
    *,
    dtype: str,
    zeros: bool,
    bias: bool,
    shape: tuple[int, ...],
    features: tuple[int, int],
    group_size: int,
) -> None:
    scheme = QuantScheme(group_size=group_size, zero_point=zeros)
    layer = _layer(*features, scheme.group_of(features[1]), dtype, zeros=zeros, bias=bias)
    x = _activations((*shape, features[1]), dtype)
    oracle = QuantizedLinear(layer.codes, layer.scales, layer.zeros, scheme).dequantize().astype(np.float64)
    np.testing.assert_allclose(oracle, layer.weight(), rtol=2.0**-23)
    model = Model(layer, x_shape=x.shape)
    _assert_close(_run(options, model, x), x, layer)


@pytest.mark.parametrize("dtype", list(ONNX_TYPES))
@pytest.mark.parametrize("group_size", [1, 7, 24, 1000])
def test_groups_of_any_size(options: onnxruntime.SessionOptions, group_size: int, dtype: str) -> None:
    layer = _layer(9, 1200, group_size, dtype, zeros=True, bias=True)
    x = _activations((3, 5, 1200), dtype)
    _assert_close(_run(options, Model(layer), x), x, layer)


def test_extreme_codes_and_zero_points_are_exact(options: onnxruntime.SessionOptions) -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), (2, 2))  # [2, 32]
    layer = Layer(codes, np.ones((2, 1), np.float16), np.array([[0], [15]], np.uint8), None, 32)
    y = _run(options, Model(layer, x_shape=(32, 32)), np.eye(32, dtype=np.float32))
    np.testing.assert_array_equal(y.T, codes.astype(np.float32) - [[0.0], [15.0]])  # from -15 to 15: not clamped


def test_output_shape_is_known_when_a_model_is_loaded(options: onnxruntime.SessionOptions) -> None:
    model = Model(_layer(7, 64, 32, "float16"))
    session = onnxruntime.InferenceSession(model.bytes(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", "tokens", 7]


def test_a_size_without_a_name_stays_open(options: onnxruntime.SessionOptions) -> None:
    layer = _layer(7, 64, 32, "float16")
    x = _activations((2, 64), "float16")
    _assert_close(_run(options, Model(layer, x_shape=(None, 64)), x), x, layer)  # type: ignore[arg-type]
    _assert_close(_run(options, Model(layer, x_shape=None), x), x, layer)


def test_it_wins_over_a_function_of_its_name(options: onnxruntime.SessionOptions) -> None:
    layer = _layer(32, 32, 32, "float16")
    body = onnx.helper.make_function(
        opset.DOMAIN,
        opset.W4A16_LINEAR,
        ["x", "codes", "scales"],
        ["y"],
        [
            onnx.helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1, block_size=32),
            onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),  # not transposed: another operator
        ],
        [onnx.helper.make_opsetid("", 21)],
        list(layer.attributes()),
    )
    model = Model(layer, functions=[body])
    x = _activations((1, 2, 32), "float16")
    by_body = _run(onnxruntime.SessionOptions(), model, x)
    np.testing.assert_allclose(by_body, x @ layer.weight(), atol=2e-3)
    _assert_close(_run(options, model, x), x, layer)


def test_sessions_share_the_operators_and_threads_a_session(library: plugin_library.PluginLibrary) -> None:
    layer = _layer(64, 256, 128, "float16", zeros=True)
    x = _activations((1, 40, 256), "float16")
    sessions = []
    for _ in range(2):
        options = onnxruntime.SessionOptions()
        register_custom_ops_(options, library.path)
        sessions += [onnxruntime.InferenceSession(Model(layer).bytes(), options) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: sessions[i % 4].run(None, {"given": x[:, : 1 + i % 5]})[0], range(40)))
    for i, y in enumerate(results):
        _assert_close(y, x[:, : 1 + i % 5], layer)


def test_registering_twice_is_harmless(
    options: onnxruntime.SessionOptions, library: plugin_library.PluginLibrary
) -> None:
    register_custom_ops_(options, library.path)
    layer = _layer(7, 64, 32, "float16")
    x = _activations((1, 1, 64), "float16")
    _assert_close(_run(options, Model(layer), x), x, layer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"codes": (7, 60), "scales": (7, 2)}, "K must be a positive multiple of 8", id="k"),
        pytest.param({"codes": (7, 128)}, "last dimension of X is 64, but the codes are for K = 128", id="x"),
        pytest.param({"scales": (7, 3)}, r"expected scales \[7, 2\].*got \[7, 3\]", id="scales"),
        pytest.param({"zeros": (2, 7)}, r"zeros must have the shape of the scales, \[7, 2\]", id="zeros"),
        pytest.param({"bias": (8,)}, r"bias must have shape \[7\]", id="bias"),
    ],
)
def test_shapes_that_do_not_fit_name_the_node(
    options: onnxruntime.SessionOptions, change: dict[str, tuple[int, ...]], message: str
) -> None:
    model = Model(_layer(7, 64, 32, "float16", zeros=True, bias=True))
    for tensor in model.initializers:
        if tensor.name in change:
            shape = change[tensor.name]
            count = int(np.prod(shape))
            del tensor.dims[:]
            tensor.dims.extend(shape)
            tensor.raw_data = bytes((count + 1) // 2 if tensor.name in ("codes", "zeros") else 2 * count)
    x = _activations((1, 1, 60 if change.get("codes") == (7, 60) else 64), "float16")
    with pytest.raises(Exception, match=rf"node 'model\.layers\.0\.mlp\.up_proj': {opset.W4A16_LINEAR}.*{message}"):
        _run(options, model, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({opset.ATTR_GROUP_SIZE: 0}, "group_size must be at least 1, got 0", id="group"),
        pytest.param({opset.ATTR_GROUP_SIZE: 2**40}, "", id="group-beyond-32-bits"),
        pytest.param({opset.ATTR_HAS_ZEROS: 2}, "has_zeros must be 0 or 1, got 2", id="flag"),
        pytest.param(
            {opset.ATTR_HAS_BIAS: 1}, "expected 4 inputs for has_zeros = 0 and has_bias = 1, got 3", id="count"
        ),
        pytest.param({opset.ATTR_HAS_BIAS: None}, "has_bias", id="missing"),
    ],
)
def test_attributes_that_do_not_fit_name_the_node(
    options: onnxruntime.SessionOptions, change: dict[str, int | None], message: str
) -> None:
    layer = _layer(7, 64, 64, "float16")
    attributes = {key: value for key, value in (layer.attributes() | change).items() if value is not None}
    x = _activations((1, 1, 64), "float16")
    if not message:  # a group that is longer than a row is the row
        _assert_close(_run(options, Model(layer, attributes=attributes), x), x, layer)
        return
    with pytest.raises(Exception, match=rf"node 'model\.layers\.0\.mlp\.up_proj': .*{message}"):
        _run(options, Model(layer, attributes=attributes), x)


@pytest.mark.parametrize("name", ["zeros", "bias"])
def test_optional_inputs_of_another_type_are_refused(options: onnxruntime.SessionOptions, name: str) -> None:
    layer = _layer(7, 64, 32, "float16", zeros=True, bias=True)
    model = Model(layer)
    wrong = _float(name, np.zeros((7, 2) if name == "zeros" else (7,), np.float32))
    model.initializers = [wrong if tensor.name == name else tensor for tensor in model.initializers]
    expected = "int4" if name == "zeros" else "fp16"
    with pytest.raises(Exception, match=rf"up_proj': {opset.W4A16_LINEAR}: tensor . must be {expected}, got fp32"):
        _run(options, model, _activations((1, 1, 64), "float16"))


def test_activations_of_a_type_without_kernels_are_refused_when_a_model_is_loaded(
    options: onnxruntime.SessionOptions,
) -> None:
    model = Model(_layer(7, 64, 32, "float16"), x_type=onnx.TensorProto.DOUBLE)
    with pytest.raises(Exception, match=opset.W4A16_LINEAR):
        onnxruntime.InferenceSession(model.bytes(), options)


def test_an_older_runtime_is_told_what_it_needs(library: plugin_library.PluginLibrary) -> None:
    said: list[str] = []

    def create_status(code: int, text: bytes) -> int:
        said.append(text.decode())
        return len(said)

    pointer, version = ctypes.c_void_p, ctypes.c_char_p(b"1.25.1")
    create = ctypes.CFUNCTYPE(pointer, ctypes.c_int, ctypes.c_char_p)(create_status)
    table = (pointer * 1)(ctypes.cast(create, pointer))
    newest = 25
    get_api = ctypes.CFUNCTYPE(pointer, ctypes.c_uint32)(
        lambda asked: ctypes.addressof(table) if asked <= newest else None
    )
    get_version = ctypes.CFUNCTYPE(pointer)(lambda: ctypes.cast(version, pointer).value)
    base = (pointer * 2)(ctypes.cast(get_api, pointer), ctypes.cast(get_version, pointer))
    register = ctypes.CDLL(str(library.path)).RegisterCustomOps
    register.restype = pointer
    assert register(None, base) == 1
    assert len(said) == 1
    assert "need ONNX Runtime 1.27 or later, got 1.25.1" in said[0]


def _layer(n: int, k: int, group_size: int, dtype: str, *, zeros: bool = False, bias: bool = False) -> Layer:
    random = np.random.default_rng((n, k, group_size))
    groups = -(-k // group_size)
    scales = random.uniform(0.5, 1.5, (n, groups)) * random.choice([-0.02, 0.02], (n, groups))
    return Layer(
        codes=random.integers(0, 16, (n, k), dtype=np.uint8),
        scales=scales.astype(_numpy_type(dtype)),
        zeros=random.integers(0, 16, (n, groups), dtype=np.uint8) if zeros else None,
        bias=random.standard_normal(n).astype(_numpy_type(dtype)) if bias else None,
        group_size=group_size,
    )


def _activations(shape: tuple[int, ...], dtype: str) -> NDArray[np.float32]:
    """fp32 numbers that `dtype` holds exactly."""
    x = np.random.default_rng(len(shape)).standard_normal(shape)
    return x.astype(_numpy_type(dtype)).astype(np.float32)


def _numpy_type(dtype: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _run(options: onnxruntime.SessionOptions, model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.bytes(), options, providers=["CPUExecutionProvider"])
    y: NDArray[np.float32] = session.run(None, {"given": x})[0]
    return y


def _assert_close(y: NDArray[np.float32], x: NDArray[np.float32], layer: Layer) -> None:
    """Checks a result within rounding to y's type, and fp32 rounding of every product and partial sum."""
    weight = layer.weight()
    expected = x.astype(np.float64) @ weight.T
    if layer.bias is not None:
        expected = expected + layer.bias.astype(np.float64)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight).T + np.abs(expected)
    rounding = np.abs(expected) * 2.0 ** -SIGNIFICAND_BITS[layer.dtype]
    assert y.shape == expected.shape
    assert np.all(np.abs(y - expected) <= rounding + magnitude * 2.0**-21)


def _int4(name: str, codes: NDArray[np.uint8]) -> onnx.TensorProto:
    raw = pack.pack_int4(codes).tobytes()
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, codes.shape, raw, raw=True)


def _float(name: str, values: NDArray[Any]) -> onnx.TensorProto:
    return onnx.helper.make_tensor(name, ONNX_TYPES[values.dtype.name], values.shape, values.tobytes(), raw=True)
