"""The fused operators in float64, as FORMAT.md defines them, and models with one such node to compare with them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from awq2trt import opset

NODE: Final = "model.layers.0.node"
HEAD_SIZES: Final = (64, 80, 96, 112, 128, 256)

NUMPY_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ROUNDING: Final = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The error, relative to the largest number, that one rounding, and fp32 attributes in float64 arithmetic, may
cause."""

Array = NDArray[Any]


@dataclass
class Node:
    """A model of one node. Its tensors are those that the caller binds, by name."""

    op: str
    attributes: Mapping[str, int | float]
    inputs: Mapping[str, Array]
    outputs: Sequence[str]

    def serialized(self) -> bytes:
        """The serialized model."""
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
        results = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(self._type_of(name)), None)
            for name in self.outputs
        ]
        graph = onnx.helper.make_graph([node], "fused", given, results)
        imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
        return bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())

    def run(
        self,
        options: onnxruntime.SessionOptions,
        in_place: Mapping[str, str] | None = None,
        model: bytes | None = None,
    ) -> dict[str, Array]:
        """Outputs by name; those named in `in_place` use the memory of their input. `model` replaces `serialized()`."""
        session = onnxruntime.InferenceSession(model or self.serialized(), options, providers=["CPUExecutionProvider"])
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
        return {name: _array(value, self._type_of(name)) for name, value in results}

    def _type_of(self, output: str) -> np.dtype[Any]:
        """The type of a cache's past, or else of the first input; int64 if the output is a place."""
        if self.op == opset.BEST_TOKEN:
            return np.dtype(np.int64)
        past = self.inputs.get(output.replace("present_", "past_"))
        return (next(iter(self.inputs.values())) if past is None else past).dtype


CACHES: Final = ("key", "value")


@dataclass(frozen=True)
class Attention:
    """Options of one CachedAttention, and its sizes; `blocks`: first and last slots whose tokens see each other."""

    dtype: str = "float32"
    position: tuple[int, ...] = (0,)
    tokens: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    capacity: int = 11
    int8_cache: bool = False
    blocks: tuple[tuple[int, int], ...] | None = None
    options: dict[str, int | float] = field(default_factory=dict)

    def attributes(self) -> dict[str, int | float]:
        """Attributes of the node."""
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
        scales = {"has_cache_scales": 1} if self.int8_cache else {}
        ends = {"has_visible_end": 1} if self.blocks is not None else {}
        return none | self.options | {"num_heads": self.heads, "num_kv_heads": self.kv_heads} | scales | ends

    def ends(self) -> Array:
        """The last slot that the token in each slot sees."""
        ends = np.arange(self.capacity)
        for first, last in self.blocks or ():
            ends[first : last + 1] = last
        return ends

    def node(self) -> Node:
        """The node with random tensors, which are the same at every call."""
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
        if self.blocks is not None:
            inputs["visible_end"] = self.ends()
        if self.int8_cache:
            for name in CACHES:
                inputs[f"past_{name}"] = random.integers(-127, 128, cache).astype(np.int8)
                inputs[f"past_{name}_scale"] = random.uniform(0.002, 0.02, cache[:3]).astype(dtype)
        scales = tuple(f"present_{name}_scale" for name in CACHES if self.int8_cache)
        return Node("CachedAttention", attributes, inputs, ("y", *(f"present_{name}" for name in CACHES), *scales))

    def expected(self) -> dict[str, Array]:
        """The outputs in float64; caches are rounded to the type, or to codes, when they are written."""
        given = self.node().inputs
        wide = {name: value.astype(np.float64) for name, value in given.items()}
        caches = {name: wide[name.replace("present", "past")].copy() for name in self.node().outputs[1:]}
        keys, values = (self._read(caches, name) for name in CACHES)
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
            for name, new in zip(CACHES, (key, value), strict=True):
                self._write(caches, name, b, slots, new.transpose(1, 0, 2).astype(NUMPY_TYPES[self.dtype]))
            keys[b], values[b] = (self._read(caches, name)[b] for name in CACHES)
            for head in range(self.heads):
                kv = head * self.kv_heads // self.heads
                slope = wide["slopes"][head] if "slopes" in wide else 0.0
                y[b, :, head] = self._weights(query[:, head] @ keys[b, kv].T, slots, slope) @ values[b, kv]
        return {"y": y.reshape(*y.shape[:2], -1), **caches}

    def _read(self, caches: Mapping[str, Array], name: str) -> Array:
        """All keys or values that a cache stands for."""
        cache = caches[f"present_{name}"]
        return cache * caches[f"present_{name}_scale"][..., None] if self.int8_cache else cache.copy()

    def _write(self, caches: Mapping[str, Array], name: str, row: int, slots: Array, new: Array) -> None:
        """Puts new keys or values [Hkv, S, D], rounded to the type, into a sequence's cache."""
        new = new.astype(np.float64)
        if self.int8_cache:
            scale = (np.abs(new).max(-1) / 127).astype(NUMPY_TYPES[self.dtype]).astype(np.float64)  # [Hkv, S]
            caches[f"present_{name}_scale"][row][:, slots] = scale
            codes = new / np.where(scale > 0, scale, 1.0)[..., None]
            new = np.where(scale[..., None] > 0, np.clip(np.rint(codes), -127, 127), 0.0)
        caches[f"present_{name}"][row][:, slots] = new

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
        seen = np.arange(self.capacity)[None] <= self.ends()[slots][:, None]
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


def norm_case(dtype: str, kind: str, shape: tuple[int, ...], *, residual: bool) -> tuple[Node, dict[str, Array]]:
    """A ResidualNorm and its outputs: `y` in float64, and `sum` in its type."""
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


def activated(activation: int, x: Array) -> Array:
    """The activation function of a code, in float64."""
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
    """The numbers of `value`, read in place, since ONNX Runtime makes no NumPy array from bfloat16."""
    raw = ctypes.string_at(value.data_ptr(), math.prod(value.shape()) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(value.shape())


def assert_close(found: Array, expected: Array, dtype: str) -> None:
    """Compares a result with the expected one, rounded once."""
    assert found.shape == expected.shape
    wide = found.astype(np.float64)
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(wide, expected, rtol=ROUNDING[dtype], atol=largest * 2.0**-22)
