"""Repeating a check by hand: polygraphy agrees with the files, finds a fault with them, and builds an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_builds
import tiny_models
from plant_faults import edit_graph
from tiny_builds import TEXT

from awq2trt.artifact.manifest import Artifact
from awq2trt.checking.polygraphy_files import Command, write_folder
from awq2trt.checking.subject import find_subject
from awq2trt.io_contract import MODEL_FILE
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import find_target


def _by_hand(build: Path, folder: Path) -> tuple[Command, ...]:
    """The commands that check prints, without the check."""
    subject = find_subject(build)
    return write_folder(subject, list(TEXT.encode()[:24]), folder)


def test_polygraphy_agrees(build: Path, tmp_path: Path) -> None:
    run, *_ = _by_hand(build, tmp_path / "check")
    assert run.text.startswith("polygraphy run ")
    done = tiny_builds.run_in_shell(run.text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Accuracy Summary .* Passed: 5/5 iterations", done.stdout)
    assert run.text in (tmp_path / "check" / "README.md").read_text()


def test_polygraphy_finds_a_fault_that_only_decoding_shows(broken: Path, tmp_path: Path) -> None:
    edit_graph(broken, tiny_builds.read_keys_as_values)
    done = tiny_builds.run_in_shell(_by_hand(broken, tmp_path / "check")[0].text)
    assert done.returncode == 1
    assert re.search(r"Accuracy Summary .* Passed: 1/5 iterations", done.stdout + done.stderr)


@pytest.mark.parametrize("lowered", [False, True], ids=["exported", "for-cuda"])
def test_the_model_for_cuda_is_run_with_our_operators(lowered: bool, broken: Path, tmp_path: Path) -> None:
    if lowered:
        _lower_for_cuda(broken)
    commands = _by_hand(broken, tmp_path / "check")
    (command,) = (each for each in commands if "on_gpu.py" in each.text)
    assert "an NVIDIA GPU" in command.needs
    where = str(broken / ("cuda" if lowered else "onnx") / MODEL_FILE)
    assert f"MODEL = {where!r}" in (tmp_path / "check" / "on_gpu.py").read_text()
    done = tiny_builds.run_in_shell(f"{command.text} CPUExecutionProvider")
    if "is not a registered function" in done.stderr or ("without our operators" in done.stderr and lowered):
        pytest.skip("needs the plugin library, with the fused operators: make plugins")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Accuracy Summary .* Passed: 5/5 iterations", done.stdout)


def test_a_fault_of_the_model_for_cuda_is_found(broken: Path, tmp_path: Path) -> None:
    edit_graph(broken, tiny_builds.read_keys_as_values)
    done = tiny_builds.run_in_shell(f"{_by_hand(broken, tmp_path / 'check')[1].text} CPUExecutionProvider")
    assert done.returncode == 1
    assert re.search(r"Accuracy Summary .* Passed: 1/5 iterations", done.stdout + done.stderr)


def test_without_a_gpu_the_script_says_what_is_missing(build: Path, tmp_path: Path) -> None:
    done = tiny_builds.run_in_shell(f"CUDA_VISIBLE_DEVICES= {_by_hand(build, tmp_path / 'check')[1].text}")
    assert done.returncode == 1
    assert re.search("there is no NVIDIA driver here|finds no GPU here", done.stderr)


def _lower_for_cuda(build: Path) -> None:
    """Puts a model that `awq2trt build --target cuda` makes beside the exported model."""
    spec = model_spec(str(build / "checkpoint"))
    request = LowerRequest(find_target("cuda"), build / "cuda")
    lower_stage(Artifact.open(build / "onnx"), spec, request, SilentProgress())


@pytest.mark.trt
def test_polygraphy_builds_an_engine_without_a_gpu(tmp_path: Path) -> None:
    model = tiny_models.save_llama(tmp_path / "model", hidden_size=96, head_dim=64, num_attention_heads=4)
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", rtn), SilentProgress())
    export = ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    convert = _by_hand(tmp_path, tmp_path / "check")[2]
    assert "no GPU" in convert.needs
    done = tiny_builds.run_in_shell(convert.text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "check" / "model.engine").stat().st_size > 10_000
