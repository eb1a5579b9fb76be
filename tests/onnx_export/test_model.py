"""The exported graph: bodies against the oracle, whole decoders against transformers, files and contract."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_checkpoints import RandomCheckpoint, random_linear, relative_error, torch_logits

from awq2trt import opset
from awq2trt.errors import ArtifactError, UnsupportedError, UsageError
from awq2trt.graph.ort_lowering import keep_all_positions_
from awq2trt.graph.provider_file import Lowering, lower_
from awq2trt.graph.read import open_decoder, operators_of
from awq2trt.io_contract import (
    CACHE_POSITION,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    MODEL_FILE,
    WEIGHTS_FILE,
    CacheContract,
    IoContract,
    TensorContract,
)
from awq2trt.onnx_export import export_onnx
from awq2trt.onnx_export.bodies import BodyVariant, make_body, make_embedding_body
from awq2trt.onnx_export.external_data import PAGE_BYTES, ExternalDataWriter
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend
from awq2trt.runtime.ort.session import open_session
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

FP16_TOLERANCE = 1.5e-3
"""Tolerance for a linear in fp16: a few roundings of 2^-11 each, and two products that partly cancel."""

ROTARY_TOLERANCE = 2e-3
"""Tolerance for fp32 logits: only cos and sin are rounded, to fp16 (2^-11), and affect two layers."""

SHAPES = [
    pytest.param(128, 576, 48, id="k576-g128"),
    pytest.param(64, 128, 33, id="odd-n"),
    pytest.param(32, 96, 40, id="g32"),
    pytest.param(WHOLE_ROW, 80, 17, id="whole-row"),
    pytest.param(128, 96, 24, id="row-shorter-than-group"),
    pytest.param(64, 100, 8, id="blocks-of-4"),
    pytest.param(64, 77, 9, id="odd-k"),
]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("group_size", "features", "rows"), SHAPES)
def test_body_computes_what_dequantize_says(
    group_size: int, features: int, rows: int, zero_point: bool, bias: bool, bits: int
) -> None:
    random = np.random.default_rng(0)
    linear = random_linear((rows, features), QuantScheme(bits, group_size, zero_point), random, bias=bias)
    x = random.normal(size=(2, 3, features)).astype(np.float16)
    expected = x.astype(np.float32) @ linear.dequantize().T
    if linear.bias is not None:
        expected += linear.bias.astype(np.float32)
    assert relative_error(_run_body(linear, x), expected) < FP16_TOLERANCE


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(("group_size", "features", "rows"), SHAPES)
def test_body_of_an_embedding_gathers_what_dequantize_says(
    group_size: int, features: int, rows: int, zero_point: bool, bits: int
) -> None:
    linear = random_linear((rows, features), QuantScheme(bits, group_size, zero_point), np.random.default_rng(0))
    ids = np.array([[0, rows - 1, 5], [5, 2, 2]])
    got = _run_embedding_body(linear, ids)
    assert relative_error(got, linear.dequantize()[ids]) < FP16_TOLERANCE


def test_body_takes_inputs_of_any_rank() -> None:
    random = np.random.default_rng(0)
    linear = random_linear((16, 72), QuantScheme(4, 64, True), random)
    x = random.normal(size=(5, 72)).astype(np.float16)
    assert relative_error(_run_body(linear, x), x.astype(np.float32) @ linear.dequantize().T) < FP16_TOLERANCE


def test_bodies_of_different_variants_have_different_overloads() -> None:
    variants = {
        BodyVariant.of(random_linear((8, features), QuantScheme(4, group, zeros), np.random.default_rng(0), bias=bias))
        for group in (32, 64, WHOLE_ROW)
        for features in (64, 72, 100)
        for zeros in (False, True)
        for bias in (False, True)
    }
    assert len({variant.overload for variant in variants}) == len(variants)


DECODERS = [
    pytest.param(QuantScheme(4, 64, True), {}, id="ragged-zeros"),
    pytest.param(QuantScheme(4, 32, False), {"tie_word_embeddings": True}, id="symmetric-tied"),
    pytest.param(QuantScheme(4, WHOLE_ROW, True), {"attention_bias": True, "mlp_bias": True}, id="whole-row-biases"),
    pytest.param(QuantScheme(4, 128, True), {"num_key_value_heads": 6}, id="multi-head"),
    pytest.param(
        QuantScheme(4, 64, True),
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        id="llama3-rope",
    ),
    pytest.param(
        QuantScheme(4, 64, True), {"architectures": ["MistralForCausalLM"], "sliding_window": 7}, id="sliding-window"
    ),
]


@pytest.mark.parametrize(("scheme", "overrides"), DECODERS)
def test_decoder_agrees_with_transformers(scheme: QuantScheme, overrides: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(scheme, **overrides)
    export_onnx(checkpoint, tmp_path)
    tokens = _tokens(40)
    got = np.concatenate(list(OrtBackend.load(tmp_path, all_logits=True).logits(tokens)))
    assert relative_error(got, torch_logits(checkpoint, tokens)) < ROTARY_TOLERANCE


HEADS = [QuantScheme(8, 128, True), QuantScheme(4, 32, True), QuantScheme(8, 64, False)]


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("head", HEADS, ids=QuantScheme.describe)
def test_a_quantized_head_agrees_with_transformers(head: QuantScheme, tied: bool, tmp_path: Path) -> None:
    """Both as it is lowered for ONNX Runtime, and as the file's own function bodies compute it."""
    checkpoint = RandomCheckpoint(head_scheme=head, tie_word_embeddings=tied)
    export_onnx(checkpoint, tmp_path)
    tokens = _tokens(20)
    expected = torch_logits(checkpoint, tokens)
    got = np.concatenate(list(OrtBackend.load(tmp_path, all_logits=True).logits(tokens)))
    assert relative_error(got, expected) < ROTARY_TOLERANCE
    assert relative_error(_run_as_exported(tmp_path, tokens), expected) < 10 * FP16_TOLERANCE


