"""The fused operators in ONNX Runtime's CPU build: models of one node, against float64 oracles of FORMAT.md."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_

REPOSITORY = Path(__file__).parents[3]
NODE: Final = "model.layers.0.node"
HEAD_SIZES: Final = (64, 80, 96, 112, 128, 256)

NUMPY_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ROUNDING: Final = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""What one rounding, and fp32 attributes in float64 arithmetic, may change, relative to the largest number."""

Array = NDArray[Any]


@dataclass
class Node:
    """A model of one node. Its tensors are what the caller binds, by name."""

    op: str
    attributes: Mapping[str, int | float]
    inputs: Mapping[str, Array]
    outputs: Sequence[str]

    def bytes(self) -> bytes:
        node = onnx.helper.make_node(self.op, list(self.inputs), list(self.outputs), name=NODE, domain=opset.DOMAIN)
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in self.attributes.items())
        given = [
            onnx.helper.make_tensor_value_info(
                name,
                onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
                [f"{name}_{axis}" for axis in range(value.ndim)],
            )
            for name, value in self.inputs.items()
        ]
        first = given[0].type.tensor_type.elem_type
        results = [onnx.helper.make_tensor_value_info(name, first, None) for name in self.outputs]
        graph = onnx.helper.make_graph([node], "fused", given, results)
        imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
        return bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())

    def run(self, options: onnxruntime.SessionOptions, in_place: Mapping[str, str] | None = None) -> dict[str, Array]:
        """Outputs by name; those that `in_place` names are bound to the memory of its input."""
        session = onnxruntime.InferenceSession(self.bytes(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        values = {name: _value(array) for name, array in self.inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            if in_place and name in in_place:
                binding.bind_ortvalue_output(name, values[in_place[name]])
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        results = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: _array(value, next(iter(self.inputs.values())).dtype) for name, value in results}


@dataclass(frozen=True)
class Attention:
    """Options of one CachedAttention, and its sizes."""

    dtype: str = "float32"
    position: tuple[int, ...] = (0,)
    tokens: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 11
    options: dict[str, int | float] = field(default_factory=dict)

    def attributes(self) -> dict[str, int | float]:
        none: dict[str, int | float] = {
            "rotary_dim": 0,
            "interleaved": 0,
            "window": 0,
            "has_norms": 0,
            "has_alibi": 0,
            "scale": 0.125,
            "softcap": 0.0,
            "clip": 0.0,
            "norm_eps": 1e-5,
        }
        return none | self.options | {"num_heads": self.heads, "num_kv_heads": self.kv_heads}

    def node(self) -> Node:
        random = np.random.default_rng((self.tokens, self.heads, self.head_dim, *np.abs(self.position)))
        dtype, attributes = NUMPY_TYPES[self.dtype], self.attributes()
        batch, width = len(self.position), (self.heads + 2 * self.kv_heads) * self.head_dim
        cache = (batch, self.kv_heads, self.capacity, self.head_dim)
        inputs: dict[str, Array] = {
            "qkv": random.standard_normal((batch, self.tokens, width)).astype(dtype),
            "cache_position": np.array(self.position, np.int64),
            "past_key": random.standard_normal(cache).astype(dtype),
            "past_value": random.standard_normal(cache).astype(dtype),
        }
        if pairs := int(attributes["rotary_dim"]) // 2:
            angles = random.uniform(-3, 3, (self.capacity + 2, pairs))
            inputs |= {"cos": np.cos(angles).astype(dtype), "sin": np.sin(angles).astype(dtype)}
        if attributes["has_norms"]:
            inputs |= {name: random.uniform(0.5, 1.5, self.head_dim).astype(dtype) for name in ("q_gain", "k_gain")}
        if attributes["has_alibi"]:
            inputs["slopes"] = random.uniform(0.1, 0.5, self.heads).astype(np.float32)
        return Node("CachedAttention", attributes, inputs, ("y", "present_key", "present_value"))

    def expected(self) -> dict[str, Array]:
        """The outputs in float64; caches are rounded to the type where they are written."""
        given = self.node().inputs
        wide = {name: value.astype(np.float64) for name, value in given.items()}
        keys, values = wide["past_key"].copy(), wide["past_value"].copy()
        heads = wide["qkv"].reshape(len(self.position), self.tokens, -1, self.head_dim)
        clip = np.float64(self.attributes()["clip"])
        if clip:
            heads = np.clip(heads, -clip, clip)
        y = np.zeros((len(self.position), self.tokens, self.heads, self.head_dim))
        for b, position in enumerate(self.position):
            slots = np.arange(position, position + self.tokens)
            query, key, value = np.split(heads[b], [self.heads, self.heads + self.kv_heads], axis=1)
            key = self._rotated(self._normed(key, wide.get("k_gain")), slots, wide)
            query = self._rotated(self._normed(query, wide.get("q_gain")), slots, wide)
            keys[b][:, slots] = key.transpose(1, 0, 2).astype(NUMPY_TYPES[self.dtype])
            values[b][:, slots] = value.transpose(1, 0, 2).astype(NUMPY_TYPES[self.dtype])
            for head in range(self.heads):
                kv = head * self.kv_heads // self.heads
                slope = wide["slopes"][head] if "slopes" in wide else 0.0
                y[b, :, head] = self._weights(query[:, head] @ keys[b, kv].T, slots, slope) @ values[b, kv]
        return {"y": y.reshape(*y.shape[:2], -1), "present_key": keys, "present_value": values}

    def _normed(self, x: Array, gain: Array | None) -> Array:
        if gain is None:
            return x
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + self.attributes()["norm_eps"]) * gain)

    def _rotated(self, x: Array, slots: Array, wide: Mapping[str, Array]) -> Array:
        """`x` [S, heads, D] by the tables' rows of its slots."""
        rotary = int(self.attributes()["rotary_dim"])
        if not rotary:
            return x
        even, odd = np.arange(0, rotary, 2), np.arange(1, rotary, 2)
        if not self.attributes()["interleaved"]:
            even, odd = np.arange(rotary // 2), np.arange(rotary // 2, rotary)
        cos, sin = wide["cos"][slots][:, None], wide["sin"][slots][:, None]
        rotated = x.copy()
        rotated[..., even] = x[..., even] * cos - x[..., odd] * sin
        rotated[..., odd] = x[..., odd] * cos + x[..., even] * sin
        return rotated

    def _weights(self, products: Array, slots: Array, slope: float) -> Array:
        """Softmax over the cache of a head's `products` [S, C] of queries and keys."""
        attributes = self.attributes()
        scores = products * attributes["scale"]
        if softcap := attributes["softcap"]:
            scores = softcap * np.tanh(scores / softcap)
        distance = np.arange(self.capacity)[None] - slots[:, None]
        seen = distance <= 0
        if window := attributes["window"]:
            seen &= distance > -window
        scores = np.where(seen, scores + slope * distance, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(weights / weights.sum(-1, keepdims=True))


EVERYTHING: Final[dict[str, int | float]] = {
    "rotary_dim": 32,
    "interleaved": 1,
    "window": 4,
    "has_norms": 1,
    "has_alibi": 1,
    "softcap": 3.0,
    "clip": 1.5,
    "scale": 0.3,
    "norm_eps": 1e-3,
}


@pytest.fixture(scope="module")
def library() -> plugin_library.PluginLibrary:
    if not (REPOSITORY / "build" / "plugins" / plugin_library.LIBRARY_NAME).is_file():
        pytest.skip("needs the plugin library: make plugins")
    return find_plugin_library()


@pytest.fixture
def options(library: plugin_library.PluginLibrary) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are expected here, and raised
    options.intra_op_num_threads = 1
    register_custom_ops_(options, library.path)
    return options


@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "in-place"])
@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Attention(), id="plain"),
        pytest.param(Attention(options={"rotary_dim": 64}, position=(8,)), id="rotary-to-the-last-slot"),
        pytest.param(Attention(options={"rotary_dim": 16}, position=(2,)), id="partial"),
        pytest.param(Attention(options={"rotary_dim": 24, "interleaved": 1}, position=(2,)), id="interleaved"),
        pytest.param(Attention(options={"has_norms": 1}), id="norms"),
        pytest.param(Attention(options={"has_alibi": 1}, position=(5,)), id="alibi"),
        pytest.param(Attention(options={"window": 2}, position=(4,)), id="window"),
        pytest.param(Attention(options={"softcap": 2.0, "scale": 0.5}), id="softcap"),
        pytest.param(Attention(options={"clip": 0.5}), id="clip"),
        pytest.param(Attention(position=(7, 0, 3), tokens=1, heads=6, kv_heads=1, head_dim=80), id="batch"),
        pytest.param(
            Attention(position=(6, 1), tokens=5, heads=3, kv_heads=3, head_dim=96, options=EVERYTHING), id="everything"
        ),
    ],
)
def test_attention(options: onnxruntime.SessionOptions, case: Attention, dtype: str, *, in_place: bool) -> None:
    case = replace(case, dtype=dtype)
    aliases = {"present_key": "past_key", "present_value": "past_value"} if in_place else None
    found = case.node().run(options, aliases)
    for name, expected in case.expected().items():
        _assert_close(found[name], expected, dtype)


