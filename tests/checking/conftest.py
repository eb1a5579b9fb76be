"""The builds that the tests of `check` share: a sound one, copies to damage, and one in bf16."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_builds

from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.stages.export import ExportRequest, export_stage


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_builds.save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def build(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `awq2trt build`, without an engine."""
    text = tmp_path_factory.mktemp("text") / "calibration.txt"
    return tiny_builds.make_build(model, tmp_path_factory.mktemp("build"), text)


@pytest.fixture
def broken(build: Path, tmp_path: Path) -> Path:
    """A copy of the build, to be damaged."""
    return Path(shutil.copytree(build, tmp_path / "broken"))


@pytest.fixture
def bf16(build: Path, tmp_path: Path) -> Path:
    """The build exported in bf16, for which ONNX Runtime has no kernels."""
    shutil.copytree(build / "checkpoint", tmp_path / "bf16" / "checkpoint")
    options = ExportOptions(max_seq_len=64, dtype="bfloat16")
    export_stage(ExportRequest(build / "checkpoint", tmp_path / "bf16" / "onnx", options), SilentProgress())
    return tmp_path / "bf16"
