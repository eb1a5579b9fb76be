"""The stages on a tiny real model: what each leaves on disk, what a second run makes again, what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from stand_in_orin import fake_library

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact, record_file
from awq2trt.artifact.records import TokensRecord
from awq2trt.engine import builder
from awq2trt.engine.builder import BuildResult, OptimizationProfile
from awq2trt.errors import ArtifactError, BuildError, ToolError, UnsupportedError, UsageError
from awq2trt.evaluation.results import EvalRequest
from awq2trt.machine import plugin_library
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import Model, OrtBackend
from awq2trt.runtime.golden import compare_golden
from awq2trt.scheme import QuantScheme
from awq2trt.stages.build import BuildRequest, build_stage
from awq2trt.stages.check import golden_stage
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

AWQ = QuantizeOptions(group_size=32, samples=2, seqlen=16)
RTN = QuantizeOptions(group_size=32, method="rtn")
TEXT = "Any text is a text of a byte-level tokenizer, and this one has more bytes than the windows need. " * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose widths, 48 and 80, are no multiples of the group."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model's checkpoint (AWQ) and its ONNX model."""
    directory = tmp_path_factory.mktemp("made")
    (directory / "calibration.txt").write_text(TEXT)
    options = AWQ.model_copy(update={"calib": str(directory / "calibration.txt")})
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", options), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    return directory


def _tree(directory: Path) -> dict[str, str]:
    return {path.name: record_file(path).sha256 for path in directory.rglob("*") if path.is_file()}


def test_a_checkpoint_says_what_it_was_made_from(model: Path, made: Path) -> None:
    contents = Artifact.open(made / "checkpoint", kind="checkpoint").manifest.contents
    assert contents.source.model == "tiny-llama"
    assert contents.source.family == "llama"
    assert contents.source.files == {"model.safetensors": record_file(model / "model.safetensors")}
    assert contents.quantization.method == "awq"
    assert contents.quantization.scheme == QuantScheme(group_size=32)
    calibration = contents.quantization.calibration
    assert calibration is not None
    assert (calibration.text, calibration.samples, calibration.seqlen) == ("calibration.txt", 2, 16)


def test_manifests_name_no_place_of_this_machine(made: Path) -> None:
    for manifest in made.glob("*/manifest.json"):
        assert str(made) not in manifest.read_text()
        assert str(Path.home()) not in manifest.read_text()


def test_an_onnx_model_keeps_the_origin_and_tells_its_inputs(made: Path) -> None:
    onnx = Artifact.open(made / "onnx", kind="onnx").manifest
    checkpoint = Artifact.open(made / "checkpoint").manifest
    assert onnx.contents.source == checkpoint.contents.source
    assert onnx.contents.quantization == checkpoint.contents.quantization
    assert onnx.contents.model == checkpoint.contents.model
    graph = onnx.contents.graphs["decoder"]
    assert (graph.model, graph.engine, graph.io.capacity) == ("model.onnx", None, 64)
    assert graph.io.cache_pairs[:2] == (("past_key_0", "present_key_0"), ("past_value_0", "present_value_0"))
    assert onnx.contents.operators == {"W4A16Linear": "1"}
    assert onnx.contents.tokens == TokensRecord(bos=256, eos=256, pad=257, unk=None, stop=(256,))
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= set(onnx.files)


def test_two_runs_give_the_same_bytes(model: Path, made: Path, tmp_path: Path) -> None:
    shutil.copyfile(made / "calibration.txt", tmp_path / "calibration.txt")
    options = AWQ.model_copy(update={"calib": str(tmp_path / "calibration.txt")})
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", options), SilentProgress())
    export = ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    assert _tree(tmp_path / "checkpoint") == _tree(made / "checkpoint")
    assert _tree(tmp_path / "onnx") == _tree(made / "onnx")


def test_a_checkpoint_without_manifest_is_somebody_elses_and_is_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    (tmp_path / "theirs" / "quantization.json").unlink()
    export = ExportRequest(tmp_path / "theirs", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    contents = export_stage(export, SilentProgress()).manifest.contents
    assert contents.source.model == "theirs"
    assert contents.quantization.calibration is None
    assert contents.quantization.scheme == QuantScheme(group_size=32)


def test_a_changed_checkpoint_is_not_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="it was changed since"):
        export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx").exists()


