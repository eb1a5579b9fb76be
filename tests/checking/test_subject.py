"""Finding what can be checked in a directory: what belongs together is found, and everything else is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_builds
from safetensors.numpy import load_file, save_file

from awq2trt.checking.results import FOLDED
from awq2trt.checking.subject import find_subject
from awq2trt.errors import UsageError
from awq2trt.progress import SilentProgress
from awq2trt.stages.check import CheckRequest, check_stage


def test_another_model_is_refused(build: Path, tmp_path: Path) -> None:
    other = tiny_builds.save_model(tmp_path / "other", rms_norm_eps=1e-3)
    with pytest.raises(UsageError, match="other weights"):
        _edit_norm(other)
        tiny_builds.check(build, other)


def _edit_norm(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_an_exported_model_finds_the_checkpoint_beside_it_or_says_so(build: Path, model: Path, tmp_path: Path) -> None:
    assert tiny_builds.check(build / "onnx", model).passed
    alone = shutil.copytree(build / "onnx", tmp_path / "alone")
    with pytest.raises(UsageError, match=r"no checkpoint.*--golden"):
        tiny_builds.check(Path(alone), model)
    request = CheckRequest(Path(alone), model=str(model), checkpoint=build / "checkpoint", tokens=16)
    assert check_stage(request, SilentProgress()).result.passed


def test_a_checkpoint_without_its_scales_is_checked_without_its_original(broken: Path, model: Path) -> None:
    (broken / "checkpoint" / "quantization.npz").unlink()
    manifest = broken / "checkpoint" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["files"]["quantization.npz"]
    manifest.write_text(json.dumps(value))
    result = tiny_builds.check(broken, model)
    assert result.passed
    assert "quantize again" in str(next(stage for stage in result.stages if stage.stage == FOLDED).skipped)


def test_a_text_without_tokens_is_refused(build: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="no tokens"):
        check_stage(CheckRequest(build, model=str(model), text=str(tmp_path / "empty.txt")), SilentProgress())


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        find_subject(tmp_path / "missing")
