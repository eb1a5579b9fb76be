"""plugins/packaging/awq2trt_build_backend.py: when `pip install .` builds the plugin library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SOURCE = Path(__file__).parents[3] / "plugins" / "packaging" / "awq2trt_build_backend.py"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("awq2trt_build_backend", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Undoes after the test what the hooks set.
    monkeypatch.setenv("AWQ2TRT_PLUGINS", "")
    monkeypatch.delenv("AWQ2TRT_PLUGINS")
    return module


def _program(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("asked", "compilers", "expected"),
    [(None, True, True), (None, False, False), ("0", True, False), ("1", False, True), ("OFF", True, False)],
)
def test_the_variable_decides_and_else_the_compilers(
    backend: ModuleType, asked: str | None, compilers: bool, expected: bool
) -> None:
    environ = {} if asked is None else {"AWQ2TRT_PLUGINS": asked}
    assert backend.wants_plugins(environ, lambda _: compilers) is expected


def test_another_value_is_an_error(backend: ModuleType) -> None:
    with pytest.raises(ValueError, match="set it to 1 or 0"):
        backend.wants_plugins({"AWQ2TRT_PLUGINS": "maybe"}, lambda _: True)


def test_both_compilers_must_be_there(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backend, "CUDA_FOLDER", str(tmp_path / "usual"))
    environ = {"PATH": str(tmp_path / "bin"), "CUDA_HOME": str(tmp_path / "cuda")}
    assert not backend.has_compilers(environ)
    _program(tmp_path / "bin", "g++")
    assert not backend.has_compilers(environ)
    _program(tmp_path / "cuda" / "bin", "nvcc")
    assert backend.has_compilers(environ)
    assert not backend.has_compilers({**environ, "CXX": "no-such-compiler"})


def test_a_library_that_nobody_asked_for_and_does_not_build_leaves_a_pure_wheel(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def build_wheel(*_: object) -> str:
        asked.append(backend.os.environ["AWQ2TRT_PLUGINS"])
        if asked[-1] == "1":
            raise RuntimeError("nvcc is too old")
        return "pure.whl"

    monkeypatch.setattr(backend, "_scikit_build", lambda: SimpleNamespace(build_wheel=build_wheel))
    monkeypatch.setattr(backend, "has_compilers", lambda _: True)
    assert backend.build_wheel("folder") == "pure.whl"
    assert asked == ["1", "0"]
    assert "nvcc is too old" in capsys.readouterr().err

    monkeypatch.setenv("AWQ2TRT_PLUGINS", "1")
    with pytest.raises(RuntimeError, match="too old"):
        backend.build_wheel("folder")


def test_editable_installs_stay_pure(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backend,
        "_scikit_build",
        lambda: SimpleNamespace(build_editable=lambda *_: backend.os.environ["AWQ2TRT_PLUGINS"]),
    )
    monkeypatch.setattr(backend, "has_compilers", lambda _: True)
    assert backend.build_editable("folder") == "0"
