"""FusedLinear in ONNX Runtime's CPU provider equals its parts to the bit, and agrees with its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import pytest
from fused_oracles import NODE, NUMPY_TYPES, Array, activated

from awq2trt import opset
from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_

REPOSITORY = Path(__file__).parents[3]
TOLERANCE: Final = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2.4e-2}
"""The largest error from rounding the results of norm, linear and activation, with a margin."""

EPSILON: Final = 1e-3

COMPUTED: Final = ("x", "residual", "addend")
"""Inputs that are no initializers."""


@pytest.fixture(scope="module")
def options() -> onnxruntime.SessionOptions:
    if not (REPOSITORY / "build" / "plugins" / plugin_library.LIBRARY_NAME).is_file():
        pytest.skip("needs the plugin library: make plugins")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are expected here, and raised
    options.intra_op_num_threads = 1
    register_custom_ops_(options, find_plugin_library().path)
    return options


def _tensor(name: str, value: Array, dtype: str) -> onnx.TensorProto:
    """Codes as they are packed, anything else in the operators' type."""
    if value.dtype == np.int8:
        low, high = (np.append(value.ravel(), np.zeros(value.size % 2, np.int8)) & 15).reshape(-1, 2).T
        packed = (low | high << 4).astype(np.uint8).tobytes()
        return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, value.shape, packed, raw=True)
    typed = value.astype(NUMPY_TYPES[dtype])
    kind = onnx.helper.np_dtype_to_tensor_dtype(typed.dtype)
    return onnx.helper.make_tensor(name, kind, value.shape, typed.tobytes(), raw=True)