@pytest.mark.parametrize("seed", range(8))
def test_attention_of_random_sizes(options: onnxruntime.SessionOptions, seed: int) -> None:
    random = np.random.default_rng(seed)
    head_dim, kv_heads, tokens = int(random.choice(HEAD_SIZES)), int(random.integers(1, 4)), int(random.integers(1, 7))
    capacity = tokens + int(random.integers(0, 9))
    chosen = {name: value for name, value in EVERYTHING.items() if random.random() < 0.5}
    case = Attention(
        position=tuple(int(p) for p in random.integers(0, capacity - tokens + 1, random.integers(1, 4))),
        tokens=tokens,
        heads=kv_heads * int(random.integers(1, 4)),
        kv_heads=kv_heads,
        head_dim=head_dim,
        capacity=capacity,
        options=chosen,
    )
    found = case.node().run(options)
    for name, expected in case.expected().items():
        _assert_close(found[name], expected, case.dtype)


def test_slots_after_the_new_ones_may_hold_anything(options: onnxruntime.SessionOptions) -> None:
    node = Attention(position=(2,)).node()
    clean = node.run(options)
    for name in ("past_key", "past_value"):
        node.inputs[name][:, :, 5:] = np.nan
    found = node.run(options)
    np.testing.assert_array_equal(found["y"], clean["y"])
    assert np.isnan(found["present_key"][:, :, 5:]).all()


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("kind", ["rms", "layer", "layer-bias"])
@pytest.mark.parametrize("shape", [(1, 1, 576), (2, 3, 8), (7, 40), (0, 16), (24,)])
def test_norm(
    options: onnxruntime.SessionOptions, dtype: str, kind: str, shape: tuple[int, ...], *, residual: bool
) -> None:
    node, expected = _norm(dtype, kind, shape, residual=residual)
    found = node.run(options)
    assert list(found) == list(expected)
    if residual:
        np.testing.assert_array_equal(found["sum"], expected["sum"])
    _assert_close(found["y"], expected["y"], dtype)


