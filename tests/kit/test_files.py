"""Kits: their content, that equal inputs give equal bytes, and that the model in them is the exported one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from inlined_bodies import inline_custom_nodes_
from numpy.typing import NDArray
from seeing_families import quantize_sight
from stand_in_orin import fake_library
from tiny_kits import CAPACITY, EXPORT, export_tiny, kit_request, make_tiny_kit
from tiny_llava import save_llava

from awq2trt import opset
from awq2trt.artifact.manifest import SUMS_FILE, Artifact, record_file
from awq2trt.engine.predict import Footprint
from awq2trt.errors import ArtifactError, ToolError, UnsupportedError
from awq2trt.graph.inline import inline_bodies_
from awq2trt.kit.archive import write_tar
from awq2trt.machine import foreign_library
from awq2trt.machine.foreign_library import PATH_VARIABLE, choose_plugin
from awq2trt.progress import SilentProgress
from awq2trt.quantization import vision
from awq2trt.runtime import OrtBackend
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import deliver, model_spec, predict_outlooks, require_fit
from awq2trt.target import find_jetpack, find_target

GOLDEN = {
    f"golden.{name}"
    for name in (
        "json", "npz", "first.cache_position.bin", "first.input_ids.bin", "first.logits.bin",
        "prefill.cache_position.bin", "prefill.input_ids.bin", "prefill.logits.bin",
    )
}  # fmt: skip
LIBRARY = "lib/libawq2trt_plugins.so"
RUNTIME = {
    f"cpp/{name}"
    for name in ("include/awq2trt.h", "lib/cmake/awq2trt/awq2trt-config-version.cmake", "lib/libawq2trt.so.0.1")
}
HEADS = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of a size that our attention has kernels for."""
FILES = GOLDEN | RUNTIME | {
    LIBRARY, "README.md", "finish.sh", "kit.conf", "model.onnx", "model.onnx.data", "tokenizer.json",
    "tokenizer_config.json", "generation_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its ONNX model and its kits, `kit-7.2` and `kit-6.2`."""
    folder = tmp_path_factory.mktemp("made")
    export_tiny(folder, **HEADS)
    for jetpack in ("7.2", "6.2"):
        make_tiny_kit(folder, folder / f"kit-{jetpack}", jetpack)
    return folder


def _hashes(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): record_file(path).sha256 for path in files}


def test_everything_is_there(made: Path) -> None:
    kit = Artifact.open(made / "kit-7.2", kind="kit")
    assert set(kit.manifest.files) == FILES
    assert set(_hashes(kit.directory)) == FILES | {"manifest.json", SUMS_FILE}
    assert os.access(kit.directory / "finish.sh", os.X_OK)
    for path in kit.directory.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1
    record = kit.manifest.contents.kit
    assert record is not None
    assert (record.target, record.cpu, record.compute_capability) == ("orin", "aarch64", "8.7")
    assert (record.jetpack, record.minimum_tensorrt, record.plugin_cuda) == ("7.2", (10, 16), (12, 6))
    graph = kit.manifest.contents.graphs["decoder"]
    assert graph.engine == "model.engine"
    io = graph.io
    assert io.inputs[0].shape == (1, "sequence")
    assert all(axis != "batch" for tensor in (*io.inputs, *io.outputs) for axis in tensor.shape)


