"""Artifacts of format 1, one of each kind: they open, pass the check, and later stages can use them.

`tests/data/format_1` was written by the last version that wrote format 1 (commit 97df640): a Llama of one block, its
ONNX model, an engine that is a few bytes, and a kit with a fake plugin library. It is never made again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from stand_in_orin import fake_library
from tiny_artifacts import write

from awq2trt.artifact.format_1 import upgraded
from awq2trt.artifact.manifest import Artifact, Kind, current_artifact, read_manifest
from awq2trt.artifact.records import Contents, RangeRecord, TokensRecord, WeightRecord
from awq2trt.checking.subject import find_subject
from awq2trt.engine import builder
from awq2trt.engine.builder import BuildResult
from awq2trt.engine.profiles import decoder_profiles
from awq2trt.errors import ArtifactError
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.recipe import BuildOptions, ExportOptions, Recipe
from awq2trt.runtime import Model
from awq2trt.runtime.trt.engine import engine_of
from awq2trt.stages.build import BuildRequest, build_stage
from awq2trt.stages.check import golden_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.inspect import inspect_stage
from awq2trt.stages.kit import KitRequest, make_kit, model_spec
from awq2trt.target import find_target

FORMAT_1 = Path(__file__).parents[1] / "data" / "format_1"
KINDS: dict[str, Kind] = {"checkpoint": "checkpoint", "onnx": "onnx", "rtx": "engine", "orin": "kit"}
EXPORT = ExportOptions(max_seq_len=64)
PLAIN = WeightRecord(dtype="float16")
TOKENS = TokensRecord(bos=256, eos=256, pad=257, unk=None, stop=(256,))


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_opens_with_every_hash_and_sum(name: str) -> None:
    assert json.loads((FORMAT_1 / name / "manifest.json").read_bytes())["format_version"] == 1
    artifact, _ = inspect_stage(FORMAT_1 / name)
    assert artifact.manifest.kind == KINDS[name]
    assert artifact.manifest.format_version == 2
    assert artifact.manifest.contents.source.model == "tiny-llama"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_current_stays_current(name: str) -> None:
    fingerprint = json.loads((FORMAT_1 / name / "manifest.json").read_bytes())["fingerprint"]
    assert current_artifact(FORMAT_1 / name, KINDS[name], fingerprint) is not None


def test_everything_that_format_1_said_is_said() -> None:
    value = json.loads((FORMAT_1 / "rtx" / "manifest.json").read_bytes())
    before = value["contents"]
    contents = read_manifest(FORMAT_1 / "rtx", "engine").contents
    graph = contents.graphs["decoder"]
    assert (graph.model, graph.engine) == ("model.onnx", "model.engine")
    assert [vars(tensor) for tensor in graph.io.inputs] == [
        {**tensor, "shape": tuple(tensor["shape"]), "alias": None} for tensor in before["io"]["inputs"]
    ]
    assert [tensor.name for tensor in graph.io.outputs] == [tensor["name"] for tensor in before["io"]["outputs"]]
    assert graph.io.cache_pairs == (("past_key_0", "present_key_0"), ("past_value_0", "present_value_0"))
    assert (graph.io.capacity, graph.io.vocab_size) == (64, 272)
    assert graph.io.cache is not None
    assert (graph.io.cache.dtype, graph.io.cache.layout) == ("float16", "bhcd")
    assert contents.engine is not None
    assert contents.engine.plugin_version == before["engine"]["plugin_version"] == "0.1.0"
    prefill, decode = contents.engine.profiles["decoder"]
    assert (prefill.name, prefill.tokens) == ("prefill", RangeRecord(shortest=1, typical=64, longest=64))
    assert (decode.name, decode.tokens.longest) == ("decode", 1)
    assert contents.operators == {"W4A16Linear": "1"}
    assert contents.quantization.head == contents.quantization.embedding == PLAIN
    assert contents.quantization.method == "awq"


def test_what_format_1_did_not_say_stays_open() -> None:
    contents = read_manifest(FORMAT_1 / "checkpoint", "checkpoint").contents
    assert (contents.model, contents.tokens, contents.quantization.head) == (None, None, None)
    assert (contents.graphs, contents.operators) == ({}, {})


def test_upgrading_leaves_its_argument_alone() -> None:
    text = (FORMAT_1 / "orin" / "manifest.json").read_text()
    value = json.loads(text)
    upgraded(value)
    assert value == json.loads(text)


def test_sha256sum_agrees_with_the_kit_and_a_changed_manifest_is_seen(tmp_path: Path) -> None:
    kit = Path(shutil.copytree(FORMAT_1 / "orin", tmp_path / "orin"))
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=kit, check=False).returncode == 0
    manifest = kit / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"jetpack": "7.2"', '"jetpack": "6.2"'))
    with pytest.raises(ArtifactError, match="was changed since it was written"):
        Artifact.open(kit)


@pytest.mark.parametrize("name", ["onnx", "rtx", "orin"])
def test_golden_outputs_pass(name: str, tmp_path: Path) -> None:
    if name == "orin":  # without function bodies, ONNX Runtime runs it lowered
        assert engine_of(Artifact.open(FORMAT_1 / name)) is None
    outcome = golden_stage(FORMAT_1 / name)
    assert len(outcome.results) == 4
    assert all(result.passed for result in outcome.results)


def test_the_engine_is_found() -> None:
    engine = engine_of(Artifact.open(FORMAT_1 / "rtx"))
    assert engine is not None
    assert [profile.tokens.longest for profile in engine.profiles] == [64, 1]
    assert (engine.has_plugin, engine.contract.capacity) == (True, 64)


def test_it_runs() -> None:
    model = Model.load(FORMAT_1 / "onnx")
    assert model.generate_text("hello", raw=True, max_new_tokens=4)


def test_what_belongs_together_is_found() -> None:
    subject = find_subject(FORMAT_1)
    assert subject.onnx == FORMAT_1 / "onnx"
    assert subject.dtype == "float16"
    assert not subject.changed


def test_an_export_of_the_checkpoint_says_it_all(tmp_path: Path) -> None:
    onnx = export_stage(ExportRequest(FORMAT_1 / "checkpoint", tmp_path / "onnx", EXPORT), SilentProgress())
    assert json.loads((tmp_path / "onnx" / "manifest.json").read_bytes())["format_version"] == 2
    contents, before = onnx.manifest.contents, read_manifest(FORMAT_1 / "onnx", "onnx")
    _says_it_all(contents)
    assert contents.graphs == before.contents.graphs
    same = ("model.onnx", "model.onnx.data", "tokenizer.json", "golden.json")
    assert {name: onnx.manifest.files[name] for name in same} == {name: before.files[name] for name in same}
    assert onnx.manifest.fingerprint == before.fingerprint


def test_a_kit_of_the_onnx_model_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "fake.so", cuda=12060)))
    recipe = Recipe(export=EXPORT, build=BuildOptions(target="orin", jetpack="7.2", fusion=False))
    request = KitRequest(find_target("orin"), tmp_path / "orin", recipe)
    spec = model_spec(str(FORMAT_1 / "checkpoint"))
    kit = make_kit(Artifact.open(FORMAT_1 / "onnx"), spec, request, SilentProgress())
    _says_it_all(Artifact.open(kit.directory, kind="kit").manifest.contents)
    assert kit.manifest.files["model.onnx"] == read_manifest(FORMAT_1 / "orin", "kit").files["model.onnx"]


def test_an_engine_of_the_onnx_model_says_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_engine(onnx: Path, target: object, directory: Path, **options: object) -> BuildResult:
        (directory / "model.engine").write_bytes(b"engine")
        return BuildResult(
            profiles=decoder_profiles(64),
            compute_capabilities=("SM89",),
            tensorrt_version="1.7.1",
            operators={},
        )

    monkeypatch.setattr(builder, "build_engine", build_engine)
    monkeypatch.setattr(builder, "import_tensorrt_rtx", lambda: type("trt", (), {"__version__": "1.7.1"}))
    monkeypatch.setattr("awq2trt.stages.build._current_checkpoint", lambda *_: Artifact.open(FORMAT_1 / "checkpoint"))
    shutil.copytree(FORMAT_1 / "onnx", tmp_path / "onnx")
    recipe = Recipe(export=EXPORT, build=BuildOptions(target="rtx4090", plugin=False))
    _, onnx, engine = build_stage(BuildRequest("tiny-llama", tmp_path, recipe), SilentProgress())
    assert json.loads((onnx.directory / "manifest.json").read_bytes())["format_version"] == 1  # current, so it stays
    _says_it_all(engine.manifest.contents)


def test_it_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "checkpoint", tmp_path / "out")
    write(tmp_path / "out", files={"config.json": b"{}"})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "manifest.json"}


def test_it_is_not_replaced_by_another_kind(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1 / "checkpoint", tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds a finished checkpoint"):
        write(tmp_path / "out", "kit")


def _says_it_all(contents: Contents) -> None:
    assert contents.tokens == TOKENS
    assert contents.model is not None
    decoder = contents.model.decoder
    assert (decoder.hidden_size, decoder.num_layers, decoder.vocab_size) == (32, 1, 272)
    assert contents.quantization.head == contents.quantization.embedding == PLAIN
    assert contents.operators == {"W4A16Linear": "1"}