def test_a_sum_may_be_the_memory_of_the_residual(options: onnxruntime.SessionOptions) -> None:
    node, expected = _norm("float16", "rms", (3, 64), residual=True)
    found = node.run(options, {"sum": "residual"})
    np.testing.assert_array_equal(found["sum"], expected["sum"])
    _assert_close(found["y"], expected["y"], "float16")


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize("shape", [(1, 1, 3072), (2, 3, 16), (0, 32), (48,)])
def test_activation(options: onnxruntime.SessionOptions, dtype: str, activation: int, shape: tuple[int, ...]) -> None:
    x = (4 * np.random.default_rng(shape).standard_normal(shape)).astype(NUMPY_TYPES[dtype])
    found = Node("GatedActivation", {"activation": activation}, {"x": x}, ("y",)).run(options)
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    _assert_close(found["y"], _activated(activation, gate) * up, dtype)


def test_output_shapes_are_known_when_a_model_is_loaded(options: onnxruntime.SessionOptions) -> None:
    model = onnx.load_from_string(Attention().node().bytes())
    for value, shape in zip(
        model.graph.input, [("b", "s", 512), ("b",), ("b", 2, "c", 64), ("b", 2, "c", 64)], strict=True
    ):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["b", "s", 256], ["b", 2, "c", 64], ["b", 2, "c", 64]]
    norm, _ = _norm("float16", "rms", (3, 64), residual=True)
    session = onnxruntime.InferenceSession(norm.bytes(), options, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["x_0", "x_1"]] * 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(Attention(position=(9,)), "3 tokens from position 9 do not fit the cache of 11", id="position"),
        pytest.param(Attention(position=(-1,)), "from position -1", id="negative"),
        pytest.param(Attention(head_dim=72), "head sizes with kernels are", id="head"),
        pytest.param(Attention(kv_heads=3), "num_heads = 4 must be a multiple of num_kv_heads = 3", id="heads"),
        pytest.param(Attention(options={"interleaved": 2}), "interleaved must be 0 or 1, got 2", id="flag"),
        pytest.param(Attention(options={"window": -1}), "window must be at least 0, got -1", id="window"),
        pytest.param(Attention(options={"clip": -1.0}), "clip cannot be negative, got -1", id="clip"),
        pytest.param(Attention(options={"rotary_dim": 66}), "the rotated channels must be", id="rotary"),
    ],
)
def test_what_an_attention_cannot_be_names_the_node(
    options: onnxruntime.SessionOptions, case: Attention, message: str
) -> None:
    with pytest.raises(Exception, match=rf"node '{NODE}': CachedAttention.*{message}"):
        case.node().run(options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("slopes", np.zeros(4, np.float16), "tensor 8 must be fp32, got fp16", id="slopes"),
        pytest.param("cos", np.zeros((9, 16), np.float32), r"shape \[at least 11, 16\]", id="short-table"),
        pytest.param("q_gain", np.zeros(63, np.float32), r"gains of norms must have shape \[64\]", id="gain"),
        pytest.param("past_value", np.zeros((1, 2, 9, 64), np.float32), "past_key and past_value must", id="past"),
        pytest.param("cache_position", np.zeros(2, np.int64), r"cache_position must have shape \[1\]", id="position"),
        pytest.param("qkv", np.zeros((1, 1, 500), np.float32), "last dimension of QKV is 500", id="qkv"),
    ],
)
def test_inputs_that_do_not_fit_an_attention_name_the_node(
    options: onnxruntime.SessionOptions, name: str, value: Array, message: str
) -> None:
    node = Attention(options=EVERYTHING).node()
    node.inputs = dict(node.inputs) | {name: value}
    with pytest.raises(Exception, match=rf"node '{NODE}': CachedAttention: .*{message}"):
        node.run(options)


