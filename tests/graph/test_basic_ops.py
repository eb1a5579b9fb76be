"""The decoder in basic operators: the same logits and caches in ONNX Runtime; what is unknown is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from inlined_bodies import inline_custom_nodes_
from numpy.typing import NDArray
from tiny_checkpoints import RandomCheckpoint

from awq2trt import opset
from awq2trt.errors import UnsupportedError
from awq2trt.graph.basic_ops import IR_VERSION, OPSET, drop_functions_, fix_batch_, lower_to_basic_ops_
from awq2trt.graph.inline import inline_bodies_
from awq2trt.io_contract import MODEL_FILE
from awq2trt.onnx_export import export_onnx
from awq2trt.recipe import ExportOptions

CAPACITY = 24
NEW_IN_24 = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


def _exported(directory: Path, *, dtype: str = "float16", **overrides: Any) -> Path:
    options = ExportOptions.model_validate({"max_seq_len": CAPACITY, "dtype": dtype})
    export_onnx(RandomCheckpoint(**overrides), directory, options=options, all_logits=True)
    return directory / MODEL_FILE


def _lowered(path: Path) -> ir.Model:
    model = ir.load(path)
    fix_batch_(model)
    lower_to_basic_ops_(model)
    return model


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="grouped-heads"),
        pytest.param({"num_attention_heads": 2}, id="equal-heads"),
        pytest.param({"num_key_value_heads": 1, "attention_bias": True}, id="one-head-bias"),
        pytest.param({"architectures": ["MistralForCausalLM"], "sliding_window": 5}, id="window"),
    ],
)
def test_same_logits_and_caches(overrides: dict[str, Any], tmp_path: Path) -> None:
    path = _exported(tmp_path, **overrides)
    reference, model = ir.load(path), _lowered(path)
    assert not model.functions
    assert not {node.op_type for node in model.graph} & NEW_IN_24
    inline_bodies_(reference)
    inline_custom_nodes_(model)
    for expected, got in zip(_conversation(reference, tmp_path), _conversation(model, tmp_path), strict=True):
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=4e-3 * max(1.0, float(np.abs(value).max())))


def test_it_is_a_valid_model_of_the_older_opset(tmp_path: Path) -> None:
    model = _lowered(_exported(tmp_path))
    assert model.opset_imports == {"": OPSET, opset.DOMAIN: opset.DOMAIN_VERSION}
    assert model.ir_version == IR_VERSION
    (tmp_path / "lowered.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    onnx.checker.check_model(str(tmp_path / "lowered.onnx"), full_check=True)


def test_the_interface_stays_but_for_the_batch(tmp_path: Path) -> None:
    path = _exported(tmp_path)
    before, after = ir.load(path), _lowered(path)
    for old, new in ((before.graph.inputs, after.graph.inputs), (before.graph.outputs, after.graph.outputs)):
        assert [value.name for value in old] == [value.name for value in new]
        assert [value.dtype for value in old] == [value.dtype for value in new]
    shapes = {value.name: [str(axis) for axis in value.shape] for value in after.graph.inputs if value.shape}
    assert shapes["input_ids"] == ["1", "sequence"]
    assert shapes["past_key_0"] == ["1", "2", str(CAPACITY), "16"]


def test_indices_and_tables_are_computed_once(tmp_path: Path) -> None:
    model = _lowered(_exported(tmp_path, num_hidden_layers=3))
    counts = [node.op_type for node in model.graph]
    assert counts.count("ScatterND") == 6
    assert counts.count("Range") == 3  # new positions, cache slots of the mask, cache rows
    assert sum(node.op_type == "Gather" and "rotary" in (node.name or "") for node in model.graph) == 2


def test_without_functions_the_plugin_takes_the_nodes(tmp_path: Path) -> None:
    model = ir.load(_exported(tmp_path))
    drop_functions_(model)
    assert not model.functions
    assert {node.overload for node in model.graph} == {""}


@pytest.mark.parametrize("rotary", [8, 16])
def test_rotary_forms(rotary: int, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    attributes: dict[str, Any] = {"rotary_embedding_dim": 0 if rotary == 16 else rotary}
    node = onnx.helper.make_node("RotaryEmbedding", ["x", "cos", "sin", "positions"], ["y"], "rotary", **attributes)
    angles = random.uniform(0, 6, (CAPACITY, rotary // 2))
    tables = {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    feeds: dict[str, NDArray[Any]] = {
        "x": random.normal(size=(1, 3, 5, 16)).astype(np.float32),
        "positions": np.array([[4, 5, 6, 9, 2]], np.int64),
    }
    _assert_same(node, feeds, tables, tmp_path)


@pytest.mark.parametrize("mask", ["bool", "float32", "none"])
def test_attention_forms(mask: str, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    inputs = ["q", "k", "v"] + ["mask"] * (mask != "none")
    node = onnx.helper.make_node("Attention", inputs, ["y"], "attention", scale=0.7)
    seen = np.tril(np.ones((4, 7), bool), 3)
    bias = np.where(seen, random.normal(size=(6, 4, 7)), -1e4).astype(np.float32)[None]
    feeds: dict[str, NDArray[Any]] = {
        "q": random.normal(size=(1, 6, 4, 8)).astype(np.float32),
        "k": random.normal(size=(1, 2, 7, 8)).astype(np.float32),
        "v": random.normal(size=(1, 2, 7, 5)).astype(np.float32),
        "mask": seen[None, None] if mask == "bool" else bias,
    }
    _assert_same(node, {name: feeds[name] for name in inputs}, {}, tmp_path)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "reason"),
    [
        ("Attention", ["x", "x", "x", "x"], {"is_causal": 1}, "is_causal: expected 0, got 1"),
        ("Attention", ["x", "x", "x", "x"], {"softmax_precision": 1}, "attribute softmax_precision is not known"),
        ("Attention", ["x", "x", "x", "x"], {"scale": 0.5, "softcap": 3.0}, "softcap: expected 0.0, got 3.0"),
        ("Attention", ["x", "x", "x", "x"], {}, "scale: expected a number, got none"),
        ("Attention", ["x", "x"], {"scale": 0.5}, "expected 3 inputs, got 2 of 2"),
        ("Attention", ["x", "x", "x", "x", "x"], {"scale": 0.5}, "expected 4 inputs, got 5 of 5"),
        ("RMSNormalization", ["x", "x"], {"axis": 1}, "axis: expected -1, got 1"),
        ("TensorScatter", ["x", "x", "x"], {"mode": "circular"}, "mode: expected linear, got circular"),
        ("RotaryEmbedding", ["x", "x", "x", "x"], {"interleaved": 1}, "interleaved: expected 0, got 1"),
        ("RotaryEmbedding", ["x", "x", "x"], {}, "expected 4 inputs, got 3 of 3"),
        ("Swish", ["x"], {}, "opset 20 does not have it"),
        ("QuantizeLinear", ["x", "x"], {"block_size": 32}, "opset 20 does not have its attribute block_size"),
    ],
)
def test_what_it_cannot_express_is_refused_by_name(
    op_type: str, inputs: list[str], attributes: dict[str, Any], reason: str
) -> None:
    node = onnx.helper.make_node(op_type, inputs, ["y"], "the.layer", **attributes)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 8])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    model = _model([node], [x], [y], {})
    with pytest.raises(UnsupportedError, match=rf"the\.layer: {op_type} cannot be .*: {reason}.*--jetpack 7\.2"):
        lower_to_basic_ops_(model)


def _assert_same(
    node: onnx.NodeProto, feeds: dict[str, NDArray[Any]], tables: dict[str, NDArray[Any]], at: Path
) -> None:
    """Checks that ONNX Runtime computes the same with the node and with what it is lowered to, in fp32."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    reference, model = (_model([node], inputs, outputs, tables) for _ in range(2))
    lower_to_basic_ops_(model)
    assert node.op_type not in {each.op_type for each in model.graph}
    (expected,), (got,) = (_session(each, at).run(["y"], feeds) for each in (reference, model))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tables: dict[str, NDArray[Any]],
) -> ir.Model:
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in tables.items()]
    graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    imports = [onnx.helper.make_opsetid("", opset.ONNX_OPSET)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=11))


def _conversation(model: ir.Model, directory: Path) -> list[dict[str, NDArray[np.float32]]]:
    """Outputs of a prefill of 6 tokens, then one token, then 3 more, each call with the caches of the one before."""
    session = _session(model, directory)
    names = [value.name for value in session.get_outputs()]
    caches = {
        value.name: np.zeros([1, *value.shape[1:]], np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    results, position = [], 0
    for tokens in ([5, 6, 7, 80, 9, 3], [2], [11, 12, 13]):
        feeds = {"input_ids": np.array([tokens]), "cache_position": np.array([position]), **caches}
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        caches = {name.replace("present", "past"): value for name, value in outputs.items() if name != "logits"}
        position += len(tokens)
        results.append({name: value.astype(np.float32) for name, value in outputs.items()})
    return results


def _session(model: ir.Model, directory: Path) -> onnxruntime.InferenceSession:
    path = directory / "run.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
