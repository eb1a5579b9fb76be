"""`awq2trt check`: a sound build passes on any text, and each planted fault is found at its stage and block."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnx_ir as ir
import plant_faults
import pytest
import tiny_models
from numpy.typing import NDArray
from plant_faults import change_the_tables, edit_checkpoint, edit_graph, edit_weights, nan_in_the_middle
from safetensors.numpy import load_file, save_file

from awq2trt import opset
from awq2trt.checking.chain import (
    ENGINE,
    FOLDED,
    ONNX,
    ONNX_CUDA,
    ORIGINAL,
    QUANTIZED,
    RUNTIME,
    CheckResult,
    compare_weights,
    run_chain,
)
from awq2trt.checking.outcome import CheckOutcome
from awq2trt.checking.polygraphy_files import Command, write_folder
from awq2trt.checking.subject import find_subject
from awq2trt.checking.tolerance import storage_limit
from awq2trt.errors import UsageError
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.quantization import job
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.report.lines import check_lines
from awq2trt.stages.check import CheckRequest, check_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

LAYERS = 3
TEXT = "Any text is a text of a byte-level tokenizer, and this one has more bytes than the windows need. " * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(
        tmp_path_factory.mktemp("models") / "tiny-llama", num_hidden_layers=LAYERS, attention_bias=True
    )


@pytest.fixture(scope="module")
def build(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `awq2trt build` would leave, without an engine."""
    directory = tmp_path_factory.mktemp("build")
    text = tmp_path_factory.mktemp("text") / "calibration.txt"
    text.write_text(TEXT)
    options = QuantizeOptions(group_size=32, samples=4, seqlen=64, calib=str(text))
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", options), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=128))
    export_stage(export, SilentProgress())
    return directory


@pytest.fixture
def broken(build: Path, tmp_path: Path) -> Path:
    """A copy of the build, to be damaged."""
    return Path(shutil.copytree(build, tmp_path / "broken"))


def _check(directory: Path, model: Path | None, tokens: int = 48) -> CheckResult:
    output = directory.parent / "by-hand"
    request = CheckRequest(directory, model=str(model) if model else None, tokens=tokens, output=output)
    return check_stage(request, SilentProgress()).result


def _failure(directory: Path, model: Path) -> tuple[str, str, str]:
    """Stage, place and message of the first failure."""
    result = _check(directory, model)
    assert not result.passed
    failure = result.first_failure()
    assert failure is not None
    return failure.stage, failure.place, failure.message


# Sound builds.


def test_a_sound_build_passes_every_stage_that_can_be_run(build: Path, model: Path) -> None:
    result = _check(build, model)
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
    assert agreements[QUANTIZED].perplexity == pytest.approx(agreements[ONNX].perplexity_reference)


def test_what_was_not_run_says_why(build: Path, model: Path) -> None:
    skipped = {stage.stage: str(stage.skipped) for stage in _check(build, model).stages if stage.skipped}
    assert "no CUDA provider" in skipped[ONNX_CUDA]
    assert skipped[ENGINE] == "not run: no engine in this directory"
    lines = "\n".join(check_lines(CheckOutcome(_check(build, model), ())))
    assert "not run: no engine" in lines
    assert lines.splitlines()[-1] == "passed: original, folded, quantized, onnx, runtime"


def test_without_the_original_the_rest_is_checked(build: Path, tmp_path: Path) -> None:
    result = _check(build, None)
    skipped = {stage.stage: str(stage.skipped) for stage in result.stages}
    assert "tiny-llama, is not here" in skipped[ORIGINAL]
    assert "name it with --model" in skipped[FOLDED]
    assert [stage.stage for stage in result.stages if stage.against] == [ONNX, RUNTIME]
    assert result.passed


def test_a_checkpoint_alone_is_held_to_its_original(build: Path, model: Path) -> None:
    result = _check(build / "checkpoint", model)
    assert result.passed
    assert [stage.stage for stage in result.stages if stage.against] == [FOLDED, QUANTIZED]


def test_a_checkpoint_with_nothing_to_compare_it_with_has_not_passed(build: Path) -> None:
    result = _check(build / "checkpoint", None)
    assert not result.passed
    assert list(check_lines(CheckOutcome(result, ())))[-1] == "failed: there was nothing to compare"


