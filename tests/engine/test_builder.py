"""Engines from function bodies: inlining anywhere, building where TensorRT-RTX is installed (no GPU needed)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from family_variants import MODELS
from tiny_checkpoints import FamilyCheckpoint, RandomCheckpoint
from tiny_flamingo import export_flamingo
from tiny_gemma3 import export_gemma3
from tiny_llava import export_llava
from tiny_llava_next import export_llava_next
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt import opset
from awq2trt.engine import builder
from awq2trt.engine.builder import GraphOptions, build_beside, build_engine, import_tensorrt_rtx
from awq2trt.errors import ArtifactError, BuildError, ToolError, UnsupportedError
from awq2trt.graph.inline import has_kernels, inline_bodies_
from awq2trt.io_contract import ENGINE_FILE, MODEL_FILE, WEIGHTS_FILE
from awq2trt.machine.plugin_library import PluginLibrary, find_plugin_library
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import Advance
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import WHOLE_ROW, QuantScheme
from awq2trt.target import find_target

RTX4090 = find_target("rtx4090")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported decoder with zero points, a shorter last group, and biases only on q, k, v and o."""
    directory = tmp_path_factory.mktemp("exported")
    export_onnx(RandomCheckpoint(attention_bias=True), directory)
    return directory


def test_inlined_model_computes_the_same_bits(exported: Path) -> None:
    model = ir.load(exported / MODEL_FILE)
    inline_bodies_(model)
    assert not model.functions
    names = [node.name for node in model.graph if node.op_type == "DequantizeLinear"]
    assert sum(name.startswith("model.layers.1.mlp.down_proj/") for name in names if name) == 2  # codes and zeros
    assert len(set(names)) == len(names)
    ir.save(model, exported / "inlined.onnx")
    np.testing.assert_array_equal(_first_logits(exported / "inlined.onnx"), _first_logits(exported / MODEL_FILE))


def test_linears_for_which_the_library_has_no_kernel_keep_to_their_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(RandomCheckpoint(intermediate_size=100), tmp_path)  # K = 100 of down_proj is no multiple of 8
    model = ir.load(tmp_path / MODEL_FILE)
    inline_bodies_(model, keep=has_kernels)
    monkeypatch.setattr(builder, "load_into_registry", lambda trt, library: None)
    parsed = onnx.load_from_string(builder.prepare_model(None, tmp_path, cast("PluginLibrary", object())).serialized)
    assert [node.name for node in parsed.graph.node] == [node.name for node in model.graph]
    kept = [str(node.name) for node in model.graph if node.op_type == opset.W4A16_LINEAR]
    assert len(kept) == 2 * 6
    assert not any("down_proj" in name for name in kept)
    assert any(str(node.name).startswith("model.layers.1.mlp.down_proj/") for node in model.graph)
    ir.save(model, tmp_path / "inlined.onnx")
    np.testing.assert_array_equal(_first_logits(tmp_path / "inlined.onnx"), _first_logits(tmp_path / MODEL_FILE))


def test_model_without_bodies_needs_the_plugin(tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(), tmp_path, options=ExportOptions(function_bodies=False))
    with pytest.raises(ArtifactError, match=r"layers\.0\.self_attn\.q_proj: .*no function body.*--no-function-bodies"):
        inline_bodies_(ir.load(tmp_path / MODEL_FILE))


@pytest.mark.trt
@pytest.mark.parametrize(
    ("scheme", "bias"),
    [
        pytest.param(QuantScheme(4, 64, True), True, id="ragged-zeros-bias"),
        pytest.param(QuantScheme(4, 64, False), False, id="ragged-symmetric"),
        pytest.param(QuantScheme(4, 32, True), False, id="g32-zeros"),
        pytest.param(QuantScheme(4, WHOLE_ROW, True), False, id="whole-row-zeros"),
        pytest.param(QuantScheme(4, 128, False), True, id="row-shorter-than-group-symmetric-bias"),
    ],
)
def test_every_body_builds(scheme: QuantScheme, bias: bool, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(scheme, num_hidden_layers=1, attention_bias=bias), tmp_path)
    build_engine(tmp_path, RTX4090, tmp_path)
    assert opset.W4A16_LINEAR.encode() not in (tmp_path / ENGINE_FILE).read_bytes()


HEADS = [
    pytest.param(QuantScheme(8, 128, True), True, id="int8-tied"),
    pytest.param(QuantScheme(4, 32, True), True, id="int4-tied"),
    pytest.param(QuantScheme(8, 64, False), False, id="int8-symmetric-apart"),
]


