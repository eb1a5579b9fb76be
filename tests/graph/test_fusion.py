"""Fused decoders of every family: what is fused, that it computes the same, and that the rest stays.

The oracle is the exported graph; a fused one runs by its function bodies.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from family_variants import MODELS
from numpy.typing import NDArray
from tiny_checkpoints import FamilyCheckpoint, random_linear, relative_error
from tiny_gemma3 import export_gemma3

from awq2trt import opset
from awq2trt.checkpoint.pack import pack_int4, unpack_int4
from awq2trt.errors import ToolError, UsageError
from awq2trt.graph.basic_ops import drop_functions_, fix_batch_, lower_to_basic_ops_
from awq2trt.graph.fused_attention import fuses_attention
from awq2trt.graph.fusion import fuse_
from awq2trt.graph.matching import tensor_of
from awq2trt.graph.merge_linears import merge_linears_
from awq2trt.graph.provider_file import Lowering, lower_, save_model, write_lowered
from awq2trt.graph.read import open_decoder, operators_of
from awq2trt.io_contract import CACHE_POSITION, INPUTS_EMBEDS, MODEL_FILE, VISIBLE_END
from awq2trt.machine.plugin_library import find_plugin_library, register_custom_ops_
from awq2trt.onnx_export import export_onnx
from awq2trt.onnx_export.fused_bodies import add_bodies_
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend
from awq2trt.scheme import QuantizedLinear, QuantScheme

PROMPT, STEPS = [5, 17, 80, 3, 99, 42, 7, 7, 61, 15], [30, 2, 88]
LAYERS = 2

Array = NDArray[Any]

NODES_OF_A_BLOCK = {"gemma2": 7, "gemma3": 7, "falcon": 6, "falcon-11b": 6}
"""q-k-v with its norm, attention, o, gate and up (or up alone) with norm and activation, down: 5; more with norms after
a linear, and with a norm that two linears read."""


def _export(name: str, directory: Path, **changes: Any) -> FamilyCheckpoint:
    checkpoint = FamilyCheckpoint({**MODELS[name], **changes})
    export_onnx(checkpoint, directory, options=ExportOptions(max_seq_len=48, dtype="float16"))
    return checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_decoder_means_the_same(name: str, tmp_path: Path) -> None:
    for part in ("exported", "fused"):
        (tmp_path / part).mkdir()
    spec = _export(name, tmp_path / "exported").spec
    model, sizes = open_decoder(tmp_path / "exported")
    before = len(list(model.graph))
    fuse_(model, (spec.head_dim,))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count(opset.CACHED_ATTENTION) == LAYERS
    assert "RMSNormalization" not in kinds
    assert "LayerNormalization" not in kinds
    assert "RotaryEmbedding" not in kinds
    assert opset.GATED_ACTIVATION not in kinds
    assert kinds.count(opset.W4A16_LINEAR) + kinds.count(opset.FUSED_LINEAR) == 4 * LAYERS
    first, second = (index for index, kind in enumerate(kinds) if kind == opset.CACHED_ATTENTION)
    assert second - first == NODES_OF_A_BLOCK.get(name, 5)
    assert all(node.domain == opset.DOMAIN for node in list(model.graph)[first:second])
    assert before - len(kinds) >= 20 * LAYERS
    add_bodies_(model)
    save_model(model, tmp_path / "fused")
    assert open_decoder(tmp_path / "fused")[1] == sizes
    _assert_same(tmp_path / "fused", tmp_path / "exported")


BASIC = {
    "Add", "Constant", "Div", "Gather", "MatMul", "Mul", "Range", "Shape", "Slice", "Squeeze", "Tanh", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators that TensorRT 10.3 parses and that may remain in a fused decoder (onnx-tensorrt 10.1,
docs/operators.md)."""

MOST_NODES_OF_A_BLOCK = 7


@pytest.mark.parametrize("name", MODELS)
def test_jetpack_6_gets_few_basic_nodes_and_ours(name: str, tmp_path: Path) -> None:
    spec = _export(name, tmp_path).spec
    model, _ = open_decoder(tmp_path)
    fix_batch_(model)
    drop_functions_(model)
    fuse_(model, (spec.head_dim,))
    lower_to_basic_ops_(model)
    nodes = list(model.graph)
    assert {node.op_type for node in nodes if node.domain == ""} <= BASIC
    first, second = (index for index, node in enumerate(nodes) if node.op_type == opset.CACHED_ATTENTION)
    assert second - first <= MOST_NODES_OF_A_BLOCK
    for node in nodes:
        carried = {key: node.attributes[key].as_string() for key in opset.PLUGIN_ATTRIBUTES if node.domain}
        assert carried == (opset.PLUGIN_ATTRIBUTES if node.domain else {}), "TensorRT would not look for a plugin"


