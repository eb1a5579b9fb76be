"""A failing block is reduced to the node that fails, in a folder that shows the difference by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import plant_faults
import pytest
import tiny_builds
from plant_faults import edit_graph

from awq2trt.checking.results import ONNX
from awq2trt.progress import SilentProgress
from awq2trt.report.lines import check_lines
from awq2trt.stages.check import CheckRequest, check_stage


def test_a_fault_of_a_bfloat16_model_is_cut_down(bf16: Path, model: Path) -> None:
    edit_graph(bf16, lambda graph: plant_faults.write_the_cache_late_(graph, "model.layers.1"))
    outcome = check_stage(CheckRequest(bf16, model=str(model), tokens=24, bisect=True), SilentProgress())
    failure = outcome.result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ONNX, "model.layers.1")
    assert outcome.cut is not None
    assert outcome.cut.node == "model.layers.1.attention.merge_heads"
    done = tiny_builds.run_in_shell(f"cd {outcome.cut.folder} && {outcome.cut.command}")
    assert done.returncode == 1
    assert "Passed: 0/1 iterations" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("edit", "node", "op_type", "most_nodes"),
    [
        (tiny_builds.mask_out_the_token_itself, "model.layers.0.attention.merge_heads", "Reshape", 40),
        (tiny_builds.drop_a_bias_of_the_graph, "model.layers.1.self_attn.v_proj", "W4A16Linear", 1),
        (tiny_builds.read_keys_as_values, "model.layers.2.attention.merge_heads", "Reshape", 40),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_failing_block_is_cut_down(
    broken: Path, edit: Callable[[ir.Model], None], node: str, op_type: str, most_nodes: int
) -> None:
    edit_graph(broken, edit)
    request = CheckRequest(broken, tokens=24, output=broken.parent / "check", bisect=True)
    outcome = check_stage(request, SilentProgress())
    cut = outcome.cut
    assert cut is not None
    assert (cut.node, cut.op_type) == (node, op_type)
    assert cut.nodes <= most_nodes
    assert cut.error > cut.limit
    assert cut.command in (cut.folder / "README.md").read_text()
    assert any(f"first wrong node: {node}" in line for line in check_lines(outcome))
    # The piece shows the difference by itself, and needs no other file.
    (alone := broken.parent / "alone").mkdir()
    for name in ("model.onnx", "inputs.json", "expected.json"):
        shutil.copy(cut.folder / name, alone)
    done = tiny_builds.run_in_shell(f"cd {alone} && {cut.command}")
    assert done.returncode == 1
    assert "Passed: 0/1 iterations" in done.stdout + done.stderr


def test_a_sound_build_has_nothing_to_cut(build: Path, tmp_path: Path) -> None:
    request = CheckRequest(build, tokens=24, output=tmp_path / "check", bisect=True)
    assert check_stage(request, SilentProgress()).cut is None