def test_the_model_itself_is_never_the_output(model: Path, made: Path) -> None:
    before = _tree(model)
    with pytest.raises(UsageError, match="the output directory is the model's own"):
        quantize_stage(QuantizeRequest(str(model), model, RTN, overwrite=True), SilentProgress())
    assert _tree(model) == before
    export = ExportRequest(made / "checkpoint", made / "checkpoint", ExportOptions(), overwrite=True)
    with pytest.raises(UsageError, match="the output directory is the checkpoint's own"):
        export_stage(export, SilentProgress())


def test_eval_compares_original_checkpoint_and_onnx(model: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    models = (str(model), str(made / "checkpoint"), str(made / "onnx"))
    results = list(eval_stage(EvalRequest(models, str(tmp_path / "text.txt"), 2, 32), SilentProgress()))
    assert [(result.executor, result.scheme) for result in results] == [
        ("PyTorch", None),
        ("PyTorch", "int4-g32-asym"),
        ("ONNX Runtime, CPU", "int4-g32-asym"),
    ]
    original, quantized, onnx = (result.perplexity for result in results)
    assert (original.windows, original.seqlen) == (2, 32)
    assert not math.isclose(original.value, quantized.value, rel_tol=1e-4)
    assert math.isclose(quantized.value, onnx.value, rel_tol=0.02)  # int8 activations of ONNX Runtime's kernel


# build: all stages


class _Work:
    """Counts what is made anew; TensorRT is replaced by a function that writes an engine at once."""

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
            files=(directory / "model.engine",),
            profiles=(OptimizationProfile("prefill", 1, 64, 64), OptimizationProfile("decode", 1, 1, 1)),
            compute_capabilities=("SM89",),
            tensorrt_version="1.7.1",
        )


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> _Work:
    return _Work(monkeypatch)


def _build(
    model: Path, output: Path, *, target: str | None = "rtx4090", plugin: bool | None = False, **options: Any
) -> list[Path]:
    recipe = Recipe(
        quantize=RTN.model_copy(update=options),
        export=ExportOptions(max_seq_len=64),
        build=BuildOptions(target=target, plugin=plugin),
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
    profiles = [(profile.name, profile.tokens.longest) for profile in record.profiles["decoder"]]
    assert profiles == [("prefill", 64), ("decode", 1)]
    assert engine.manifest.contents.graphs["decoder"].engine == "model.engine"


def test_another_target_needs_only_another_engine(model: Path, work: _Work, tmp_path: Path) -> None:
    _build(model, tmp_path)
    _build(model, tmp_path, target="rtx")
    assert work.done == ["checkpoint", "engine for rtx4090", "engine for rtx"]


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
    with pytest.raises(UsageError, match="--no-plugin: a kit's engine has our kernels"):
        _build(model, tmp_path / "out", target="orin", plugin=False)
    with pytest.raises(UsageError, match=r"--tar: .* needs no finishing"):
        list(build_stage(_request(model, tmp_path / "out", tar=True), SilentProgress()))
    with pytest.raises(UsageError, match=r"--ssh: .* needs no finishing"):
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
    with pytest.raises(UnsupportedError, match=r"rtx4090: .* is for x86_64; .* here aarch64.*on any x86_64 Linux"):
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
    """Heads of 64: TensorRT-RTX has no attention kernel for the 8 of the other tests."""
    model = tiny_models.save_llama(tmp_path / "model", hidden_size=96, head_dim=64, num_attention_heads=4)
    _build(model, tmp_path / "out")
    engine = Artifact.open(tmp_path / "out" / "rtx4090", kind="engine")
    assert engine.path("model.engine").stat().st_size > 10_000
    assert engine.manifest.contents.engine is not None
    assert engine.manifest.contents.engine.compute_capabilities == ("SM89",)


# check


def test_a_model_keeps_its_golden_outputs(made: Path) -> None:
    assert {"golden.json", "golden.npz"} <= set(Artifact.open(made / "onnx").manifest.files)
    outcome = golden_stage(made / "onnx")
    assert [result.name for result in outcome.results] == ["prefill", "decode-1", "decode-2", "first"]
    assert outcome.passed
    assert (outcome.engine, outcome.engine_skipped) == ((), None)


def test_another_models_golden_outputs_fail(made: Path, tmp_path: Path) -> None:
    """A graph of other weights than the checkpoint's: what an exporter's mistake would look like."""
    other = tiny_models.save_llama(tmp_path / "model", rms_norm_eps=1e-1)
    quantize_stage(QuantizeRequest(str(other), tmp_path / "checkpoint", RTN), SilentProgress())
    export_stage(
        ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64)), SilentProgress()
    )
    results = compare_golden(OrtBackend.load(tmp_path / "onnx"), read_golden(made / "onnx"))
    assert not any(result.passed for result in results)
