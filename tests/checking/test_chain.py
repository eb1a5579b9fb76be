"""`awq2trt check`: a sound build passes on any text, and each fault of the exported model is found at its block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_builds
from plant_faults import change_the_tables, edit_checkpoint, edit_graph, edit_weights, nan_in_the_middle_
from tiny_builds import LAYERS, TEXT

from awq2trt.checking.chain import run_chain
from awq2trt.checking.outcome import CheckOutcome
from awq2trt.checking.results import ENGINE, FOLDED, ONNX, ONNX_CUDA, ORIGINAL, QUANTIZED, RUNTIME
from awq2trt.checking.subject import find_subject
from awq2trt.checking.tolerance import storage_limit
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.report.lines import check_lines
from awq2trt.stages.check import CheckRequest, check_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def test_a_sound_build_passes_every_stage_that_can_be_run(build: Path, model: Path) -> None:
    result = tiny_builds.check(build, model)
    assert result.passed
    assert result.first_failure() is None
    run = {stage.stage: stage for stage in result.stages if not stage.skipped}
    assert list(run) == [ORIGINAL, FOLDED, QUANTIZED, ONNX, RUNTIME]
    assert [place.name for place in run[ONNX].places] == [f"model.layers.{layer}" for layer in range(LAYERS)] + [
        "logits"
    ]
    assert all(place.difference.positions == 48 for place in run[ONNX].places)
    agreements = {name: stage.agreement for name, stage in run.items() if stage.agreement}
    assert agreements[FOLDED].mean_kl < 1e-4 < agreements[QUANTIZED].mean_kl
    assert agreements[ONNX].top1 > 0.9
    assert agreements[QUANTIZED].perplexity == pytest.approx(agreements[ONNX].perplexity, rel=1e-3)


def test_what_was_not_run_says_why(build: Path, model: Path) -> None:
    skipped = {stage.stage: str(stage.skipped) for stage in tiny_builds.check(build, model).stages if stage.skipped}
    assert "no CUDA provider" in skipped[ONNX_CUDA]
    assert skipped[ENGINE] == "not run: no engine in this directory"
    lines = "\n".join(check_lines(CheckOutcome(tiny_builds.check(build, model), ())))
    assert "not run: no engine" in lines
    assert lines.splitlines()[-1] == "passed: original, folded, quantized, onnx, runtime"


def test_without_the_original_the_rest_is_checked(build: Path, tmp_path: Path) -> None:
    result = tiny_builds.check(build, None)
    skipped = {stage.stage: str(stage.skipped) for stage in result.stages}
    assert "tiny-llama, was not found" in skipped[ORIGINAL]
    assert "name it with --model" in skipped[FOLDED]
    assert [stage.stage for stage in result.stages if stage.against] == [ONNX, RUNTIME]
    assert result.passed


def test_a_checkpoint_alone_is_held_to_its_original(build: Path, model: Path) -> None:
    result = tiny_builds.check(build / "checkpoint", model)
    assert result.passed
    assert [stage.stage for stage in result.stages if stage.against] == [FOLDED, QUANTIZED]


def test_a_checkpoint_with_nothing_to_compare_it_with_has_not_passed(build: Path) -> None:
    result = tiny_builds.check(build / "checkpoint", None)
    assert not result.passed
    assert list(check_lines(CheckOutcome(result, ())))[-1] == "failed: there was nothing to compare"


def _texts() -> list[str]:
    """Twenty texts, from a reference manual to nonsense."""
    long = [text for _, text in sorted(topics.items()) if len(text) > 400][:14]
    return [*long, "a" * 400, "0 1 2 3 4 5 6 7 8 9 " * 20, "\n\n\t  " * 80, "数学は数の学問。" * 20, "🙂🙃" * 50, TEXT]


def test_a_sound_build_never_fails(build: Path, model: Path) -> None:
    subject = find_subject(build, model=str(model))
    for text in _texts():
        tokens = list(text.encode())[:64]  # ids of a byte-level tokenizer, though not in its order
        result = run_chain(subject, tokens, SilentProgress())
        assert result.passed, f"{text[:40]!r}: {result.first_failure()}"
    assert len(_texts()) == 20


@pytest.mark.parametrize(
    "options",
    [
        {"method": "rtn", "symmetric": True},
        {"method": "gptq"},
        {"method": "awq+gptq"},
        {"method": "awq"},
        {"method": "awq", "effort": "best"},
        {"method": "awq", "effort": "max"},
        {"method": "awq", "tune": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_method_passes_and_a_wrong_zero_point_or_scale_does_not(
    options: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    common = {"group_size": 32, "samples": 4, "seqlen": 64, "calib": str(tmp_path / "text.txt")}
    request = QuantizeRequest(
        str(model), tmp_path / "checkpoint", QuantizeOptions.model_validate({**common, **options})
    )
    quantize_stage(request, SilentProgress())
    result = tiny_builds.check(tmp_path / "checkpoint", model)
    assert result.passed, result.first_failure()
    edit_checkpoint(tmp_path, tiny_builds.double_a_scale if "symmetric" in options else tiny_builds.move_a_zero_point)
    block = "model.layers.1" if "symmetric" in options else "model.layers.2"
    assert tiny_builds.first_failure(tmp_path / "checkpoint", model)[:2] == (QUANTIZED, block)


def test_a_bfloat16_model_is_checked_block_by_block_in_fp32(bf16: Path, model: Path) -> None:
    outcome = check_stage(CheckRequest(bf16, model=str(model), tokens=32), SilentProgress())
    assert outcome.result.passed, outcome.result.first_failure()
    run = {stage.stage: stage for stage in outcome.result.stages if not stage.skipped}
    assert list(run) == [ORIGINAL, FOLDED, QUANTIZED, ONNX, RUNTIME]
    assert len(run[ONNX].places) == LAYERS + 1
    assert [place.limit for place in run[ONNX].places] == [storage_limit("bfloat16", n + 1) for n in range(LAYERS + 1)]
    lines = list(check_lines(outcome))
    assert any("ONNX as exported, ONNX Runtime CPU, which has no bf16 kernels: in fp32" in line for line in lines)
    assert [command.needs for command in outcome.commands] == ["TensorRT-RTX, but no GPU"]


@pytest.mark.parametrize(
    ("edit", "place", "says"),
    [
        (tiny_builds.write_the_cache_one_slot_late, "model.layers.1", "relative error"),
        (tiny_builds.mask_out_the_token_itself, "model.layers.0", "relative error"),
        (tiny_builds.see_the_next_token, "model.layers.0", "relative error"),
        (tiny_builds.drop_a_bias_of_the_graph, "model.layers.1", r"v_proj: the graph has no bias"),
        (tiny_builds.read_keys_as_values, "model.layers.2", "relative error"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_faults_in_the_graph(
    broken: Path, model: Path, edit: Callable[[ir.Model], None], place: str, says: str
) -> None:
    edit_graph(broken, edit)
    stage, found, message = tiny_builds.first_failure(broken, model)
    assert (stage, found) == (ONNX, place)
    assert says in message


def test_a_wrong_rotary_base_in_the_graph_moves_the_first_block(broken: Path, model: Path) -> None:
    change_the_tables(broken, find_subject(broken, model=str(model)).checkpoint.spec.ropes[0])
    result = tiny_builds.check(broken, model)
    onnx = next(stage for stage in result.stages if stage.stage == ONNX)
    assert [finding.place for finding in onnx.findings] == ["rotary.cos", "rotary.sin"]
    assert not onnx.places[0].passed


def test_a_nan_fails_every_place_after_it(broken: Path, model: Path) -> None:
    edit_weights(broken, "model.layers.1.input_layernorm.weight", nan_in_the_middle_)
    onnx = next(stage for stage in tiny_builds.check(broken, model).stages if stage.stage == ONNX)
    assert [place.passed for place in onnx.places] == [True, False, False, False]
    assert np.isnan(onnx.places[1].error)


def test_a_changed_file_is_told_even_if_it_computes_the_same(broken: Path, model: Path) -> None:
    path = broken / "checkpoint" / "config.json"
    path.write_text(path.read_text().replace('": ', '" :', 1))
    result = tiny_builds.check(broken, model)
    assert not result.passed
    assert result.changed == ("checkpoint/config.json",)
    assert result.first_failure() is None
    assert "FAILED checkpoint/config.json was changed since it was written" in list(
        check_lines(CheckOutcome(result, ()))
    )
