"""The fused operators in ONNX Runtime's CPU build: models of one node, against float64 oracles of FORMAT.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fused_oracles import (
    EVERYTHING,
    HEAD_SIZES,
    NODE,
    NUMPY_TYPES,
    Array,
    Attention,
    Node,
    activated,
    assert_close,
    norm_case,
)

from awq2trt.machine import plugin_library
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_

REPOSITORY = Path(__file__).parents[3]


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


@pytest.mark.parametrize("int8_cache", [False, True], ids=["", "int8"])
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
        pytest.param(Attention(position=(2,), tokens=6, blocks=((3, 5), (6, 7))), id="blocks"),
        pytest.param(
            Attention(position=(1, 4), tokens=7, blocks=((4, 7),), options={"window": 3, "rotary_dim": 32}),
            id="blocks-wider-than-the-window",
        ),
        pytest.param(Attention(position=(7, 0, 3), tokens=1, heads=6, kv_heads=1, head_dim=80), id="batch"),
        pytest.param(
            Attention(position=(6, 1), tokens=5, heads=3, kv_heads=3, head_dim=96, options=EVERYTHING), id="everything"
        ),
    ],
)
def test_attention(
    options: onnxruntime.SessionOptions, case: Attention, dtype: str, *, in_place: bool, int8_cache: bool
) -> None:
    case = replace(case, dtype=dtype, int8_cache=int8_cache)
    node = case.node()
    presents = {name: name.replace("present", "past") for name in node.outputs[1:]}
    found = node.run(options, presents if in_place else None)
    for name, expected in case.expected().items():
        if found[name].dtype == np.int8:
            assert_codes(found[name], expected)
        else:
            assert_close(found[name], expected, dtype)


def assert_codes(found: Array, expected: Array) -> None:
    """Compares codes with NumPy's, whose rotations may end in other last bits and so lead to another code."""
    difference = np.abs(found.astype(np.float64) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_keys_and_values_of_zeros_have_codes_and_scales_of_zero(options: onnxruntime.SessionOptions) -> None:
    node = Attention(int8_cache=True).node()
    node.inputs["qkv"][:] = 0
    found = node.run(options)
    for name in ("key", "value"):
        for kept in (f"present_{name}", f"present_{name}_scale"):
            assert not found[kept][:, :, :3].any(), kept
            np.testing.assert_array_equal(found[kept][:, :, 3:], node.inputs[kept.replace("present", "past")][:, :, 3:])


def test_a_cache_of_codes_is_refused_without_its_scales(options: onnxruntime.SessionOptions) -> None:
    node = Attention(int8_cache=True).node()
    node = replace(node, attributes={**node.attributes, "has_cache_scales": 0})
    with pytest.raises(Exception, match=r"expected 4 inputs for .* has_cache_scales = 0, got 6"):
        node.run(options)


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
        assert_close(found[name], expected, case.dtype)
    coded = replace(case, int8_cache=True)
    found = coded.node().run(options)
    assert_close(found["y"], coded.expected()["y"], case.dtype)


def test_a_table_of_ends_has_one_for_each_slot(options: onnxruntime.SessionOptions) -> None:
    node = Attention(blocks=((0, 2),)).node()
    node.inputs = dict(node.inputs) | {"visible_end": np.arange(10)}
    with pytest.raises(
        Exception, match=rf"node '{NODE}': CachedAttention: visible_end must have shape \[at least 11\]"
    ):
        node.run(options)
    node.inputs = dict(node.inputs) | {"visible_end": np.arange(11, dtype=np.int32)}
    with pytest.raises(Exception, match="tensor 4 must be int64, got int32"):
        node.run(options)


def test_ends_lead_neither_before_a_token_nor_behind_the_last_new_one(options: onnxruntime.SessionOptions) -> None:
    case = Attention(position=(2,), blocks=((2, 4),))
    node, expected = case.node(), case.expected()
    node.inputs = dict(node.inputs) | {"visible_end": np.array([-9, 0, 2**40, 2**40, 2**40, 0, 0, 0, 0, 0, 0])}
    assert_close(node.run(options)["y"], expected["y"], case.dtype)


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
    node, expected = norm_case(dtype, kind, shape, residual=residual)
    found = node.run(options)
    assert list(found) == list(expected)
    if residual:
        np.testing.assert_array_equal(found["sum"], expected["sum"])
    assert_close(found["y"], expected["y"], dtype)


def test_a_sum_may_be_the_memory_of_the_residual(options: onnxruntime.SessionOptions) -> None:
    node, expected = norm_case("float16", "rms", (3, 64), residual=True)
    found = node.run(options, {"sum": "residual"})
    np.testing.assert_array_equal(found["sum"], expected["sum"])
    assert_close(found["y"], expected["y"], "float16")


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize("shape", [(1, 1, 3072), (2, 3, 16), (0, 32), (48,)])
def test_activation(options: onnxruntime.SessionOptions, dtype: str, activation: int, shape: tuple[int, ...]) -> None:
    x = (4 * np.random.default_rng(shape).standard_normal(shape)).astype(NUMPY_TYPES[dtype])
    found = Node("GatedActivation", {"activation": activation}, {"x": x}, ("y",)).run(options)
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    assert_close(found["y"], activated(activation, gate) * up, dtype)


@pytest.mark.parametrize("dtype", list(NUMPY_TYPES))
@pytest.mark.parametrize("shape", [(2, 1, 1003), (3, 8), (1, 1), (0, 5), (7,)])
def test_best_token(options: onnxruntime.SessionOptions, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(shape).integers(-3, 4, shape).astype(NUMPY_TYPES[dtype])  # many equal ones
    found = Node("BestToken", {}, {"x": x}, ("y",)).run(options)["y"]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, x.astype(np.float64).argmax(-1))


def test_of_scores_that_are_no_numbers_none_is_best(options: onnxruntime.SessionOptions) -> None:
    x = np.array([[np.nan, -np.inf, np.nan], [np.nan] * 3, [-np.inf, 1, np.nan]], np.float16)
    assert Node("BestToken", {}, {"x": x}, ("y",)).run(options)["y"].tolist() == [1, 0, 1]


def test_output_shapes_are_known_when_a_model_is_loaded(options: onnxruntime.SessionOptions) -> None:
    model = onnx.load_from_string(Attention().node().serialized())
    for value, shape in zip(
        model.graph.input, [("b", "s", 512), ("b",), ("b", 2, "c", 64), ("b", 2, "c", 64)], strict=True
    ):
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["b", "s", 256], ["b", 2, "c", 64], ["b", 2, "c", 64]]
    norm, _ = norm_case("float16", "rms", (3, 64), residual=True)
    session = onnxruntime.InferenceSession(norm.serialized(), options, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["x_0", "x_1"]] * 2
    best = Node("BestToken", {}, {"x": np.zeros((2, 1, 9), np.float16)}, ("y",))
    session = onnxruntime.InferenceSession(best.serialized(), options, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    assert (output.type, output.shape) == ("tensor(int64)", ["x_0", "x_1"])


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
        pytest.param(Attention(blocks=(), options={"softcap": 2.0}), "neither slopes nor a softcap", id="ends-softcap"),
        pytest.param(Attention(blocks=(), options={"has_alibi": 1}), "neither slopes nor a softcap", id="ends-alibi"),
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
    norm, _ = norm_case("float16", "rms", (3, 64), residual=True)
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
