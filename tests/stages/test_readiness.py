"""What later stages would refuse is refused before the first block: no test here quantizes anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from published_configs import LLAMA_2_7B
from safetensors.numpy import load_file, save_file
from stand_in_orin import fake_library
from tiny_kits import RTN
from typer.testing import CliRunner

from awq2trt.artifact.manifest import WORK_DIRECTORY
from awq2trt.artifact.publish import create_artifact
from awq2trt.cli import app
from awq2trt.engine import builder
from awq2trt.errors import ArtifactError, Awq2trtError, ToolError, UnsupportedError, UsageError
from awq2trt.machine import foreign_library
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.models.families import describe_model
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.stages import quantize, readiness
from awq2trt.stages.build import BuildRequest, build_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.stages.readiness import require_file, require_int8_attention, require_target
from awq2trt.target import find_target

AWQ = QuantizeOptions(calib="self", samples=2, seqlen=16, group_size=32)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The model, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture(autouse=True)
def _no_block_is_quantized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: QuantizeJob) -> Any:
        raise AssertionError("the work has begun")

    if "made" not in request.fixturenames:
        monkeypatch.setattr(QuantizeJob, "run", run)


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _tensors(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def _larger_tokenizer(model: Path) -> None:
    value = json.loads((model / "tokenizer.json").read_text())
    value["model"]["vocab"] |= {f"word{number}": 258 + number for number in range(99)}
    (model / "tokenizer.json").write_text(json.dumps(value))


def _later_tokenizer(model: Path) -> None:
    _edit(model / "tokenizer.json", pre_tokenizer={"type": "SplitOfTheFuture"})


def _no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


LAST = "model.layers.1.mlp.down_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor is missing": (lambda model: _tensors(model, lambda t: t.pop(LAST)), f"{LAST}: .*no such tensor"),
    "a tensor is misshapen": (
        lambda model: _tensors(model, lambda t: t.update({LAST: t[LAST][:, 1:].copy()})),
        rf"{LAST}: expected shape \[48, 80\], got \[48, 79\]",
    ),
    "another tokenizer": (_larger_tokenizer, "ordinary tokens go up to id 356, but the model has 272 embeddings"),
    "a later tokenizer": (_later_tokenizer, "the pre_tokenizer 'SplitOfTheFuture' is unknown to"),
    "no tokenizer": (_no_tokenizer, "found no tokenizer"),
    "few positions": (lambda model: _edit(model / "config.json", max_position_embeddings=8), "at most 8 tokens"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_quantize_refuses_what_export_would(copy: Path, tmp_path: Path, name: str) -> None:
    damage, match = DAMAGE[name]
    damage(copy)
    with pytest.raises(Awq2trtError, match=match):
        quantize_stage(QuantizeRequest(str(copy), tmp_path / "out", AWQ), SilentProgress())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["a tensor is missing", "a later tokenizer"])
def test_export_refuses_before_it_writes(made: Path, tmp_path: Path, damage: str) -> None:
    checkpoint = Path(shutil.copytree(made / "checkpoint", tmp_path / "checkpoint"))
    (checkpoint / "manifest.json").unlink()  # as another tool's
    if damage == "a later tokenizer":
        _later_tokenizer(checkpoint)
    else:
        tensors = load_file(checkpoint / "model.safetensors")
        tensors.pop(next(name for name in tensors if ".1.mlp.down_proj." in name and name.endswith("scales")))
        save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(Awq2trtError, match=r"missing scales|the pre_tokenizer 'SplitOfTheFuture'"):
        export_stage(ExportRequest(checkpoint, tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx").exists()


def _build(model: Path, output: Path, target: str = "rtx4090", **options: Any) -> None:
    building = {key: options.pop(key) for key in ("plugin", "jetpack") if key in options}
    export = ExportOptions(max_seq_len=options.pop("max_seq_len", 64))
    recipe = Recipe(quantize=RTN, export=export, build=BuildOptions(target=target, **building))
    list(build_stage(BuildRequest(str(model), output, recipe, **options), SilentProgress()))


def test_build_refuses_what_its_last_stage_would(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="at most 256 tokens"):
        _build(model, tmp_path, "cpu", max_seq_len=512)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "thesis.txt").write_text("all of it")
    with pytest.raises(ArtifactError, match=r"cpu: the directory is not empty \(thesis\.txt\)"):
        _build(model, tmp_path, "cpu")
    (tmp_path / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="onnx: expected a folder or a file of our own, got a symbolic link"):
        _build(model, tmp_path, "cpu", overwrite=True)
    monkeypatch.setattr(builder, "_MODULE", "no_such_module")
    with pytest.raises(ToolError, match="TensorRT-RTX is not installed"):
        _build(model, tmp_path / "out")


def test_build_refuses_a_kit_that_could_not_be_made_or_delivered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_library, "_candidates", list)
    with pytest.raises(ToolError, match="for aarch64"):
        _build(model, tmp_path / "out", "orin")
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "libawq2trt_plugins.so")))
    with pytest.raises(UsageError, match="USER@HOST"):
        _build(model, tmp_path / "out", "orin", ssh="-oProxyCommand=touch /tmp/x")
    monkeypatch.setenv("AWQ2TRT_SSH", "no-such-program -p 22")
    with pytest.raises(ToolError, match="no-such-program is not installed"):
        _build(model, tmp_path / "out", "orin", ssh="me@jetson")


def test_build_refuses_a_kit_without_kernels_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "libawq2trt_plugins.so")))
    model = tiny_models.save_llama(tmp_path / "model", intermediate_size=100)
    with pytest.raises(UnsupportedError, match=r"mlp\.down_proj: .*no kernel for a linear with K = 100"):
        _build(model, tmp_path / "out", "orin")


def test_a_disk_without_room_for_all_stages_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(ArtifactError, match=r"the disk is too full: 0\.2 MB are free, but at least 0\.[0-9] MB"):
        _build(model, tmp_path / "out", "cpu")


def test_a_resumed_run_needs_no_room_for_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = "f" * 64
    with (
        pytest.raises(KeyboardInterrupt),
        create_artifact(tmp_path, "checkpoint", fingerprint, expected_bytes=1000) as draft,
    ):
        (draft.scratch / "block-0").write_bytes(bytes(900))
        raise KeyboardInterrupt
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with create_artifact(tmp_path, "checkpoint", fingerprint, resume=True, expected_bytes=1000) as draft:
        pass
    with (
        pytest.raises(ArtifactError, match="the disk is too full"),
        create_artifact(tmp_path, "checkpoint", fingerprint, resume=True, expected_bytes=1001),
    ):
        pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_command_goes_on_with_an_interrupted_run_unless_it_overwrites(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    found: list[bool] = []

    def run(job: QuantizeJob) -> Any:
        found.append((job.store.directory / "mark").is_file())
        (job.store.directory / "mark").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(QuantizeJob, "run", run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            _build(model, tmp_path, "cpu", overwrite=overwrite)
    assert (tmp_path / "checkpoint" / WORK_DIRECTORY).is_dir()
    assert found == [False, not overwrite]


def test_what_is_in_the_way_is_known_before_a_models_files_are_hashed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "source_record", lambda _: pytest.fail("the work has begun"))
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ArtifactError, match=r"the directory is not empty \(thesis\.txt\)"):
        quantize_stage(QuantizeRequest(str(model), tmp_path, RTN), SilentProgress())


def _evaluated(made: Path, *arguments: str) -> str:
    """What `eval` says of the exported model and of another one, which it refuses before it runs the first."""
    result = CliRunner().invoke(app, ["eval", str(made / "onnx"), *arguments])
    assert result.exit_code in (1, 2)
    assert "PyTorch" not in result.output
    assert "ONNX Runtime" not in result.output
    return result.output


def test_every_model_is_known_before_the_first_is_evaluated(made: Path, copy: Path) -> None:
    short = ("--text", str(made / "calibration.txt"), "--windows", "1", "--seqlen", "16")
    assert "no-such-model" in _evaluated(made, "no-such-model", *short)
    long = (*short[:-1], "65")
    assert "cache holds, got 65" in _evaluated(made, str(copy), *long)
    _tensors(copy, lambda tensors: tensors.pop("model.norm.weight"))
    assert "model.norm.weight" in _evaluated(made, str(copy), *short)
    (copy / "tokenizer.json").write_text("{")
    assert "tokenizer" in _evaluated(made, str(copy), *short)


def test_texts_of_a_task_fit_every_model_before_the_first_is_evaluated(made: Path, copy: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a " * 40 + "b"}))
    task = ("--task", "lambada", "--data", str(rows))
    assert "cache holds, got 81" in _evaluated(made, str(copy), *task)
    rows.write_text(json.dumps({"text": "word"}))
    assert "the context has no tokens" in _evaluated(made, str(copy), *task)


def test_results_that_could_not_be_written_are_refused_first(made: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "r.json", tmp_path):
        result = CliRunner().invoke(app, ["eval", str(made / "onnx"), "--text", "t.txt", "--json", str(path)])
        assert result.exit_code == 2
        assert "--json" in result.output
    if os.geteuid():
        tmp_path.chmod(0o500)
        result = CliRunner().invoke(app, ["bench", str(made / "onnx"), "--plot", str(tmp_path / "a.png")])
        assert "--plot" in result.output


@pytest.mark.parametrize(
    ("flag", "build"),
    [
        ("--no-fusion", BuildOptions(cache="int8", fusion=False)),
        ("--no-plugin", BuildOptions(cache="int8", plugin=False)),
    ],
)
def test_an_int8_cache_needs_the_operator_that_writes_it(flag: str, build: BuildOptions) -> None:
    for target in ("cuda", "rtx4090", "orin"):
        with pytest.raises(UsageError, match=f"which {flag} leaves out"):
            require_target(find_target(target), build, ssh=None)
    require_target(find_target("cpu"), build, ssh=None)


def test_an_int8_cache_needs_an_attention_that_the_operator_knows() -> None:
    spec = describe_model(LLAMA_2_7B)
    recipe = Recipe(build=BuildOptions(cache="int8"))
    require_int8_attention(spec, find_target("cuda"), recipe)
    odd = replace(spec, head_dim=72)
    with pytest.raises(UnsupportedError, match="heads of 64, 80, 96, 112, 128, 256 channels"):
        require_int8_attention(odd, find_target("cuda"), recipe)
    require_int8_attention(odd, find_target("cpu"), recipe)
    require_int8_attention(odd, find_target("cuda"), Recipe())


def test_results_take_no_file_of_a_models_place(made: Path, model: Path, tmp_path: Path) -> None:
    theirs = [model / name for name in ("model.safetensors", "config.json", "tokenizer.json")]
    ours = [made / "onnx" / name for name in ("manifest.json", "model.onnx.data", "golden.npz", "model.onnx")]
    for path in (*theirs, *ours):
        with pytest.raises(UsageError, match="the file belongs to a model, and the results would replace it"):
            require_file(path, "--json")
    (tmp_path / "results.json").write_text("{}")  # of an earlier run
    for free in (tmp_path / "results.json", made / "onnx" / "page.html", None):
        require_file(free, "--json")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{made}/checkpoint", "--html", "{made}/checkpoint/model.safetensors"),
        ("eval", "{made}/checkpoint", "--text", "x.txt", "--json", "{made}/checkpoint/config.json"),
        ("bench", "{made}/onnx", "--markdown", "{made}/onnx/model.onnx"),
    ],
)
def test_commands_look_before_they_write_results(made: Path, arguments: tuple[str, ...]) -> None:
    ran = CliRunner().invoke(app, [argument.format(made=made) for argument in arguments])
    assert ran.exit_code == 2
    assert "the file belongs to a model" in ran.stderr


def test_a_plot_that_nothing_draws_is_refused_before_anything_is_measured(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["bench", str(made / "onnx"), "--plot", str(tmp_path / "a.png")])
    assert result.exit_code == 1
    assert "matplotlib is not installed" in result.output
    assert "ms" not in result.output


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        ("quantize", "--json-progress", "--profile"),
        ("quantize", "--calib", "--profile"),
        ("eval", "--text", "--json"),
        ("inspect", "--results", "--html"),
        ("bench", "--json", "--markdown"),
    ],
)
def test_a_file_is_not_written_over_another(command: str, first: str, second: str, made: Path, tmp_path: Path) -> None:
    path, same = tmp_path / "a.txt", tmp_path / "below" / ".." / "a.txt"
    path.write_text("precious")
    (tmp_path / "below").mkdir()
    output = ["-o", str(tmp_path / "out")] if command == "quantize" else []
    arguments = [command, str(made / "onnx"), *output, first, str(path), second, str(same)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"{first} names the same file" in result.output
    assert path.read_text() == "precious"


def test_standard_error_is_no_file() -> None:
    readiness.require_apart({"--json-progress": "-", "--profile": "-", "--calib": None})
