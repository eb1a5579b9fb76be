"""What most tests of sessions use: the model for the CPU, `built/cpu` in the folder of a module's fixture `built`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from awq2trt.runtime import Model
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.ort.loading import DeviceOptions


@pytest.fixture(scope="module")
def native(built: Path) -> NativeModel:
    """In the C++ library."""
    return NativeModel.load(built / "built" / "cpu")


@pytest.fixture(scope="module")
def python(built: Path) -> Model:
    """In Python's runtime."""
    return Model.load(built / "built" / "cpu", DeviceOptions("cpu"))


@pytest.fixture
def changed(built: Path, tmp_path: Path) -> Path:
    """A copy of its directory, for a test to change."""
    return Path(shutil.copytree(built / "built" / "cpu", tmp_path / "cpu"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
