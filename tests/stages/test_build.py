"""`awq2trt build`: all stages at once, what a second run makes again, and what is refused before any work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from stand_in_orin import fake_library
from tiny_kits import RTN

from awq2trt import opset
from awq2trt.artifact.manifest import Artifact
from awq2trt.engine import builder
from awq2trt.engine.builder import BuildResult
from awq2trt.engine.profiles import decoder_profiles
from awq2trt.errors import BuildError, ToolError, UnsupportedError, UsageError
from awq2trt.machine import plugin_library
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import BuildOptions, ExportOptions, Recipe
from awq2trt.runtime import Model
from awq2trt.runtime.trt import engine
from awq2trt.stages.build import BuildRequest, build_stage


class _Work:
    """Counts what is made; TensorRT is replaced by a function that writes an engine at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.fails = False
        run = QuantizeJob.run

        def counted_run(job: QuantizeJob) -> Any:
            self.done.append("checkpoint")
            return run(job)

        monkeypatch.setattr(QuantizeJob, "run", counted_run)
        monkeypatch.setattr(builder, "build_engine", self.build_engine)
        monkeypatch.setattr(builder, "import_tensorrt_rtx", lambda: type("trt", (), {"__version__": "1.7.1"}))

    def build_engine(self, onnx: Path, target: Any, directory: Path, **options: Any) -> BuildResult:
        self.done.append(f"engine for {target.name}")
        (directory / "build.log").write_text("ERROR: no\n")
        if self.fails:
            raise BuildError("TensorRT refuses it.", where="node", fix="elsewhere")
        (directory / "model.engine").write_bytes(b"engine")
        return BuildResult(
            profiles=decoder_profiles(64),
            compute_capabilities=("SM89",),
            tensorrt_version="1.7.1",
            operators={opset.CACHED_ATTENTION: "1"} if options["graph"].fusion else {},
        )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> _Work:
    return _Work(monkeypatch)


def _build(
    model: Path,
    output: Path,
    *,
    target: str | None = "rtx4090",
    plugin: bool | None = False,
    fusion: bool = True,
    **options: Any,
) -> list[Path]:
    recipe = Recipe(
        quantize=RTN.model_copy(update=options),
        export=ExportOptions(max_seq_len=64),
        build=BuildOptions(target=target, plugin=plugin, fusion=fusion),
    )
    return [made.directory for made in build_stage(BuildRequest(str(model), output, recipe), SilentProgress())]


def test_build_makes_every_stage_once(model: Path, work: _Work, tmp_path: Path) -> None:
    directories = [tmp_path / "checkpoint", tmp_path / "onnx", tmp_path / "rtx4090"]
    assert _build(model, tmp_path) == directories
    assert _build(model, tmp_path) == directories
    assert work.done == ["checkpoint", "engine for rtx4090"]
    engine = Artifact.open(tmp_path / "rtx4090", kind="engine")
    assert {"model.engine", "model.onnx", "model.onnx.data", "tokenizer.json"} <= set(engine.manifest.files)
    assert Model.load(engine.directory).generate_text("abc", raw=True, max_new_tokens=2)
    record = engine.manifest.contents.engine
    assert record is not None
    assert (record.target, record.compute_capabilities, record.tensorrt_version) == ("rtx4090", ("SM89",), "1.7.1")
    assert [profile.name for profile in record.profiles["decoder"]] == ["prefill", "decode"]


def test_another_target_needs_only_another_engine(model: Path, work: _Work, tmp_path: Path) -> None:
    _build(model, tmp_path)
    _build(model, tmp_path, target="rtx")
    assert work.done == ["checkpoint", "engine for rtx4090", "engine for rtx"]


def test_without_fusion_it_is_another_engine(model: Path, work: _Work, tmp_path: Path) -> None:
    fused = Artifact.open(_build(model, tmp_path)[-1]).manifest.contents.operators
    plain = Artifact.open(_build(model, tmp_path, fusion=False)[-1]).manifest.contents.operators
    assert work.done == ["checkpoint", "engine for rtx4090", "engine for rtx4090"]
    assert set(fused) == {opset.W4A16_LINEAR, opset.W8A16_LINEAR, opset.CACHED_ATTENTION}  # and a build's INT8 head
    assert set(plain) == {opset.W4A16_LINEAR, opset.W8A16_LINEAR}


def test_other_options_make_everything_anew(model: Path, work: _Work, tmp_path: Path) -> None:
    _build(model, tmp_path)
    _build(model, tmp_path, symmetric=True)
    assert work.done == ["checkpoint", "engine for rtx4090"] * 2
    assert not Artifact.open(tmp_path / "onnx").manifest.contents.quantization.scheme.zero_point


def test_a_damaged_stage_is_made_again(model: Path, work: _Work, tmp_path: Path) -> None:
    _build(model, tmp_path)
    (tmp_path / "checkpoint" / "model.safetensors").unlink()
    _build(model, tmp_path)
    assert work.done == ["checkpoint", "engine for rtx4090", "checkpoint"]