def _texts() -> list[str]:
    """Twenty, from a reference manual to what no one would write."""
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
        {"method": "awq", "effort": "best"},
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
    result = _check(tmp_path / "checkpoint", model)
    assert result.passed, result.first_failure()
    edit_checkpoint(tmp_path, _double_a_scale if "symmetric" in options else _move_a_zero_point)
    block = "model.layers.1" if "symmetric" in options else "model.layers.2"
    assert _failure(tmp_path / "checkpoint", model)[:2] == (QUANTIZED, block)


@pytest.fixture
def bf16(build: Path, tmp_path: Path) -> Path:
    """The build exported in bf16, for which ONNX Runtime has no kernels."""
    shutil.copytree(build / "checkpoint", tmp_path / "bf16" / "checkpoint")
    options = ExportOptions(max_seq_len=64, dtype="bfloat16")
    export_stage(ExportRequest(build / "checkpoint", tmp_path / "bf16" / "onnx", options), SilentProgress())
    return tmp_path / "bf16"


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


def test_a_bfloat16_checkpoint_rounds_its_scales_last(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model that leaves fp16's range: its codes are the nearest to scales that were then rounded to 8 bits."""
    monkeypatch.setattr(job, "storage_dtype", lambda largest: "bfloat16")
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", rtn), SilentProgress())

    def found() -> list[str]:
        weights = compare_weights(find_subject(tmp_path / "checkpoint", model=str(model)), SilentProgress())
        return [finding.place for findings in weights.findings.values() for finding in findings]

    assert found() == []
    edit_checkpoint(tmp_path, _move_a_zero_point)
    assert found() == ["model.layers.2.mlp.gate_proj"]


def test_a_fault_of_a_bfloat16_model_is_cut_down(bf16: Path, model: Path) -> None:
    edit_graph(bf16, lambda graph: plant_faults.write_the_cache_late(graph, "model.layers.1"))
    outcome = check_stage(CheckRequest(bf16, model=str(model), tokens=24, bisect=True), SilentProgress())
    failure = outcome.result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ONNX, "model.layers.1")
    assert outcome.cut is not None
    assert outcome.cut.node == "model.layers.1.attention.merge_heads"
    done = _shell(Command(f"cd {outcome.cut.folder} && {outcome.cut.command}", ""))
    assert done.returncode == 1
    assert "Passed: 0/1 iterations" in done.stdout + done.stderr


# Faults in the checkpoint.