@pytest.mark.trt
@pytest.mark.parametrize(("head", "tied"), HEADS)
def test_bodies_of_a_quantized_head_build(head: QuantScheme, tied: bool, tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(head_scheme=head, num_hidden_layers=1, tie_word_embeddings=tied)
    export_onnx(checkpoint, tmp_path)
    build_engine(tmp_path, RTX4090, tmp_path)


@pytest.mark.trt
@pytest.mark.parametrize(("head", "tied"), HEADS)
def test_plugins_take_a_quantized_head_and_embedding(head: QuantScheme, tied: bool, tmp_path: Path) -> None:
    try:
        library = find_plugin_library()
    except ToolError as error:
        pytest.skip(f"needs the plugin library: {error}")
    checkpoint = RandomCheckpoint(head_scheme=head, num_hidden_layers=1, tie_word_embeddings=tied)
    export_onnx(checkpoint, tmp_path)
    build_engine(tmp_path, RTX4090, tmp_path, plugin_library=library)
    engine = (tmp_path / ENGINE_FILE).read_bytes()
    codes = ir.load(tmp_path / MODEL_FILE).graph.initializers[f"{checkpoint.spec.stored_head}.codes"].const_value
    assert codes is not None
    assert engine.count(codes.tobytes()) == 1


@pytest.mark.trt
@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(8, 6, 2), (40, 4, 2), (32, 2, 2), (80, 4, 1)])
def test_heads_without_a_fused_kernel_build(head_dim: int, heads: int, kv_heads: int, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"head_dim": head_dim, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    export_onnx(RandomCheckpoint(num_hidden_layers=1, **shape), tmp_path)
    build_engine(tmp_path, RTX4090, tmp_path)


@pytest.mark.trt
def test_odd_features_build(tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(num_hidden_layers=1, intermediate_size=77), tmp_path)
    build_engine(tmp_path, RTX4090, tmp_path)


@pytest.mark.trt
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_engine_for_several_gpus(dtype: str, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(sliding_window=9), tmp_path, options=ExportOptions.model_validate({"dtype": dtype}))
    progress = _RecordingProgress()
    result = build_engine(tmp_path / MODEL_FILE, find_target("rtx"), tmp_path, progress=progress)
    assert result.compute_capabilities == ("SM86", "SM89", "SM120")
    assert [(p.name, p.tokens.shortest, p.tokens.longest) for p in result.profiles] == [
        ("prefill", 1, 64),
        ("decode", 1, 1),
    ]
    assert (tmp_path / ENGINE_FILE).stat().st_size > 0
    assert "ONNX IR version" in (tmp_path / "build.log").read_text()
    assert progress.tasks
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.trt
def test_plugin_takes_the_nodes_although_they_have_bodies(exported: Path, tmp_path: Path) -> None:
    build_engine(exported, RTX4090, tmp_path, plugin_library=_library(), graph=GraphOptions(fusion=False))
    engine = (tmp_path / ENGINE_FILE).read_bytes()
    assert opset.W4A16_LINEAR.encode() in engine
    for value in ir.load(exported / MODEL_FILE).graph.initializers.values():
        if value.name is not None and value.name.endswith(".codes") and value.const_value is not None:
            assert value.const_value.tobytes() in engine, value.name  # one copy, as it was


FAMILIES_OF_HEADS_WITH_KERNELS = {
    "llama": {"head_dim": 64},
    "qwen3": {"head_dim": 64},
    "gemma2": {"head_dim": 64},
    "phi3": {"hidden_size": 256},
    "falcon": {"hidden_size": 256},
    "bloom": {"hidden_size": 384},
    "gpt_neox": {"hidden_size": 256},
    "mpt": {"d_model": 384},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256},
}


@pytest.mark.trt
@pytest.mark.parametrize("name", FAMILIES_OF_HEADS_WITH_KERNELS)
def test_a_fused_decoder_builds_with_our_plugins(name: str, tmp_path: Path) -> None:
    checkpoint = FamilyCheckpoint({**MODELS[name], **FAMILIES_OF_HEADS_WITH_KERNELS[name]})
    dtype = "bfloat16" if name == "gemma2" else "float16"
    options = ExportOptions.model_validate({"max_seq_len": 48, "dtype": dtype})
    export_onnx(checkpoint, tmp_path, options=options)
    result = build_engine(tmp_path, RTX4090, tmp_path, plugin_library=_library())
    wanted = {opset.W4A16_LINEAR, opset.FUSED_LINEAR, opset.CACHED_ATTENTION, opset.RESIDUAL_NORM}
    assert set(result.operators) == wanted
    log = (tmp_path / "build.log").read_text()
    created = {kind: log.count(f"Successfully created plugin: {kind}") for kind in wanted}
    layers = checkpoint.spec.num_layers
    assert created[opset.CACHED_ATTENTION] == layers
    assert created[opset.W4A16_LINEAR] + created[opset.FUSED_LINEAR] == 4 * layers
    engine = (tmp_path / ENGINE_FILE).read_bytes()
    assert all(kind.encode() in engine for kind in wanted)
    assert not list(tmp_path.glob(".fused-*"))


@pytest.mark.trt
def test_without_fusion_the_graph_is_the_exported_one(tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(head_dim=64), tmp_path, options=ExportOptions(max_seq_len=48))
    result = build_engine(tmp_path, RTX4090, tmp_path, plugin_library=_library(), graph=GraphOptions(fusion=False))
    assert set(result.operators) == {opset.W4A16_LINEAR}
    assert (tmp_path / "build.log").read_text().count("Successfully created plugin: W4A16Linear") == 14