def _assert_same(got: Path, expected: Path) -> None:
    """Compares scores of a prompt and of steps after it; a step reads what the prompt wrote into the cache."""
    fused, plain = OrtBackend.load(got), OrtBackend.load(expected)
    for tokens in (PROMPT, *([step] for step in STEPS)):
        assert relative_error(fused.forward(tokens), plain.forward(tokens)) < 1e-4


def test_head_sizes_without_kernels_stay_and_the_rest_is_fused(tmp_path: Path) -> None:
    _export("llama", tmp_path)
    model, sizes = open_decoder(tmp_path)
    lower_(model, sizes, Lowering.CUDA_FUSED)
    kinds = [node.op_type for node in model.graph]
    assert opset.CACHED_ATTENTION not in kinds
    assert kinds.count("Attention") == LAYERS
    assert kinds.count(opset.W4A16_LINEAR) == 5 * LAYERS - 1
    assert kinds.count(opset.FUSED_LINEAR) == LAYERS + 1  # gate and up, and the last sum; the other norm has 3 readers
    assert set(operators_of(model).values()) == {opset.PLUGIN_VERSION}


@pytest.mark.parametrize("name", MODELS)
def test_a_description_says_whether_its_attention_is_fused(name: str, tmp_path: Path) -> None:
    changes = WIDE_HEADS.get(name, {})
    spec = _export(name, tmp_path, **changes).spec
    model, sizes = open_decoder(tmp_path)
    fuse_(model)
    found = sum(node.op_type == opset.CACHED_ATTENTION for node in model.graph)
    assert found == (LAYERS if fuses_attention(spec, sizes.capacity) else 0)
    assert bool(found) == bool(changes)


def test_ropes_whose_rows_the_graph_chooses_stay(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
    rope = {"rope_type": "longrope", **factors}
    spec = _export("phi3", tmp_path, rope_scaling=rope, original_max_position_embeddings=16).spec
    model, _ = open_decoder(tmp_path)
    fuse_(model, (spec.head_dim,))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("RotaryEmbedding") == 2 * LAYERS
    assert opset.CACHED_ATTENTION not in kinds
    assert not fuses_attention(replace(spec, head_dim=64), 48)
    assert fuses_attention(replace(spec, head_dim=64), 16), "no sequence is long"


def test_onnx_runtimes_own_kernels_do_not_take_a_fused_file(tmp_path: Path) -> None:
    _export("llama", tmp_path)
    model, sizes = open_decoder(tmp_path)
    lower_(model, sizes, Lowering.CUDA_FUSED)
    with pytest.raises(UsageError, match="fused"):
        lower_(model, sizes, Lowering.CUDA_ORT)


@pytest.mark.parametrize("rows", [(3, 5, 1), (4, 2, 2)], ids=["nibbles", "bytes"])
def test_merged_linears_have_the_rows_of_all_and_zeros_for_a_bias_that_is_missing(rows: tuple[int, ...]) -> None:
    random, x = np.random.default_rng(0), ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16))
    parts = [random_linear((n, 96), QuantScheme(4, 32, True), random, bias=n == rows[0]) for n in rows]
    linears = [_linear_node(x, part, f"block.{index}") for index, part in enumerate(parts)]
    graph = ir.Graph([x], [], nodes=linears, opset_imports={"": opset.ONNX_OPSET})
    merged = merge_linears_(graph, linears).producer()
    assert merged is not None
    codes, scales, zeros, bias = (tensor_of(value) for value in merged.inputs[1:])
    for tensor, expected in ((codes, [p.codes for p in parts]), (zeros, [p.zeros for p in parts])):
        want = np.concatenate([part for part in expected if part is not None])
        got = unpack_int4(np.frombuffer(tensor.tobytes(), np.uint8), want.shape)
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(scales.numpy(), np.concatenate([part.scales for part in parts]))
    given = parts[0].bias
    assert given is not None
    np.testing.assert_array_equal(bias.numpy()[: rows[0]], given)
    assert not bias.numpy()[rows[0] :].any()


def _linear_node(x: ir.Value, linear: QuantizedLinear, name: str) -> ir.Node:
    assert linear.zeros is not None
    arrays: list[tuple[NDArray[Any], ir.DataType]] = [
        (linear.codes, ir.DataType.INT4),
        (linear.scales, ir.DataType.FLOAT16),
        (linear.zeros, ir.DataType.INT4),
    ]
    if linear.bias is not None:
        arrays.append((linear.bias, ir.DataType.FLOAT16))
    values = []
    for index, (array, dtype) in enumerate(arrays):
        packed = (
            ir.PackedTensor(pack_int4(array), dtype, shape=ir.Shape(array.shape)) if dtype is ir.DataType.INT4 else None
        )
        values.append(ir.Value(name=f"{name}.{index}", const_value=packed or ir.Tensor(array)))
    flags = {"group_size": 32, "has_zeros": 1, "has_bias": int(linear.bias is not None)}
    return ir.node(opset.W4A16_LINEAR, [x, *values], flags, domain=opset.DOMAIN, name=name)


