"""The Python API: all stages on a tiny model, what is public, and that no room takes a function's name."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import pytest
from tiny_models import save_llama

import awq2trt
from awq2trt import api
from awq2trt.cli import app
from awq2trt.errors import UsageError
from awq2trt.evaluation.perplexity import Perplexity
from awq2trt.evaluation.tasks import TaskScore
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.runtime.loaded_model import DEFAULT_BACKEND
from awq2trt.stages.build import BuildRequest

TEXT = "The quick brown fox jumps over the lazy dog. " * 40
FUNCTIONS = ("build", "check", "check_golden", "evaluate", "export", "load", "quantize")
COMPUTING = [name for name in FUNCTIONS if "device" in inspect.signature(getattr(api, name)).parameters]


class _Told(awq2trt.SilentProgress):
    """Records that it was called."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_all_stages_of_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy")
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    save_llama(Path("model"))
    options = awq2trt.QuantizeOptions(calib="text.txt", samples=2, seqlen=64, group_size=32)
    told = _Told()
    checkpoint = awq2trt.quantize("model", "checkpoint", options, progress=told)
    assert isinstance(checkpoint, awq2trt.Artifact)
    assert told.notes == ["reading model"]
    assert checkpoint.manifest.contents.quantization.scheme == options.scheme

    onnx = awq2trt.export(checkpoint.directory, Path("onnx"), awq2trt.ExportOptions(max_seq_len=64))
    assert (onnx.directory, onnx.manifest.kind) == (Path("onnx"), "onnx")

    answer = awq2trt.load("onnx").generate_text("hello", raw=True, max_new_tokens=8)
    assert answer

    on = awq2trt.TextWindows("text.txt", windows=2, seqlen=32)
    results = list(awq2trt.evaluate(["model", Path("checkpoint"), "onnx"], on))
    assert [result.model for result in results] == ["model", "checkpoint", "onnx"]
    assert all(math.isfinite(_perplexity(result)) for result in results)
    (alone,) = awq2trt.evaluate(Path("checkpoint"), on)
    assert _perplexity(alone) == _perplexity(results[1])

    assert awq2trt.check_golden("onnx").passed
    outcome = awq2trt.check("onnx", model="model", checkpoint="checkpoint", tokens=16)
    assert outcome.result.passed


def _perplexity(result: awq2trt.EvalResult) -> float:
    assert isinstance(result.measured, Perplexity)
    return result.measured.value


def test_a_task_is_scored(tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    row = '{"goal": "To open a jar", "sol1": "twist the lid", "sol2": "eat the lid", "label": 0}\n'
    (tmp_path / "rows.jsonl").write_text(row * 3)
    (result,) = awq2trt.evaluate(tmp_path / "model", awq2trt.TaskExamples("piqa", tmp_path / "rows.jsonl", limit=2))
    assert isinstance(result.measured, TaskScore)
    assert result.measured.examples == 2


@pytest.mark.parametrize("name", COMPUTING)
def test_the_usual_device_is_that_of_the_recipe(name: str) -> None:
    runs_a_model = name in ("load", "check_golden")  # on the fastest device, or the one that it was built for
    expected = None if runs_a_model else DEFAULT_DEVICE
    assert inspect.signature(getattr(api, name)).parameters["device"].default == expected


def test_the_usual_backend_is_that_of_the_runtime() -> None:
    assert inspect.signature(api.load).parameters["backend"].default == DEFAULT_BACKEND


def test_build_tells_of_each_artifact_and_returns_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = [object(), object()]
    requests: list[BuildRequest] = []

    def build_stage(request: BuildRequest, progress: object) -> list[object]:
        requests.append(request)
        return made

    monkeypatch.setattr("awq2trt.stages.build.build_stage", build_stage)
    told: list[object] = []
    recipe = awq2trt.Recipe(build=awq2trt.BuildOptions(target="rtx", plugin=False))
    returned: list[object] = list(
        awq2trt.build("model", tmp_path, target="rtx3090", recipe=recipe, on_artifact=told.append)
    )
    assert returned == told == made
    (request,) = requests
    assert request.options.build == awq2trt.BuildOptions(target="rtx3090", plugin=False)
    with pytest.raises(UsageError, match="unknown target 'rtx4080'"):
        awq2trt.build("model", tmp_path, target="rtx4080")


def test_rooms_do_not_take_the_names_of_functions() -> None:
    """An imported subpackage becomes an attribute of the package, and replaces whatever had its name."""
    skipped = {"awq2trt.__main__", "awq2trt.evaluation.lm_eval"}  # it runs; it needs lm-eval
    if find_spec("triton") is None:  # which comes with PyTorch for GPUs
        skipped |= {"awq2trt.quantization.gpu_grids", "awq2trt.quantization.gpu_panels"}
    for module in pkgutil.walk_packages(awq2trt.__path__, "awq2trt."):
        if module.name not in skipped:
            importlib.import_module(module.name)
    for name in FUNCTIONS:
        assert isinstance(getattr(awq2trt, name), FunctionType), name
        assert getattr(awq2trt, name) is getattr(api, name)


def test_public_names_are_listed_imported_and_there() -> None:
    tree = ast.parse(Path(str(awq2trt.__file__)).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {
        alias.name: f"{statement.module}"
        for statement in checked.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == {name: f"awq2trt.{module}" for name, module in awq2trt._HOMES.items()}
    assert sorted(awq2trt.__all__) == sorted(imported)
    assert set(awq2trt.__all__) <= set(dir(awq2trt))
    for name in awq2trt.__all__:
        assert getattr(awq2trt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        getattr(awq2trt, "quantise")  # noqa: B009  (type checkers know that there is none)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(api, name)
    text = inspect.getdoc(function) or ""
    parameters = inspect.signature(function).parameters
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters.values())
    assert all(f"    {parameter}: " in text for parameter in parameters)
    assert "awq2trt." in text.split("Args:")[0], "no example"
    assert {"Args:", "Returns:", "Raises:"} <= set(text.split())


@pytest.mark.parametrize(
    ("command", "name"), [("quantize", "quantize"), ("export", "export"), ("eval", "evaluate"), ("check", "check")]
)
def test_flags_have_the_defaults_of_the_functions(command: str, name: str) -> None:
    commands = {
        each.name or str(getattr(each.callback, "__name__", "")): each.callback for each in app.registered_commands
    }
    callback = commands[command]
    assert callback is not None
    flags, keywords = inspect.signature(callback).parameters, inspect.signature(getattr(api, name)).parameters
    shared = {
        key: parameter.default
        for key, parameter in keywords.items()
        if key in flags and parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert shared
    assert {key: _default(flags[key].default, key) for key in shared} == shared


def _default(given: object, key: str) -> object:
    """The default of a flag; `quantize` leaves the device open, because --gpus decides it, too."""
    return DEFAULT_DEVICE if key == "device" and given is None else given