@pytest.mark.trt
def test_a_full_disk_says_that_fusing_takes_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_onnx(RandomCheckpoint(head_dim=64), tmp_path, options=ExportOptions(max_seq_len=48))

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "save_model", fail)
    with pytest.raises(ArtifactError, match=r"fused graph's weights: No space left.*--no-fusion"):
        build_engine(tmp_path, RTX4090, tmp_path, plugin_library=_library())
    assert not (tmp_path / ENGINE_FILE).exists()


def _library() -> PluginLibrary:
    try:
        library = find_plugin_library()
    except ToolError as error:
        pytest.skip(f"needs the plugin library: {error}")
    return library


@pytest.mark.trt
def test_node_that_tensorrt_refuses_is_named(exported: Path, tmp_path: Path) -> None:
    model = ir.load(exported / MODEL_FILE)
    attention = next(node for node in model.graph if node.name == "model.layers.1.attention")
    attention.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", 1)
    ir.save(model, tmp_path / MODEL_FILE)
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes())
    with pytest.raises(BuildError, match=r"model\.layers\.1\.attention: TensorRT refuses Attention.*softmax precision"):
        build_engine(tmp_path, RTX4090, tmp_path)
    assert not (tmp_path / ENGINE_FILE).exists()
    assert "ERROR" in (tmp_path / "build.log").read_text()


@pytest.mark.trt
def test_engine_for_the_gpu_of_a_machine_without_one_is_refused(exported: Path, tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BuildError, match=r"cannot build the engine: .*CUDA driver"):
        build_engine(exported, find_target("host"), tmp_path)


@pytest.mark.trt
def test_full_disk_leaves_no_engine(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ArtifactError, match="No space left"):
        build_engine(exported, RTX4090, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["build.log"]


@pytest.mark.trt
def test_directory_that_cannot_be_written_is_named(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        build_engine(exported, RTX4090, tmp_path / "nowhere")


@pytest.mark.trt
def test_missing_weights_are_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes())
    with pytest.raises(ArtifactError, match=f"{WEIGHTS_FILE}: the file with the weights is missing"):
        build_engine(tmp_path, RTX4090, tmp_path)


def test_orin_is_not_built_here(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Orin"):
        build_engine(exported, find_target("orin"), tmp_path)


def test_missing_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match="pip install tensorrt-rtx-cu13"):
        import_tensorrt_rtx()


class _RecordingProgress:
    """Records the notes that it receives."""

    def __init__(self) -> None:
        self.tasks: list[str] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.tasks.append(description)
        yield lambda units: None

    def note(self, message: str) -> None:
        """Ignores the note."""


def _first_logits(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {
        value.name: np.zeros([1, *value.shape[1:]], np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    tokens = {"input_ids": np.array([[5, 6, 7]]), "cache_position": np.array([0])}
    logits: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = session.run(["logits"], {**feeds, **tokens})[0]
    return logits


@pytest.mark.trt
@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "smolvlm", "openflamingo", "gemma3-vision"]
)
@pytest.mark.parametrize("with_plugin", [False, True])
def test_a_model_that_sees_gets_an_engine_of_every_graph(family: str, with_plugin: bool, tmp_path: Path) -> None:
    text: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    wide: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 2}
    if family == "llava":
        onnx = export_llava(tmp_path, text=text, tower=wide)
    elif family == "llava_next":
        onnx = export_llava_next(tmp_path, text=text, tower=wide)
    elif family == "smolvlm":
        onnx = export_smolvlm(tmp_path, text=text, tower=wide)
    elif family == "gemma3-vision":
        onnx = export_gemma3(tmp_path, text=text, tower=wide)
    elif family == "openflamingo":
        onnx = export_flamingo(tmp_path, d_model=128, n_heads=2)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
        export = export_qwen_vl if family == "qwen2_5_vl" else export_qwen3_vl
        onnx = export(tmp_path, text={**text, "rope_parameters": rope}, tower={"out_hidden_size": 128})
    contents, engines = onnx.manifest.contents, tmp_path / "engines"
    engines.mkdir()
    library = find_plugin_library() if with_plugin else None
    result = build_engine(onnx.directory, RTX4090, engines, plugin_library=library)
    assert (opset.CACHED_ATTENTION in result.operators) == with_plugin
    profiles = build_beside(onnx.directory, contents, RTX4090, engines, plugin_library=library)
    assert {name: [each.name for each in made] for name, made in profiles.items()} == {
        "vision": ["image"],
        "embedding": ["prefill", "decode"],
    }
    assert {path.name for path in engines.iterdir()} == {
        *("model.engine", "vision.engine", "embedding.engine"),
        *("build.log", "vision-build.log", "embedding-build.log"),
    }
    if library is not None:  # which is only in the engine that calls it
        sizes = {path.name: path.stat().st_size for path in engines.glob("*.engine")}
        assert sizes["model.engine"] > library.path.stat().st_size > sizes["embedding.engine"]
