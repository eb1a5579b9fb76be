"""Which runtime runs a model if the user names none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from native_sessions import require_runtime_library
from noted_progress import NotedProgress
from pictures import picture
from PIL import Image
from tiny_flamingo import export_flamingo
from tiny_gemma3 import export_gemma3
from tiny_lowered import build_lowered, edit_manifest, replace_file

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import Awq2trtError, UnsupportedError, UsageError
from awq2trt.machine import runtime_library
from awq2trt.progress import SilentProgress
from awq2trt.runtime import Model
from awq2trt.runtime.choice import load_model
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.target import find_target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_lowered(tmp_path_factory.mktemp("built"), "cpu")


@pytest.fixture
def needs_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_runtime_library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("needs_library")
def test_what_was_built_runs_in_the_cpp_library_with_the_same_answer(built: Path) -> None:
    chosen = load_model(built / "cpu", DeviceOptions())
    python = load_model(built / "cpu", DeviceOptions(), backend="ort")
    assert isinstance(chosen, NativeModel)
    assert isinstance(python, Model)
    assert chosen.generate_text("hello", max_new_tokens=8) == python.generate_text("hello", max_new_tokens=8)


def test_what_was_exported_runs_in_the_package(built: Path) -> None:
    assert isinstance(load_model(built / "onnx", DeviceOptions()), Model)


def test_without_the_library_the_package_runs_it(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime_library.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(runtime_library, "_PACKAGE", tmp_path / "awq2trt")
    assert isinstance(load_model(built / "cpu", DeviceOptions()), Model)


@pytest.mark.usefixtures("needs_library")
def test_what_the_library_does_not_know_the_package_runs(built: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(built / "cpu", tmp_path / "cpu"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "UnicodeScripts"}
    replace_file(directory, "tokenizer.json", json.dumps(tokenizer).encode())
    progress = NotedProgress()
    assert isinstance(load_model(directory, DeviceOptions(), progress=progress), Model)
    assert progress.notes[0].startswith("the C++ library cannot run this model: ")
    assert "UnicodeScripts" in progress.notes[0]
    with pytest.raises(UnsupportedError):
        load_model(directory, DeviceOptions(), backend="native")


def _lowered(export: Callable[[Path], Artifact], folder: Path) -> Path:
    """A model that sees, built for the CPU, with `a.png` beside it."""
    exported, spec = export(folder), model_spec(str(folder / "checkpoint"))
    request = LowerRequest(find_target("cpu"), folder / "cpu", fusion=False)
    lower_stage(exported, spec, request, SilentProgress())
    Image.fromarray(picture(24, 30)).save(folder / "a.png")
    return folder / "cpu"


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("export", [export_flamingo, export_gemma3])
def test_the_library_shows_images_to_decoders_of_tables(export: Callable[[Path], Artifact], tmp_path: Path) -> None:
    directory = _lowered(export, tmp_path)
    chosen, python = (load_model(directory, DeviceOptions(), backend=backend) for backend in ("auto", "ort"))
    assert isinstance(chosen, NativeModel)
    answers = [
        model.generate_text("<image>a", images=[tmp_path / "a.png"], raw=True, max_new_tokens=8)
        for model in (chosen, python)
    ]
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("needs_library")
def test_images_that_the_library_cannot_show_the_package_shows(tmp_path: Path) -> None:
    directory = _lowered(export_gemma3, tmp_path)
    edit_manifest(directory, lambda value: value["contents"]["model"]["vision"].update(family="another"))
    progress = NotedProgress()
    model = load_model(directory, DeviceOptions(), progress=progress)
    assert isinstance(model, Model)
    why = "cannot show images to models of the family 'another', only to those of 'gemma3-vision'"
    assert progress.notes[0].startswith("the C++ library cannot run this model: ")
    assert why in progress.notes[0]
    assert model.generate_text("<image>a", images=[tmp_path / "a.png"], raw=True, max_new_tokens=4)
    with pytest.raises(UnsupportedError, match=why) as caught:
        load_model(directory, DeviceOptions(), backend="native")
    assert caught.value.fix is not None
    assert "`awq2trt run --runtime ort`" in caught.value.fix


@pytest.mark.usefixtures("needs_library")
def test_what_is_broken_is_an_error_at_once(built: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(built / "cpu", tmp_path / "cpu"))
    edit_manifest(directory, lambda value: value["contents"]["tokens"].update(eos=5))
    with pytest.raises(Awq2trtError, match="the tokenizer is that of another model"):
        load_model(directory, DeviceOptions())


def test_a_runtime_that_is_none(built: Path) -> None:
    with pytest.raises(UsageError, match="unknown backend 'x', expected auto, ort or native"):
        load_model(built / "cpu", DeviceOptions(), backend="x")