def test_without_the_library_tensorrt_uses_its_own_kernels_unless_ours_are_asked_for(
    model: Path, work: _Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_plugin_library() -> None:
        raise ToolError("no libawq2trt_plugins.so", fix="make plugins")

    monkeypatch.setattr(plugin_library, "find_plugin_library", find_plugin_library)
    monkeypatch.delenv(plugin_library.PATH_VARIABLE, raising=False)
    for plugin in (None, False):
        engine = Artifact.open(_build(model, tmp_path / str(plugin), plugin=plugin)[-1])
        assert engine.manifest.contents.engine is not None
        assert engine.manifest.contents.engine.plugin_version is None
    with pytest.raises(ToolError, match="make plugins"):
        _build(model, tmp_path / "asked", plugin=True)
    monkeypatch.setenv(plugin_library.PATH_VARIABLE, "/does/not/exist.so")
    with pytest.raises(ToolError):
        _build(model, tmp_path / "named", plugin=None)


def test_a_failed_engine_leaves_its_log_and_no_directory(model: Path, work: _Work, tmp_path: Path) -> None:
    work.fails = True
    with pytest.raises(BuildError) as raised:
        _build(model, tmp_path)
    log = tmp_path / "rtx4090-build.log"
    assert log.read_text() == "ERROR: no\n"
    assert str(log) in str(raised.value.fix)
    assert not (tmp_path / "rtx4090").exists()


def test_a_target_is_checked_before_any_work(model: Path, work: _Work, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no target"):
        _build(model, tmp_path / "out", target=None)
    with pytest.raises(UsageError, match="--no-plugin: a kit's engine always uses our kernels"):
        _build(model, tmp_path / "out", target="orin", plugin=False)
    with pytest.raises(UsageError, match=r"--tar: only a kit .* needs to be finished"):
        list(build_stage(_request(model, tmp_path / "out", tar=True), SilentProgress()))
    with pytest.raises(UsageError, match=r"--ssh: only a kit .* needs to be finished"):
        list(build_stage(_request(model, tmp_path / "out", ssh="me@there"), SilentProgress()))
    assert not work.done
    assert not (tmp_path / "out").exists()


def _request(model: Path, output: Path, **how: Any) -> BuildRequest:
    recipe = Recipe(quantize=RTN, export=ExportOptions(max_seq_len=64), build=BuildOptions(target="rtx4090"))
    return BuildRequest(str(model), output, recipe, **how)


def test_an_engine_for_another_cpu_says_where_to_build_it(
    model: Path, work: _Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UnsupportedError, match=r"rtx4090: .* needs x86_64; .* here aarch64.*on any x86_64 Linux"):
        _build(model, tmp_path / "out")
    assert not work.done


def test_build_makes_a_kit_and_its_archive(
    model: Path, work: _Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "fake.so")))
    recipe = Recipe(quantize=RTN, export=ExportOptions(max_seq_len=64), build=BuildOptions(target="orin-nano"))
    request = BuildRequest(str(model), tmp_path / "out", recipe, tar=True)
    made = [artifact.directory.name for artifact in build_stage(request, SilentProgress())]
    assert made == ["checkpoint", "onnx", "orin-nano"]
    kit = Artifact.open(tmp_path / "out" / "orin-nano", kind="kit")
    archive = tmp_path / "out" / "orin-nano.tar"
    total = sum(record.size_bytes for record in kit.manifest.files.values())
    assert total < archive.stat().st_size < total + 200_000
    assert [artifact.directory.name for artifact in build_stage(request, SilentProgress())] == made
    assert work.done == ["checkpoint"]


@pytest.mark.trt
def test_build_makes_a_real_engine(tmp_path: Path) -> None:
    """It has heads of 64: TensorRT-RTX has no attention kernel for the 8 of the other tests."""
    model = tiny_models.save_llama(tmp_path / "model", hidden_size=96, head_dim=64, num_attention_heads=4)
    _build(model, tmp_path / "out")
    engine = Artifact.open(tmp_path / "out" / "rtx4090", kind="engine")
    assert engine.path("model.engine").stat().st_size > 10_000
    assert engine.manifest.contents.engine is not None
    assert engine.manifest.contents.engine.compute_capabilities == ("SM89",)


def test_the_engine_of_this_machine_is_made_anew_for_another_gpu(
    model: Path, work: _Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_in(gpu: str, capability: str) -> None:
        monkeypatch.setattr(engine, "this_machine", lambda: engine.Machine("x86_64", gpu, capability, {}))

    put_in("RTX 4090", "8.9")
    for _ in range(2):
        _build(model, tmp_path, target="host")
    assert work.done == ["checkpoint", "engine for host"]
    put_in("RTX 5090", "12.0")
    _build(model, tmp_path, target="host")
    made = Artifact.open(tmp_path / "host").manifest.contents.engine
    assert made is not None
    assert made.gpu == "RTX 5090"
    assert work.done == ["checkpoint", "engine for host", "engine for host"]
    _build(model, tmp_path, target="rtx4090")
    put_in("RTX 4090", "8.9")
    _build(model, tmp_path, target="rtx4090")
    assert work.done[3:] == ["engine for rtx4090"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-03'),
        ("tokenizer_config.json", "<|pad|>", "<|end|>"),
    ],
)
def test_another_configuration_or_tokenizer_is_another_model(
    name: str, old: str, new: str, model: Path, work: _Work, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    _build(copy, tmp_path / "out")
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new))
    _build(copy, tmp_path / "out")
    assert work.done == ["checkpoint", "engine for rtx4090"] * 2
