"""The same check by hand: polygraphy agrees with the files, finds a fault with them, and builds an engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_builds
import tiny_models
from plant_faults import edit_graph
from tiny_builds import TEXT

from awq2trt.checking.polygraphy_files import Command, write_folder
from awq2trt.checking.subject import find_subject
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


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


@pytest.mark.trt
def test_polygraphy_builds_an_engine_without_a_gpu(tmp_path: Path) -> None:
    model = tiny_models.save_llama(tmp_path / "model", hidden_size=96, head_dim=64, num_attention_heads=4)
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", rtn), SilentProgress())
    export = ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    export_stage(export, SilentProgress())
    convert = _by_hand(tmp_path, tmp_path / "check")[1]
    assert "no GPU" in convert.needs
    done = tiny_builds.run_in_shell(convert.text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "check" / "model.engine").stat().st_size > 10_000