WIDE_HEADS = {
    "llama": {"head_dim": 64},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "gemma3": {"head_dim": 64},
    "bloom": {"hidden_size": 384},
    "mpt": {"d_model": 384},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256},
    "gpt_neox": {"hidden_size": 128},
}


@pytest.mark.parametrize("name", WIDE_HEADS)
def test_operators_of_the_library_run_a_fused_file(name: str, tmp_path: Path) -> None:
    """The same file that a GPU gets, on the CPU in half precision, compared with the exported one."""
    try:
        library = find_plugin_library()
    except ToolError as error:
        pytest.skip(str(error))
    if any(kind.encode() not in library.path.read_bytes() for kind in opset.FUSED_OPERATORS):
        pytest.skip(f"{library.path} is older than the fused operators")
    for part in ("exported", "fused"):
        (tmp_path / part).mkdir()
    _export(name, tmp_path / "exported", **WIDE_HEADS[name])
    write_lowered(tmp_path / "exported", Lowering.CUDA_FUSED, tmp_path / "fused", SilentProgress())
    assert set(operators_of(open_decoder(tmp_path / "fused")[0])) >= {opset.W4A16_LINEAR, opset.CACHED_ATTENTION}
    options = onnxruntime.SessionOptions()
    register_custom_ops_(options, library.path)
    model = str(tmp_path / "fused" / MODEL_FILE)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    caches = {value.name: np.zeros([1, *value.shape[1:]], np.float16) for value in session.get_inputs()[2:]}
    plain, position = OrtBackend.load(tmp_path / "exported"), 0
    names = [value.name for value in session.get_outputs()]
    for tokens in (PROMPT, *([step] for step in STEPS)):
        feeds = {"input_ids": np.asarray([tokens]), "cache_position": np.asarray([position]), **caches}
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        caches = {past: outputs[past.replace("past", "present")] for past in caches}
        position += len(tokens)
        assert relative_error(outputs["logits"].ravel(), plain.forward(tokens)) < 1e-2


def _outputs(directory: Path, tables: list[Array], options: onnxruntime.SessionOptions) -> list[Array]:
    """Scores of two calls, of 14 embeddings and of one, each with its table of ends."""
    session = onnxruntime.InferenceSession(str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    types = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int8)": np.int8}
    caches = {
        value.name: np.zeros(
            [size if isinstance(size, int) else 128 for size in (1, *value.shape[1:])], types[value.type]
        )
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    dtype = next(types[value.type] for value in session.get_inputs() if value.name == INPUTS_EMBEDS)
    embeds, scores, position = np.random.default_rng(0).standard_normal((1, 15, 128)), [], 0
    for table, length in zip(tables, (14, 1), strict=True):
        new = embeds[:, position : position + length].astype(dtype)
        feeds = {INPUTS_EMBEDS: new, CACHE_POSITION: np.asarray([position]), VISIBLE_END: table, **caches}
        outputs = dict(zip([value.name for value in session.get_outputs()], session.run(None, feeds), strict=True))
        caches = {past: outputs[past.replace("past", "present")] for past in caches}
        scores.append(outputs["logits"])
        position += length
    return scores


@pytest.mark.parametrize("lowering", [None, Lowering.CUDA_FUSED, Lowering.CUDA_INT8])
def test_fused_tokens_of_an_image_see_each_other(lowering: Lowering | None, tmp_path: Path) -> None:
    """By function bodies, and by the library's operators with both kinds of caches."""
    text = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    exported = export_gemma3(tmp_path, text=text).directory
    fused, plain = tmp_path / "fused", tmp_path / "plain"
    fused.mkdir()
    plain.mkdir()
    write_lowered(exported, Lowering.CPU, plain, SilentProgress())
    options = onnxruntime.SessionOptions()
    if lowering is None:
        model, _ = open_decoder(exported)
        fuse_(model)
        add_bodies_(model)
        save_model(model, fused)
    else:
        try:
            register_custom_ops_(options, find_plugin_library().path)
        except ToolError as error:
            pytest.skip(str(error))
        write_lowered(exported, lowering, fused, SilentProgress())
    nodes = [node for node in open_decoder(fused)[0].graph if node.op_type in (opset.CACHED_ATTENTION, "Attention")]
    assert [node.attributes.get_int(opset.ATTR_HAS_VISIBLE_END) for node in nodes] == [1, 1]
    assert [node.attributes.get_int("window") for node in nodes] == [6, 0]
    causal = np.arange(128)
    block = causal.copy()
    block[3:13] = 12  # wider than the window of the first layer
    got = _outputs(fused, [block, block], options)
    for found, expected in zip(got, _outputs(plain, [block, block], onnxruntime.SessionOptions()), strict=True):
        assert relative_error(found.ravel(), expected.ravel()) < (3e-2 if lowering is Lowering.CUDA_INT8 else 1e-2)
    assert relative_error(_outputs(fused, [causal, causal], options)[0].ravel(), got[0].ravel()) > 0.1
