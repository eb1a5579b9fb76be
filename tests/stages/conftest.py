"""What the tests of the commands share: a tiny real model, and its checkpoint and ONNX model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from tiny_builds import AWQ, TEXT

from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose widths, 48 and 80, are not multiples of the group."""
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model's checkpoint (AWQ) and its ONNX model."""
    directory = tmp_path_factory.mktemp("made")
    (directory / "calibration.txt").write_text(TEXT)
    options = AWQ.model_copy(update={"calib": str(directory / "calibration.txt")})
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", options), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    return directory