def test_a_tied_weight_is_in_the_file_once(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(head_scheme=QuantScheme(8, 64, True), tie_word_embeddings=True)
    export_onnx(checkpoint, tmp_path)
    graph = open_decoder(tmp_path)[0].graph
    embedding, head = (next(node for node in graph if node.name == name) for name in ("model.embed_tokens", "lm_head"))
    assert (embedding.op_type, head.op_type) == (opset.W8A16_EMBEDDING, opset.W8A16_LINEAR)
    scales, codes, _, zeros = embedding.inputs
    assert (codes, scales, zeros) == tuple(head.inputs[1:])
    assert [name for name in graph.initializers if name.startswith(("model.embed", "lm_head"))] == [
        f"model.embed_tokens.{kind}" for kind in ("codes", "scales", "zeros")
    ]


def test_bfloat16_decoder_agrees_with_transformers(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint()
    export_onnx(checkpoint, tmp_path, options=ExportOptions(dtype="bfloat16"))
    tokens = _tokens(20)
    got = np.concatenate(list(OrtBackend.load(tmp_path, all_logits=True).logits(tokens)))
    assert relative_error(got, torch_logits(checkpoint, tokens)) < 8 * ROTARY_TOLERANCE  # 8 bits fewer, all tensors


def test_bodies_in_the_whole_decoder_agree_with_transformers(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(attention_bias=True)
    export_onnx(checkpoint, tmp_path)
    tokens = _tokens(20)
    got = _run_as_exported(tmp_path, tokens)
    assert relative_error(got, torch_logits(checkpoint, tokens)) < 10 * FP16_TOLERANCE  # some 20 roundings in a row


def _run_as_exported(directory: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of every position, float32 [S, V], from ONNX Runtime on the unchanged file: no node is lowered."""
    model, sizes = open_decoder(directory)
    keep_all_positions_(model)
    caches = {cache.past: np.zeros(cache.shape, np.float16) for cache in sizes.caches}
    feed = {INPUT_IDS: np.array([tokens]), CACHE_POSITION: np.array([0]), **caches}
    (logits,) = open_session(model, directory).run([LOGITS], feed)
    return np.asarray(logits[0], np.float32)


def test_sequences_of_a_batch_have_their_own_positions(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint()
    export_onnx(checkpoint, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, _quiet(), providers=["CPUExecutionProvider"])
    first, second = _tokens(9), _tokens(5, seed=1)
    caches = {
        value.name: np.zeros([2, *value.shape[1:]], np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    # Row 0 has seen four tokens when row 1 begins: a first call fills row 0, and row 1 with what is then overwritten.
    start = np.array([first[:4], second[:4]])
    _, *presents = session.run(None, {"input_ids": start, "cache_position": np.array([0, 0]), **caches})
    rest = {"input_ids": np.array([first[4:], second]), "cache_position": np.array([4, 0])}
    logits, *_ = session.run(None, {**rest, **dict(zip(caches, presents, strict=True))})
    for row, tokens in enumerate((first, second)):
        assert relative_error(logits[row, 0], torch_logits(checkpoint, tokens)[-1]) < 10 * FP16_TOLERANCE


@pytest.mark.parametrize("lowering", [None, Lowering.CPU])
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}], ids=["apart", "tied"])
def test_a_decoder_of_embeddings_says_what_that_of_tokens_does(
    overrides: dict[str, Any], lowering: Lowering | None, tmp_path: Path
) -> None:
    checkpoint, tokens = RandomCheckpoint(**overrides), _tokens(9)
    result = export_onnx(checkpoint, tmp_path, embeds=True)
    assert result.contract.inputs[0].name == INPUTS_EMBEDS
    model, sizes = open_decoder(tmp_path)
    assert overrides or f"{checkpoint.spec.embedding}.weight" not in model.graph.initializers  # nothing would read it
    if lowering is not None:
        lower_(model, sizes, lowering)
    session = open_session(None if lowering is None else model, tmp_path / MODEL_FILE)
    dtype = np.float16 if lowering is None else np.float32
    rows = checkpoint.tensor(f"{checkpoint.spec.embedding}.weight").astype(dtype)
    caches = {
        value.name: np.zeros([1, value.shape[1], 64, value.shape[3]], dtype)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    start = {INPUTS_EMBEDS: rows[tokens[:5]][None], CACHE_POSITION: np.array([0])}
    _, *presents = session.run(None, {**start, **caches})
    rest = {INPUTS_EMBEDS: rows[tokens[5:]][None], CACHE_POSITION: np.array([5])}
    logits, *_ = session.run(None, {**rest, **dict(zip(caches, presents, strict=True))})
    assert relative_error(logits[0, 0], torch_logits(checkpoint, tokens)[-1]) < 10 * FP16_TOLERANCE


@pytest.mark.parametrize("lowering", [Lowering.CUDA_PLUGIN, Lowering.CUDA_FUSED])
def test_a_decoder_of_embeddings_is_lowered_into_the_operators_of_one_of_tokens(
    lowering: Lowering, tmp_path: Path
) -> None:
    found = []
    for embeds in (False, True):
        directory = tmp_path / str(embeds)
        directory.mkdir()
        export_onnx(RandomCheckpoint(), directory, embeds=embeds)
        model, sizes = open_decoder(directory)
        lower_(model, sizes, lowering)
        found.append(Counter(node.op_type for node in model.graph))
    assert found[0] - found[1] == Counter(["Gather"])  # of the embedding
    assert not found[1] - found[0]


@pytest.mark.parametrize(
    ("options", "all_logits"), [(ExportOptions(), False), (ExportOptions(dtype="bfloat16", max_seq_len=48), True)]
)
def test_contract_is_that_of_the_file(options: ExportOptions, all_logits: bool, tmp_path: Path) -> None:
    result = export_onnx(RandomCheckpoint(sliding_window=7), tmp_path, options=options, all_logits=all_logits)
    graph = ir.load(tmp_path / MODEL_FILE).graph
    for declared, values in ((result.contract.inputs, graph.inputs), (result.contract.outputs, graph.outputs)):
        found = [(value.name, value.dtype, value.shape) for value in values]
        assert found == [(t.name, ir.DataType[t.dtype.upper()], ir.Shape(t.shape)) for t in declared]
    assert result.contract.capacity == (options.max_seq_len or 64)
    assert result.contract.vocab_size == 120
    assert result.contract.cache == CacheContract(options.dtype or "float16", "bhcd", result.contract.capacity)
    kinds = [f"{kind}_{layer}" for layer in range(2) for kind in ("key", "value")]
    assert result.contract.cache_pairs == tuple((f"past_{kind}", f"present_{kind}") for kind in kinds)


def test_a_graph_without_a_cache_has_no_capacity() -> None:
    pixels = TensorContract("pixel_values", "float16", ("images", 3, 8, 8), "Images.")
    contract = IoContract(
        inputs=(pixels,), outputs=(TensorContract("features", "float16", ("images", 4), "Features."),)
    )
    assert (contract.capacity, contract.cache_pairs) == (0, ())


@pytest.mark.parametrize("function_bodies", [True, False])
def test_operators_and_their_versions_are_those_of_the_nodes(function_bodies: bool, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(), tmp_path, options=ExportOptions(function_bodies=function_bodies))
    model, _ = open_decoder(tmp_path)
    assert operators_of(model) == {"W4A16Linear": "1"}
    for node in model.graph:
        if node.op_type == opset.W4A16_LINEAR:
            node.attributes[opset.ATTR_PLUGIN_VERSION] = ir.AttrString(opset.ATTR_PLUGIN_VERSION, "2")
    assert operators_of(model) == {"W4A16Linear": "2"}


@pytest.mark.parametrize("function_bodies", [True, False])
def test_functions_are_there_if_asked_for(function_bodies: bool, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(), tmp_path, options=ExportOptions(function_bodies=function_bodies))
    onnx.checker.check_model(str(tmp_path / MODEL_FILE), full_check=function_bodies)
    model = ir.load(tmp_path / MODEL_FILE)
    nodes = [node for node in model.graph if node.op_type == opset.W4A16_LINEAR]
    assert len(nodes) == 2 * 7
    assert bool(model.functions) == function_bodies
    for node in nodes:
        assert node.attributes[opset.ATTR_PLUGIN_NAMESPACE].as_string() == opset.PLUGIN_NAMESPACE
        assert (node.op_identifier() in model.functions) == function_bodies


def test_codes_are_signed_nibbles_on_page_boundaries(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    with path.open("wb") as file:
        writer = ExternalDataWriter(file, path)
        writer.write_float("scales", np.array([1.0, -2.0]), ir.DataType.FLOAT16)
        codes = writer.write_int4("codes", np.array([[0, 8, 15], [9, 1, 7]], dtype=np.uint8))
    data = path.read_bytes()
    assert data[:4] == b"\x00\x3c\x00\xc0"
    assert codes.offset == PAGE_BYTES
    assert data[PAGE_BYTES:] == bytes([0x08, 0x17, 0xF9])  # signed: -8, 0, 7, 1, -7, -1; low nibble first


def test_a_tensor_of_several_pieces_is_cast_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.onnx_export.external_data._CHUNK_ELEMENTS", 3)
    value = np.arange(10, dtype=np.float32).reshape(5, 2)
    path = tmp_path / WEIGHTS_FILE
    with path.open("wb") as file:
        ExternalDataWriter(file, path).write_float("value", value, ir.DataType.FLOAT16)
    np.testing.assert_array_equal(np.fromfile(path, np.float16).reshape(5, 2), value)


def test_export_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(hidden_size=512, intermediate_size=2048, vocab_size=4096, num_hidden_layers=12)
    largest = 2048 * 512 * 8  # bytes of the largest linear's random int64 draws, the largest allocation
    tracemalloc.start()
    try:
        export_onnx(checkpoint, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / WEIGHTS_FILE).stat().st_size > 25e6
    assert peak < 3 * largest


def test_weight_beyond_fp16_is_refused_by_name(tmp_path: Path) -> None:
    class Huge(RandomCheckpoint):
        def tensor(self, name: str) -> NDArray[Any]:
            value = super().tensor(name)
            return value.astype(np.float32) * 1e6 if name == "model.norm.weight" else value

    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight: .*does not fit float16"):
        export_onnx(Huge(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_capacity_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 64 positions"):
        export_onnx(RandomCheckpoint(), tmp_path, options=ExportOptions(max_seq_len=65))


def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ExternalDataWriter, name: str, codes: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ExternalDataWriter, "write_int4", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        export_onnx(RandomCheckpoint(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def _run_body(linear: QuantizedLinear, x: NDArray[np.float16]) -> NDArray[np.float16]:
    """Runs a model of one node and its body in ONNX Runtime."""
    variant = BodyVariant.of(linear)
    arrays: dict[str, NDArray[Any] | None] = {
        "codes": linear.codes,
        "scales": linear.scales,
        "zeros": linear.zeros,
        "bias": linear.bias,
    }
    eight = linear.scheme.bits == 8
    initializers = [_initializer(name, arrays[name], eight=eight) for name in variant.input_names if name != "x"]
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([*x.shape[:-1], x.shape[-1]]))
    inputs = [source, *initializers]
    return _run_one(make_body(variant), inputs, x, (*x.shape[:-1], linear.out_features), linear.group_length)


def _run_embedding_body(linear: QuantizedLinear, ids: NDArray[np.int64]) -> NDArray[np.float16]:
    variant = BodyVariant.of(linear)
    arrays = {"codes": linear.codes, "scales": linear.scales, "zeros": linear.zeros}
    source = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(ids.shape))
    eight = linear.scheme.bits == 8
    inputs = [
        source if name == "ids" else _initializer(name, arrays[name], eight=eight) for name in variant.table_names
    ]
    shape = (*ids.shape, linear.in_features)
    return _run_one(make_embedding_body(variant), inputs, ids, shape, linear.group_length)


def _run_one(
    body: ir.Function, inputs: list[ir.Value], x: NDArray[Any], shape: tuple[int, ...], group_length: int
) -> NDArray[np.float16]:
    """Runs a model of one node and its body, whose only input that is no initializer is x."""
    attributes = {opset.ATTR_GROUP_SIZE: group_length}
    node = ir.node(body.name, inputs, attributes, domain=opset.DOMAIN, overload=body.overload)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT16), ir.Shape(shape)
    imports = {"": opset.ONNX_OPSET, opset.DOMAIN: opset.DOMAIN_VERSION}
    sources = [value for value in inputs if value.const_value is None]
    constants = [value for value in inputs if value.const_value is not None]
    graph = ir.Graph(sources, node.outputs, nodes=[node], initializers=constants, opset_imports=imports, name="one")
    proto = ir.to_proto(ir.Model(graph, ir_version=opset.ONNX_IR_VERSION, functions=[body]))
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float16] = session.run(None, {"x": x})[0]
    return result


def _initializer(name: str, array: NDArray[Any] | None, *, eight: bool) -> ir.Value:
    assert array is not None
    if array.dtype == np.uint8 and eight:
        array = (array.astype(np.int16) - 128).astype(np.int8)
    if array.dtype != np.uint8:
        return ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    signed = array.astype(np.int8) - 8  # onnx packs INT4 itself here, independently of `pack_int4`
    tensor = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, array.shape, signed.reshape(-1).tolist())
    return ir.Value(name=name, const_value=ir.serde.deserialize_tensor(tensor))


def _tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 120, count)]


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options