def _double_a_scale(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.double_a_scale(tensors, "model.layers.1.self_attn.k_proj", 5)


def _move_a_zero_point(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.move_a_zero_point(tensors, "model.layers.2.mlp.gate_proj", 7)


def _swap_two_rows(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.swap_rows(tensors, "model.layers.0.mlp.down_proj", 3, 4)


def _swap_nibbles(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.swap_nibbles(tensors, "model.layers.2.self_attn.q_proj")


def _drop_a_bias(tensors: dict[str, NDArray[Any]]) -> None:
    del tensors["model.layers.1.self_attn.v_proj.bias"]


def _plant_a_nan(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["model.layers.2.post_attention_layernorm.weight"][3] = np.nan


def _plant_a_nan_scale(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.plant_a_nan(tensors, "model.layers.1.mlp.up_proj")


@pytest.mark.parametrize(
    ("edit", "stage", "place", "says"),
    [
        (_double_a_scale, QUANTIZED, "model.layers.1", r"self_attn\.k_proj: .* in row 5, channel 0"),
        (_move_a_zero_point, QUANTIZED, "model.layers.2", r"mlp\.gate_proj: .* in row 7, channel 32"),
        (_swap_two_rows, QUANTIZED, "model.layers.0", r"mlp\.down_proj: .* in row 3"),
        (_swap_nibbles, QUANTIZED, "model.layers.2", r"self_attn\.q_proj: .* not the nearest"),
        (_drop_a_bias, QUANTIZED, "model.layers.1", r"v_proj: missing bias"),
        (_plant_a_nan, FOLDED, "model.layers.2", r"post_attention_layernorm\.weight: 1 of 48 weights are NaN"),
        (_plant_a_nan_scale, QUANTIZED, "model.layers.1", r"up_proj: scales are NaN"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_faults_in_the_checkpoint(
    broken: Path, model: Path, edit: Callable[[Any], None], stage: str, place: str, says: str
) -> None:
    edit_checkpoint(broken, edit)
    found = _failure(broken, model)
    assert found[:2] == (stage, place)
    assert re.search(says, found[2]), found[2]


def test_a_norm_that_was_not_folded(broken: Path, model: Path) -> None:
    original = open_source(str(model)).tensor("model.layers.1.input_layernorm.weight").astype(np.float16)
    edit_checkpoint(broken, lambda tensors: tensors.update({"model.layers.1.input_layernorm.weight": original}))
    stage, place, message = _failure(broken, model)
    assert (stage, place) == (FOLDED, "model.layers.1")
    assert "input_layernorm.weight" in message
    # The outputs tell it, too.
    folded = next(stage for stage in _check(broken, model).stages if stage.stage == FOLDED)
    assert [place.passed for place in folded.places] == [True, False, False, False]


def test_a_wrong_rotary_base_in_the_checkpoint(broken: Path, model: Path) -> None:
    plant_faults.change_the_rotary_base(broken)
    stage, place, message = _failure(broken, model)
    assert (stage, place) == (FOLDED, "config.json")
    assert "layers" in message


# Faults in the exported model.


def _write_the_cache_one_slot_late(model: ir.Model) -> None:
    plant_faults.write_the_cache_late(model, "model.layers.1")


def _mask_out_the_token_itself(model: ir.Model) -> None:
    plant_faults.move_the_mask(model, "Sub")


def _see_the_next_token(model: ir.Model) -> None:
    plant_faults.move_the_mask(model, "Add")


def _drop_a_bias_of_the_graph(model: ir.Model) -> None:
    (node,) = (node for node in model.graph if node.name == "model.layers.1.self_attn.v_proj")
    (plain,) = (node for node in model.graph if node.name == "model.layers.1.mlp.gate_proj")
    attributes = {**node.attributes, opset.ATTR_HAS_BIAS: ir.AttrInt64(opset.ATTR_HAS_BIAS, 0)}
    new = ir.Node(
        node.domain, node.op_type, node.inputs[:-1], list(attributes.values()), overload=plain.overload, name=node.name
    )
    new.outputs[0].name, new.outputs[0].type = f"{node.outputs[0].name}", node.outputs[0].type
    del model.graph.initializers["model.layers.1.self_attn.v_proj.bias"]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)


def _read_keys_as_values(model: ir.Model) -> None:
    """Of the cache alone: prefill is right, decoding is not."""
    inputs = {value.name: value for value in model.graph.inputs}
    for scatter in [node for node in model.graph if node.op_type == "TensorScatter"][4:]:
        past = scatter.inputs[0]
        assert past is not None
        other = {"past_key_2": "past_value_2", "past_value_2": "past_key_2"}[str(past.name)]
        scatter.replace_input_with(0, inputs[other])


@pytest.mark.parametrize(
    ("edit", "place", "says"),
    [
        (_write_the_cache_one_slot_late, "model.layers.1", "relative error"),
        (_mask_out_the_token_itself, "model.layers.0", "relative error"),
        (_see_the_next_token, "model.layers.0", "relative error"),
        (_drop_a_bias_of_the_graph, "model.layers.1", r"v_proj: the graph has no bias"),
        (_read_keys_as_values, "model.layers.2", "relative error"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_faults_in_the_graph(
    broken: Path, model: Path, edit: Callable[[ir.Model], None], place: str, says: str
) -> None:
    edit_graph(broken, edit)
    stage, found, message = _failure(broken, model)
    assert (stage, found) == (ONNX, place)
    assert says in message


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("model.layers.2.input_layernorm.weight", nan_in_the_middle, "model.layers.2"),
        ("model.layers.1.mlp.up_proj.scales", lambda value: value * np.float16(2), "model.layers.1"),
        ("rotary.cos", lambda value: np.roll(value, 1, axis=1), "rotary.cos"),
        ("model.embed_tokens.weight", lambda value: value[::-1], "model.embed_tokens.weight"),
    ],
)
def test_faults_in_the_weights_file(
    broken: Path, model: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]], place: str
) -> None:
    edit_weights(broken, name, change)
    stage, found, message = _failure(broken, model)
    assert (stage, found) == (ONNX, place)
    assert name in message


def test_a_wrong_rotary_base_in_the_graph_moves_the_first_block(broken: Path, model: Path) -> None:
    change_the_tables(broken, find_subject(broken, model=str(model)).checkpoint.spec.ropes[0])
    result = _check(broken, model)
    onnx = next(stage for stage in result.stages if stage.stage == ONNX)
    assert [finding.place for finding in onnx.findings] == ["rotary.cos", "rotary.sin"]
    assert not onnx.places[0].passed


def test_a_nan_fails_every_place_after_it(broken: Path, model: Path) -> None:
    edit_weights(broken, "model.layers.1.input_layernorm.weight", nan_in_the_middle)
    onnx = next(stage for stage in _check(broken, model).stages if stage.stage == ONNX)
    assert [place.passed for place in onnx.places] == [True, False, False, False]
    assert np.isnan(onnx.places[1].error)


def test_a_changed_file_is_told_even_if_it_computes_the_same(broken: Path, model: Path) -> None:
    path = broken / "checkpoint" / "config.json"
    path.write_text(path.read_text().replace('": ', '" :', 1))
    result = _check(broken, model)
    assert not result.passed
    assert result.changed == ("checkpoint/config.json",)
    assert result.first_failure() is None
    assert "FAILED checkpoint/config.json was changed since it was written" in list(
        check_lines(CheckOutcome(result, ()))
    )


# The same by hand.


def _by_hand(build: Path, folder: Path) -> tuple[Command, ...]:
    """The commands that check prints, without the check."""
    subject = find_subject(build)
    return write_folder(subject, list(TEXT.encode()[:24]), folder)


def _shell(command: Command) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        ["bash", "-c", command.text], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def test_polygraphy_agrees(build: Path, tmp_path: Path) -> None:
    run, *_ = _by_hand(build, tmp_path / "check")
    assert run.text.startswith("polygraphy run ")
    done = _shell(run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Accuracy Summary .* Passed: 5/5 iterations", done.stdout)
    assert run.text in (tmp_path / "check" / "README.md").read_text()


def test_polygraphy_finds_a_fault_that_only_decoding_shows(broken: Path, tmp_path: Path) -> None:
    edit_graph(broken, _read_keys_as_values)
    done = _shell(_by_hand(broken, tmp_path / "check")[0])
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
    done = _shell(convert)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "check" / "model.engine").stat().st_size > 10_000


# Bisection.


@pytest.mark.parametrize(
    ("edit", "node", "op_type", "most_nodes"),
    [
        (_mask_out_the_token_itself, "model.layers.0.attention.merge_heads", "Reshape", 40),
        (_drop_a_bias_of_the_graph, "model.layers.1.self_attn.v_proj", "W4A16Linear", 1),
        (_read_keys_as_values, "model.layers.2.attention.merge_heads", "Reshape", 40),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
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
    # The piece by itself shows the difference, and needs no other file.
    (alone := broken.parent / "alone").mkdir()
    for name in ("model.onnx", "inputs.json", "expected.json"):
        shutil.copy(cut.folder / name, alone)
    done = _shell(Command(f"cd {alone} && {cut.command}", ""))
    assert done.returncode == 1
    assert "Passed: 0/1 iterations" in done.stdout + done.stderr


def test_a_sound_build_has_nothing_to_cut(build: Path, tmp_path: Path) -> None:
    request = CheckRequest(build, tokens=24, output=tmp_path / "check", bisect=True)
    assert check_stage(request, SilentProgress()).cut is None


# What belongs together.


def test_another_model_is_refused(build: Path, tmp_path: Path) -> None:
    other = tiny_models.save_llama(tmp_path / "other", num_hidden_layers=LAYERS, attention_bias=True, rms_norm_eps=1e-3)
    with pytest.raises(UsageError, match="other weights"):
        _edit_norm(other)
        _check(build, other)


def _edit_norm(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_an_exported_model_finds_the_checkpoint_beside_it_or_says_so(build: Path, model: Path, tmp_path: Path) -> None:
    assert _check(build / "onnx", model).passed
    alone = shutil.copytree(build / "onnx", tmp_path / "alone")
    with pytest.raises(UsageError, match=r"no checkpoint.*--golden"):
        _check(Path(alone), model)
    request = CheckRequest(Path(alone), model=str(model), checkpoint=build / "checkpoint", tokens=16)
    assert check_stage(request, SilentProgress()).result.passed


def test_a_checkpoint_without_its_scales_is_checked_without_its_original(broken: Path, model: Path) -> None:
    (broken / "checkpoint" / "quantization.npz").unlink()
    manifest = broken / "checkpoint" / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["files"]["quantization.npz"]
    manifest.write_text(json.dumps(value))
    result = _check(broken, model)
    assert result.passed
    assert "quantize again" in str(next(stage for stage in result.stages if stage.stage == FOLDED).skipped)


def test_a_text_without_tokens_is_refused(build: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="no tokens"):
        check_stage(CheckRequest(build, model=str(model), text=str(tmp_path / "empty.txt")), SilentProgress())


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        find_subject(tmp_path / "missing")