def test_sha256sum_agrees(made: Path) -> None:
    command = ["sha256sum", "--check", "--strict", SUMS_FILE]
    result = subprocess.run(command, cwd=made / "kit-7.2", capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == len(FILES) + 1
    assert "manifest.json: OK" in result.stdout


def test_sums_are_part_of_the_kit(made: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(made / "kit-7.2", tmp_path / "kit"))
    (kit / SUMS_FILE).write_text((kit / SUMS_FILE).read_text().replace("0", "1", 1))
    with pytest.raises(ArtifactError, match="SHA256SUMS: the file is missing, or was changed"):
        Artifact.open(kit)


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_the_same_kit_twice_is_the_same_bytes(made: Path, jetpack: str, tmp_path: Path) -> None:
    again = make_tiny_kit(made, tmp_path / f"kit-{jetpack}", jetpack)
    assert _hashes(again.directory) == _hashes(made / f"kit-{jetpack}")
    archives = (tmp_path / "a.tar", tmp_path / "b.tar")
    for archive, directory in zip(archives, (again.directory, made / f"kit-{jetpack}"), strict=True):
        write_tar(directory, again.manifest.files, archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_nothing_in_it_tells_when_or_where_it_was_made(made: Path) -> None:
    for path in (made / "kit-7.2").rglob("*"):
        if path.is_file():
            assert str(made).encode() not in path.read_bytes(), path


def test_the_archive_unpacks_to_the_kit(made: Path, tmp_path: Path) -> None:
    kit = Artifact.open(Path(shutil.copytree(made / "kit-7.2", tmp_path / "orin")))
    (kit.directory / "model.engine").write_text("of an earlier run: not part of the kit")
    request = kit_request(kit.directory, "7.2")
    deliver(kit, type(request)(request.target, request.output, request.options, tar=True), SilentProgress())
    with tarfile.open(tmp_path / "orin.tar") as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
    assert {oct(member.mode) for member in members} == {"0o644", "0o755"}
    assert _hashes(tmp_path / "unpacked" / "orin") == _hashes(made / "kit-7.2")
    Artifact.open(tmp_path / "unpacked" / "orin", kind="kit")


def test_a_current_kit_is_left_alone_and_another_jetpack_makes_it_anew(made: Path, tmp_path: Path) -> None:
    kit = Path(shutil.copytree(made / "kit-7.2", tmp_path / "kit"))
    (kit / "model.engine").write_text("engine")
    before = {path: path.stat().st_mtime_ns for path in kit.rglob("*")}
    make_tiny_kit(made, kit, "7.2")
    assert {path: path.stat().st_mtime_ns for path in kit.rglob("*")} == before
    again = make_tiny_kit(made, kit, "6.2")
    assert _hashes(kit) == _hashes(made / "kit-6.2") | {"model.engine": record_file(kit / "model.engine").sha256}
    assert again.manifest.contents.kit is not None
    assert again.manifest.contents.kit.jetpack == "6.2"


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_the_model_is_the_exported_one(made: Path, jetpack: str) -> None:
    """The custom nodes get bodies again, and the files run in ONNX Runtime."""
    kit = ir.load(made / f"kit-{jetpack}" / "model.onnx")
    assert not kit.functions
    assert kit.opset_imports[""] == (24 if jetpack == "7.2" else 20)
    custom = {(node.domain, node.op_type, node.overload) for node in kit.graph if node.domain}
    fused = {opset.W4A16_LINEAR, *opset.FUSED_OPERATORS} - {opset.GATED_ACTIVATION}  # which is in a FusedLinear
    assert custom == {(opset.DOMAIN, kind, "") for kind in fused}
    record = Artifact.open(made / f"kit-{jetpack}").manifest.contents
    assert set(record.operators) == fused
    exported = ir.load(made / "onnx" / "model.onnx")
    inline_bodies_(exported)
    inline_custom_nodes_(kit)
    expected = _logits(exported, made / "onnx")
    np.testing.assert_allclose(
        _logits(kit, made / f"kit-{jetpack}"), expected, rtol=0, atol=4e-3 * np.abs(expected).max()
    )


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_without_fusion_a_kit_has_the_exported_nodes(made: Path, jetpack: str, tmp_path: Path) -> None:
    kit = make_tiny_kit(made, tmp_path / "kit", jetpack, fusion=False)
    nodes = list(ir.load(kit.directory / "model.onnx").graph)
    assert (
        {node.op_type for node in nodes if node.domain} == {opset.W4A16_LINEAR} == set(kit.manifest.contents.operators)
    )
    assert sum(node.op_type == opset.W4A16_LINEAR for node in nodes) == 14
    fused = list(ir.load(made / f"kit-{jetpack}" / "model.onnx").graph)
    assert sum(node.op_type in (opset.W4A16_LINEAR, opset.FUSED_LINEAR) for node in fused) == 8
    assert len(nodes) - len(fused) > 2 * 20
    np.testing.assert_allclose(
        OrtBackend.load(kit.directory).forward([5, 80, 9]),
        OrtBackend.load(made / "onnx").forward([5, 80, 9]),
        rtol=2e-3,
        atol=2e-3,
    )


def test_fused_attention_on_jetpack_6_needs_no_second_cache(made: Path) -> None:
    spec = model_spec(str(made / "model"))

    def footprint(jetpack: str, *, fusion: bool) -> Footprint:
        return predict_outlooks(spec, kit_request(made, jetpack, fusion=fusion).options)[0].footprint

    assert footprint("6.2", fusion=True) == footprint("7.2", fusion=False) == footprint("7.2", fusion=True)
    assert footprint("6.2", fusion=False).cache_bytes == 2 * footprint("6.2", fusion=True).cache_bytes


@pytest.mark.parametrize("jetpack", ["7.2", "6.2"])
def test_awq2trt_runs_a_kit(made: Path, jetpack: str) -> None:
    tokens = [5, 80, 9, 3, 77]
    expected = list(OrtBackend.load(made / "onnx", all_logits=True).logits(tokens))
    got = list(OrtBackend.load(made / f"kit-{jetpack}", all_logits=True).logits(tokens))
    np.testing.assert_allclose(got[0], expected[0], rtol=2e-3, atol=2e-3)


def test_what_the_plugin_would_refuse_is_refused_here(tmp_path: Path) -> None:
    export_tiny(tmp_path, intermediate_size=84)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.mlp\.down_proj: .*no kernel for W4A16Linear with K = 84"):
        make_tiny_kit(tmp_path, tmp_path / "kit", "7.2")
    assert not (tmp_path / "kit").exists()


def test_a_quantized_tower_that_the_plugin_would_refuse_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another tool may have quantized it; ours leave such linears alone."""
    monkeypatch.setattr(vision, "FEATURES_MULTIPLE", 4)
    save_llava(tmp_path / "model", tower={"intermediate_size": 44})
    quantize_sight(tmp_path / "model", tmp_path / "checkpoint")
    export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", EXPORT), SilentProgress())
    says = r"vision_tower\.encoder\.layers\.0\.mlp\.fc2: .*no kernel for W4A16Linear with K = 44"
    with pytest.raises(UnsupportedError, match=says):
        make_tiny_kit(tmp_path, tmp_path / "kit", "7.2")
    assert not (tmp_path / "kit").exists()


def test_conf_says_what_the_manifest_says(made: Path) -> None:
    conf = dict(line.split("=", 1) for line in (made / "kit-6.2" / "kit.conf").read_text().splitlines())
    manifest = json.loads((made / "kit-6.2" / "manifest.json").read_bytes())["contents"]["kit"]
    assert conf["kit_jetpack"] == manifest["jetpack"] == "6.2"
    assert conf["kit_jetpack_major"] == "6"
    assert conf["kit_tensorrt"] == "10.3"
    assert conf["kit_build_mib"] == str(-(-manifest["build_bytes"] // (1 << 20)))
    assert manifest["profiles"]["decoder"][0]["axes"]["sequence"]["longest"] == CAPACITY
    assert f"--maxShapes=input_ids:1x{CAPACITY} --profile=1 " in conf["kit_profiles_model"]
    assert conf["kit_graphs"] == conf["kit_graphs_with_operators"] == "model"


def test_what_does_not_fit_is_refused_before_work(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000,
        "max_position_embeddings": 4096, "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))  # and no weights
    progress = _Notes()
    request = kit_request(tmp_path / "kit", "7.2")
    require_fit(str(tmp_path), request, progress)
    fits = {line.split()[0]: line.split("  ")[-1] for line in progress.notes[2:]}
    assert fits["orin"].startswith("yes")
    assert fits["orin-nx"] == fits["orin-nano"] == "no"
    small = type(request)(find_target("orin-nx"), request.output, request.options)
    with pytest.raises(UnsupportedError, match=r"orin-nx: running the model takes \d+\.\d GiB, but a Jetson Orin NX"):
        require_fit(str(tmp_path), small, progress)
    require_fit(str(tmp_path), type(request)(small.target, small.output, small.options, force=True), progress)


def test_config_is_enough_for_a_description(made: Path) -> None:
    assert model_spec(str(made / "checkpoint")) == model_spec(str(made / "model"))


@pytest.mark.parametrize(
    ("jetpack", "cuda", "carries"), [("7.2", 13020, "library"), ("7.2", 12060, "library"), ("6.2", 12060, "library")]
)
def test_a_library_goes_where_the_driver_runs_it(
    jetpack: str, cuda: int, carries: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "library.so", cuda=cuda)))
    plugin = choose_plugin(find_target("orin"), find_jetpack(jetpack))
    assert plugin.library is not None
    assert not plugin.sources


def test_jetpack_6_gets_sources_rather_than_cuda_13(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fake_library(tmp_path / "library.so", cuda=13000)
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_library, "_candidates", lambda: iter([found]))
    plugin = choose_plugin(find_target("orin"), find_jetpack("6.2"))
    assert plugin.library is None
    assert "trt/library.cpp" in plugin.sources
    monkeypatch.setenv(PATH_VARIABLE, str(found))
    with pytest.raises(UnsupportedError, match=r"it has CUDA 13, but JetPack 6\.2 has CUDA 12"):
        choose_plugin(find_target("orin"), find_jetpack("6.2"))


def test_jetpack_7_needs_a_library_with_kernels_for_orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PATH_VARIABLE, raising=False)
    monkeypatch.setattr(foreign_library, "_candidates", lambda: iter([tmp_path / "none.so"]))
    with pytest.raises(ToolError, match="make plugins-aarch64"):
        choose_plugin(find_target("orin"), find_jetpack("7.2"))
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "other.so", architectures="110-real")))
    with pytest.raises(UnsupportedError, match=r"no kernels for compute capability 8\.7"):
        choose_plugin(find_target("orin"), find_jetpack("7.2"))


class _Notes(SilentProgress):
    """Records notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def _logits(model: ir.Model, directory: Path) -> NDArray[np.float32]:
    """Logits of the token after five, and of the one after that."""
    path = directory.parent / f"{directory.name}-run.onnx"
    for value in model.graph.initializers.values():  # a copy of the weights, so that the kit is not changed
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    path.write_bytes(ir.to_proto(model).SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    caches = {
        value.name: np.zeros([1, *value.shape[1:]], np.float16)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    rows, position = [], 0
    for tokens in ([5, 80, 9, 3, 77], [2]):
        feeds = {"input_ids": np.array([tokens]), "cache_position": np.array([position]), **caches}
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        caches = {name.replace("present", "past"): value for name, value in outputs.items() if name != "logits"}
        position += len(tokens)
        rows.append(outputs["logits"][0, -1].astype(np.float32))
    return np.stack(rows)


def test_the_readme_says_how_to_use_the_cpp_library(made: Path) -> None:
    readme = (made / "kit-7.2" / "README.md").read_text()
    assert "`cpp/` (0.0 MB) has the C++ library" in readme
    assert '-DCMAKE_PREFIX_PATH="$PWD/cpp"' in readme


def test_a_kit_goes_without_the_cpp_library_where_there_is_none(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awq2trt.stages.kit.find_runtime_package", dict)
    kit = make_tiny_kit(made, tmp_path / "kit", "7.2")
    assert set(kit.manifest.files) == FILES - RUNTIME
    assert "C++" not in (kit.directory / "README.md").read_text()
    assert kit.manifest.fingerprint != Artifact.open(made / "kit-7.2").manifest.fingerprint