@dataclass
class Case:
    """One FusedLinear, and what it computes. `norm`: "", "rms", "layer" or "layer-bias"; `activation`: a code or -1."""

    norm: str = "rms"
    residual: bool = True
    activation: int = 0
    gated: bool = True
    addend: bool = False
    zeros: bool = True
    bias: bool = True
    dtype: str = "float16"
    shape: tuple[int, ...] = (2, 3, 72)
    n: int = 48
    group_size: int = 32
    changed: dict[str, int | float] = field(default_factory=dict)
    resized: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensors(self) -> dict[str, Array]:
        """The inputs of the node in their order, in float64 and int8, rounded to the case's type."""
        random, k = np.random.default_rng(self.n), self.shape[-1]
        groups = -(-k // self.group_size)
        tensors: dict[str, Array] = {"x": 1 + 2 * random.standard_normal(self.shape)}
        if self.residual:
            tensors["residual"] = random.standard_normal(self.shape)
        if self.norm:
            tensors["gain"] = random.uniform(0.5, 1.5, k)
        if self.norm == "layer-bias":
            tensors["norm_bias"] = random.standard_normal(k)
        tensors["codes"] = random.integers(-8, 8, (self.n, k), np.int8)
        tensors["scales"] = random.uniform(0.01, 0.02, (self.n, groups))
        if self.zeros:
            tensors["zeros"] = random.integers(-8, 8, (self.n, groups), np.int8)
        if self.bias:
            tensors["bias"] = random.standard_normal(self.n)
        if self.addend:
            tensors["addend"] = random.standard_normal((*self.shape[:-1], self.n))
        numbers = NUMPY_TYPES[self.dtype]
        tensors |= {name: np.ones(shape, tensors[name].dtype) for name, shape in self.resized.items()}
        return {
            name: value if value.dtype == np.int8 else value.astype(numbers).astype(np.float64)
            for name, value in tensors.items()
        }

    def attributes(self) -> dict[str, int | float]:
        """Those of the node."""
        return {
            "group_size": self.group_size,
            "has_zeros": int(self.zeros),
            "has_bias": int(self.bias),
            "has_norm": int(bool(self.norm)),
            "has_residual": int(self.residual),
            "has_norm_bias": int(self.norm == "layer-bias"),
            "rms": int(self.norm == "rms"),
            "has_activation": int(self.activation >= 0),
            "activation": max(self.activation, 0),
            "gated": int(self.has_gates),
            "has_addend": int(self.addend),
            "epsilon": EPSILON if self.norm else 0.0,
            **self.changed,
        }

    @property
    def has_gates(self) -> bool:
        """Whether half of the linear's outputs are gates."""
        return self.activation >= 0 and self.gated

    def outputs(self) -> list[str]:
        """Their names."""
        return ["y", "sum"] if self.residual else ["y"]

    def fused(self) -> list[onnx.NodeProto]:
        """The node."""
        return [_node("FusedLinear", list(self.tensors()), self.outputs(), self.attributes())]

    def apart(self) -> list[onnx.NodeProto]:
        """The nodes that it stands for."""
        given, nodes, values = self.tensors(), [], "x"
        attributes = self.attributes()
        if self.norm:
            normed: list[str] = [name for name in ("x", "residual", "gain", "norm_bias") if name in given]
            names = {"has_residual": "has_residual", "has_bias": "has_norm_bias", "rms": "rms", "epsilon": "epsilon"}
            chosen = {name: attributes[of_fused] for name, of_fused in names.items()}
            nodes.append(_node(opset.RESIDUAL_NORM, normed, ["normed", *self.outputs()[1:]], chosen))
            values = "normed"
        inputs = [values, *(name for name in ("codes", "scales", "zeros", "bias") if name in given)]
        linear = {name: attributes[name] for name in ("group_size", "has_zeros", "has_bias")}
        nodes.append(_node(opset.W4A16_LINEAR, inputs, ["projected" if self.has_gates else "y"], linear))
        if self.has_gates:
            nodes.append(_node(opset.GATED_ACTIVATION, ["projected"], ["y"], {"activation": self.activation}))
        return nodes

    def session(self, options: onnxruntime.SessionOptions, nodes: list[onnx.NodeProto]) -> onnxruntime.InferenceSession:
        """A session of the nodes. Tensors that are computed enter and leave as fp32, the others are initializers."""
        given, computed = self.tensors(), [name for name in COMPUTED if name in self.tensors()]
        kind = onnx.helper.np_dtype_to_tensor_dtype(NUMPY_TYPES[self.dtype])
        before = [onnx.helper.make_node("Cast", [f"given_{name}"], [name], to=kind) for name in computed]
        after = [
            onnx.helper.make_node("Cast", [name], [f"wide_{name}"], to=onnx.TensorProto.FLOAT)
            for name in self.outputs()
        ]
        axes = ["batch", "tokens"][3 - len(self.shape) :]
        graph = onnx.helper.make_graph(
            [*before, *nodes, *after],
            "fused",
            [
                onnx.helper.make_tensor_value_info(
                    f"given_{name}", onnx.TensorProto.FLOAT, [*axes, "n" if name == "addend" else "k"]
                )
                for name in computed
            ],
            [
                onnx.helper.make_tensor_value_info(f"wide_{name}", onnx.TensorProto.FLOAT, None)
                for name in self.outputs()
            ],
            [_tensor(name, value, self.dtype) for name, value in given.items() if name not in computed],
        )
        imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, options: onnxruntime.SessionOptions, nodes: list[onnx.NodeProto]) -> list[Array]:
        """The outputs of the nodes."""
        given = self.tensors()
        feeds = {f"given_{name}": given[name].astype(np.float32) for name in COMPUTED if name in given}
        return list(self.session(options, nodes).run(None, feeds))

    def epilogue(self, y: Array) -> Array:
        """Activation without gates, and addend, of the linear's outputs, each rounded."""
        numbers = NUMPY_TYPES[self.dtype]
        if self.activation >= 0:
            y = np.asarray(activated(self.activation, y.astype(np.float64))).astype(numbers)
        if self.addend:
            y = (y.astype(np.float64) + self.tensors()["addend"]).astype(numbers)
        return y.astype(np.float32)

    def expected(self) -> Array:
        """`y` in float64; of the steps between, the sum alone is rounded."""
        given = self.tensors()
        x = given["x"]
        if self.residual:
            x = (x + given["residual"]).astype(NUMPY_TYPES[self.dtype]).astype(np.float64)
        if self.norm:
            centred = x if self.norm == "rms" else x - x.mean(-1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * given["gain"]
            x = x + given.get("norm_bias", 0.0)
        group = np.arange(self.shape[-1]) // self.group_size
        zeros = given["zeros"][:, group] if self.zeros else 0
        y: Array = x @ (given["scales"][:, group] * (given["codes"].astype(np.float64) - zeros)).T
        y = y + given.get("bias", 0.0)
        if self.has_gates:
            gate, up = np.split(y, 2, axis=-1)
            return np.asarray(activated(self.activation, gate) * up)
        if self.activation >= 0:
            y = activated(self.activation, y)
        return np.asarray(y + given.get("addend", 0.0))


def _node(op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> onnx.NodeProto:
    name = NODE if op == "FusedLinear" else f"{NODE}.{op}"
    node = onnx.helper.make_node(op, inputs, outputs, name=name, domain=opset.DOMAIN)
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    return node


CASES: Final = [
    pytest.param(Case(), id="norm-and-activation"),
    pytest.param(Case(activation=-1, n=33), id="norm"),
    pytest.param(Case(norm="", residual=False), id="activation"),
    pytest.param(Case(norm="layer", residual=False, activation=1, zeros=False), id="layer-norm"),
    pytest.param(Case(norm="layer-bias", activation=2, bias=False), id="norm-bias"),
    pytest.param(Case(norm="layer-bias", activation=3, zeros=False, bias=False, shape=(40,)), id="one-token"),
    pytest.param(Case(norm="rms", residual=False, activation=-1, zeros=False, bias=False, n=7), id="least"),
    pytest.param(Case(shape=(5, 576), n=208, group_size=576), id="whole-row"),
    pytest.param(Case(norm="layer-bias", activation=1, gated=False), id="gelu"),
    pytest.param(Case(norm="", residual=False, activation=2, gated=False, n=40), id="gelu-tanh"),
    pytest.param(Case(norm="layer", activation=3, gated=False, zeros=False, bias=False), id="relu"),
    pytest.param(Case(norm="", residual=False, activation=-1, addend=True, bias=False), id="addend"),
    pytest.param(Case(norm="", residual=False, activation=0, gated=False, addend=True, zeros=False), id="silu-addend"),
    pytest.param(Case(activation=3, gated=False, addend=True, shape=(72,)), id="everything"),
]


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_its_parts_compute(options: onnxruntime.SessionOptions, case: Case, dtype: str) -> None:
    case = Case(**{**vars(case), "dtype": dtype})
    found, apart = case.run(options, case.fused()), case.run(options, case.apart())
    if case.addend or case.has_gates != (case.activation >= 0):
        apart[0] = case.epilogue(apart[0])
    one_unit = 2**-22 if dtype == "float32" else 0.0  # tanh of NumPy and of the library may differ in their last bit
    for one, other in zip(found, apart, strict=True):
        np.testing.assert_allclose(one, other, rtol=one_unit, atol=1e-12)  # which is less than any number of 16 bits
    expected = case.expected()
    assert found[0].shape == expected.shape
    assert np.linalg.norm(found[0] - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def test_no_tokens_are_nothing_to_do(options: onnxruntime.SessionOptions) -> None:
    case = Case(shape=(0, 72))
    y, summed = case.run(options, case.fused())
    assert y.shape == (0, 24)
    assert summed.shape == (0, 72)


def test_output_shapes_are_known_when_a_model_is_loaded(options: onnxruntime.SessionOptions) -> None:
    case = Case()
    assert [output.shape for output in case.session(options, case.fused()).get_outputs()] == [
        ["batch", "tokens", 24],
        ["batch", "tokens", "k"],
    ]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        pytest.param(Case(changed={"rms": 2}), "attribute rms must be 0 or 1, got 2", id="flag"),
        pytest.param(Case(changed={"activation": 4}), "activation must be 0 to 3, got 4", id="activation"),
        pytest.param(Case(changed={"has_bias": 0}), "expected 6 inputs for .*has_bias = 0 and .*, got 7", id="inputs"),
        pytest.param(Case(norm="layer-bias", changed={"rms": 1}), "an RMS norm has no bias", id="bias-of-rms"),
        pytest.param(Case(norm="", residual=False, activation=-1), "a linear by itself is a W4A16Linear", id="neither"),
        pytest.param(Case(activation=-1, changed={"gated": 1}), "attribute gated needs has_activation = 1", id="gated"),
        pytest.param(Case(addend=True), "gated and has_addend cannot both be 1", id="gate-and-addend"),
        pytest.param(Case(activation=-1, addend=True, changed={"has_addend": 0}), "expected 7 inputs", id="addend"),
        pytest.param(Case(activation=-1, addend=True, resized={"addend": (2, 3, 40)}), "addend must have", id="shape"),
        pytest.param(Case(activation=-1, addend=True, n=41), "width of an addend must be a mult", id="addend-width"),
        pytest.param(Case(gated=False, n=41), "N = 41: the width must be a multiple of 8", id="plain-width"),
        pytest.param(Case(resized={"gain": (64,)}), r"the gain must have shape \[72\]", id="gain"),
        pytest.param(Case(resized={"scales": (48, 2)}), r"expected scales \[48, 3\]", id="scales"),
        pytest.param(Case(n=40), "I = 20: the width must be a multiple of 8", id="width"),
        pytest.param(Case(n=41), "even.* got 41", id="odd"),
        pytest.param(Case(shape=(3, 76)), "K must be a positive multiple of 8", id="k"),
    ],
)
def test_what_it_cannot_be_is_refused(options: onnxruntime.SessionOptions, case: Case, message: str) -> None:
    with pytest.raises(Exception, match=rf"FusedLinear.*{message}"):
        case.run(options, case.fused())


def test_codes_of_another_type_name_the_node(options: onnxruntime.SessionOptions) -> None:
    case = Case(norm="", residual=False)
    node = _node("FusedLinear", ["x", "scales", "codes", "zeros", "bias"], ["y"], case.attributes())
    with pytest.raises(Exception, match=rf"node '{NODE}': FusedLinear: tensor 1 must be int4, got fp16"):
        case.run(options, [node])