def test_what_the_other_operators_cannot_be_names_the_node(options: onnxruntime.SessionOptions) -> None:
    norm, _ = _norm("float16", "rms", (3, 64), residual=True)
    wrong = [
        replace(norm, attributes=dict(norm.attributes) | {"has_bias": 1}),
        replace(norm, outputs=("y",)),
        replace(norm, inputs=dict(norm.inputs) | {"residual": np.zeros((2, 64), np.float16)}),
        replace(norm, inputs=dict(norm.inputs) | {"gain": np.zeros(8, np.float16)}),
    ]
    messages = ["expected 4 inputs", "expected 2 outputs", "the residual must have the shape of X", r"shape \[64\]"]
    for node, message in zip(wrong, messages, strict=True):
        with pytest.raises(Exception, match=rf"node '{NODE}': ResidualNorm: .*{message}"):
            node.run(options)
    for activation, width, message in [(4, 16, "must be 0 to 3, got 4"), (0, 20, "multiple of 8"), (0, 17, "even")]:
        node = Node("GatedActivation", {"activation": activation}, {"x": np.zeros((1, width), np.float16)}, ("y",))
        with pytest.raises(Exception, match=rf"node '{NODE}': GatedActivation.*{message}"):
            node.run(options)


def _norm(dtype: str, kind: str, shape: tuple[int, ...], *, residual: bool) -> tuple[Node, dict[str, Array]]:
    """A ResidualNorm, and what it gives: `y` in float64, `sum` in its type."""
    random = np.random.default_rng(shape)
    numbers = NUMPY_TYPES[dtype]
    x = (3 + 2 * random.standard_normal(shape)).astype(numbers)
    inputs: dict[str, Array] = {"x": x}
    if residual:
        inputs["residual"] = random.standard_normal(shape).astype(numbers)
        x = x + inputs["residual"]
    inputs["gain"] = random.uniform(0.5, 1.5, shape[-1]).astype(numbers)
    if kind == "layer-bias":
        inputs["bias"] = random.standard_normal(shape[-1]).astype(numbers)
    attributes = {
        "has_residual": int(residual),
        "has_bias": int(kind == "layer-bias"),
        "rms": int(kind == "rms"),
        "epsilon": 1e-3,
    }
    wide = x.astype(np.float64)
    if kind != "rms":
        wide = wide - wide.mean(-1, keepdims=True)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * inputs["gain"].astype(np.float64)
    y = y + inputs["bias"].astype(np.float64) if "bias" in inputs else y
    expected = {"y": y, "sum": x} if residual else {"y": y}
    return Node("ResidualNorm", attributes, inputs, tuple(expected)), expected


def _activated(activation: int, x: Array) -> Array:
    if activation == 0:
        return np.asarray(x / (1 + np.exp(-x)))
    if activation == 1:
        return np.asarray(x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))) / 2)
    if activation == 2:
        return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
    return np.maximum(x, 0)


def _value(array: Array) -> onnxruntime.OrtValue:
    """A copy of `array` that ONNX Runtime may write to."""
    element_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.copy(), element_type)


def _array(value: onnxruntime.OrtValue, dtype: np.dtype[Any]) -> Array:
    """The numbers of `value`, read where they lie: ONNX Runtime makes no NumPy array of bfloat16."""
    raw = ctypes.string_at(value.data_ptr(), math.prod(value.shape()) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(value.shape())


def _assert_close(found: Array, expected: Array, dtype: str) -> None:
    assert found.shape == expected.shape
    wide = found.astype(np.float64)
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(wide, expected, rtol=ROUNDING[dtype], atol=largest * 2.0**-22)
