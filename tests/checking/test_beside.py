"""`check` on a model that sees: a sound build passes, and a fault in any graph is named."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_builds
from plant_faults import edit_checkpoint, edit_weights, one_step_off_
from seeing_families import quantize_sight
from tiny_gemma3 import export_gemma3
from tiny_llava import export_llava, save_llava
from tiny_llava_next import export_llava_next
from tiny_lowered import replace_file
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.checking.bisect import bisect
from awq2trt.checking.chain import run_chain
from awq2trt.checking.results import ONNX, QUANTIZED, RUNTIME, CheckResult
from awq2trt.checking.subject import find_subject
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.cli import app
from awq2trt.io_contract import EMBEDDING, EMBEDDING_FILE, MODEL_FILE, VISION, VISION_FILE, weights_of
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.stages.check import CheckRequest, check_stage
from awq2trt.stages.export import ExportRequest, export_stage

TOKENS = list(range(30, 70))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    export_llava(folder)
    return folder


@pytest.fixture
def broken(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "broken"))


def _check(folder: Path) -> CheckResult:
    return run_chain(find_subject(folder, model=str(folder / "model")), TOKENS, SilentProgress())


def _edit(path: Path, change: Callable[[ir.Model], None]) -> None:
    model = ir.load(path)
    change(model)
    ir.save(model, path, external_data=weights_of(path.name))
    for name in (path.name, weights_of(path.name)):
        replace_file(path.parent, name, (path.parent / name).read_bytes())


def test_a_sound_build_passes_graph_by_graph(sound: Path, tmp_path: Path) -> None:
    request = CheckRequest(sound, model=str(sound / "model"), tokens=40, output=tmp_path / "check")
    outcome = check_stage(request, SilentProgress())
    assert outcome.result.passed, outcome.result.first_failure()
    stages = {stage.stage: stage for stage in outcome.result.stages}
    blocks = [f"language_model.model.layers.{layer}" for layer in range(2)]
    assert [place.name for place in stages[ONNX].places] == [VISION, EMBEDDING, *blocks, "logits"]
    assert [place.name for place in stages[RUNTIME].places] == [VISION, "logits"]
    assert all(place.error > 0 for place in stages[ONNX].places if place.name != EMBEDDING)
    by_hand = next(command.text for command in outcome.commands if "--onnxrt" in command.text)
    done = tiny_builds.run_in_shell(by_hand)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("export", [export_qwen_vl, export_qwen3_vl, export_smolvlm, export_llava_next, export_gemma3])
def test_other_images_are_checked_too(export: Callable[[Path], object], tmp_path: Path) -> None:
    export(tmp_path)
    request = CheckRequest(tmp_path, model=str(tmp_path / "model"), tokens=40, output=tmp_path / "check")
    outcome = check_stage(request, SilentProgress())
    assert outcome.result.passed, outcome.result.first_failure()
    stages = {stage.stage: stage for stage in outcome.result.stages}
    assert [place.name for place in stages[RUNTIME].places] == [VISION, "logits"]
    by_hand = next(command.text for command in outcome.commands if "--onnxrt" in command.text)
    done = tiny_builds.run_in_shell(by_hand)
    assert done.returncode == 0, done.stdout + done.stderr


def _add_the_next_blocks(model: ir.Model) -> None:
    """Swaps what deepstack adds behind the first two blocks: the ranges of channels that are added."""
    first, second = (node for node in model.graph if (node.name or "").endswith(".deepstack"))
    for index in (1, 2):
        values = [node.inputs[index] for node in (first, second)]
        one, other = (value.producer() for value in values if value is not None)
        assert one is not None
        assert other is not None
        ours, theirs = one.attributes["value_ints"].as_ints(), other.attributes["value_ints"].as_ints()
        one.attributes["value_ints"] = ir.AttrInt64s("value_ints", theirs)
        other.attributes["value_ints"] = ir.AttrInt64s("value_ints", ours)


def test_deepstack_behind_the_wrong_block_is_found(tmp_path: Path) -> None:
    """Text alone would not show it, since nothing is added there."""
    export_qwen3_vl(tmp_path)
    _edit(tmp_path / "onnx" / MODEL_FILE, _add_the_next_blocks)
    request = CheckRequest(tmp_path, model=str(tmp_path / "model"), tokens=40, output=tmp_path / "check", bisect=True)
    outcome = check_stage(request, SilentProgress())
    failure = outcome.result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ONNX, "model.language_model.layers.0")
    assert outcome.cut is not None


def test_bf16_is_checked_in_fp32(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound / "checkpoint", tmp_path / "checkpoint")
    options = ExportOptions(max_seq_len=64, dtype="bfloat16")
    export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", options), SilentProgress())
    result = run_chain(find_subject(tmp_path, model=str(sound / "model")), TOKENS, SilentProgress())
    assert result.passed, result.first_failure()


def _move_a_bias(model: ir.Model) -> None:
    value = next(value for name, value in model.graph.initializers.items() if name.endswith("layer_norm1.bias"))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() + np.float16(0.5), name=value.name)


def _forget_the_activation(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Gelu")
    assert node.inputs[0] is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])


def _read_the_next_row(model: ir.Model) -> None:
    ids, one = model.graph.inputs[0], ir.node("Constant", [], {"value_int": 1})
    other = ir.node("Add", [ids, one.outputs[0]])
    gather = next(node for node in model.graph if node.op_type == "Gather")
    gather.replace_input_with(1, other.outputs[0])
    model.graph.insert_before(gather, [one, other])


@pytest.mark.parametrize(
    ("file", "change", "place", "says"),
    [
        (VISION_FILE, _move_a_bias, "layer_norm1.bias", "elements differ"),
        (VISION_FILE, _forget_the_activation, VISION, "relative error"),
        (EMBEDDING_FILE, _read_the_next_row, EMBEDDING, "relative error"),
        (MODEL_FILE, tiny_builds.see_the_next_token, "language_model.model.layers.0", "relative error"),
    ],
    ids=["a weight of the tower", "the projector", "the embedding", "the decoder"],
)
def test_the_first_graph_that_differs_is_named(
    file: str, change: Callable[[ir.Model], None], place: str, says: str, broken: Path
) -> None:
    _edit(broken / "onnx" / file, change)
    failure = _check(broken).first_failure()
    assert failure is not None
    assert failure.stage == ONNX
    assert failure.place.endswith(place)
    assert says in failure.message


def test_a_tower_that_is_not_the_originals_is_found_in_the_checkpoint(broken: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(name for name in tensors if name.endswith("pre_layrnorm.weight"))
        tensors[name] = tensors[name] * 2

    edit_checkpoint(broken, change)
    result = _check(broken)
    failure = result.first_failure()
    assert failure is not None
    assert failure.place.endswith("pre_layrnorm.weight")


def _shuffle_otherwise(model: ir.Model) -> None:
    *_, last = (
        node for node in model.graph if node.op_type == "Transpose" and len(node.attributes["perm"].as_ints()) == 4
    )
    last.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])


def test_patches_that_are_merged_otherwise_are_found(tmp_path: Path) -> None:
    export_smolvlm(tmp_path)
    _edit(tmp_path / "onnx" / VISION_FILE, _shuffle_otherwise)
    failure = _check(tmp_path).first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ONNX, VISION)


def test_a_fault_in_a_block_is_cut_out_of_a_decoder_of_embeddings(broken: Path, tmp_path: Path) -> None:
    _edit(broken / "onnx" / MODEL_FILE, tiny_builds.see_the_next_token)
    subject = find_subject(broken, model=str(broken / "model"))
    result = run_chain(subject, TOKENS, SilentProgress())
    cut = bisect(subject, result, tmp_path / "piece")
    assert cut is not None
    assert "layers.0" in cut.node


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with codes of what it sees with."""
    folder = tmp_path_factory.mktemp("coded")
    save_llava(folder / "model")
    quantize_sight(folder / "model", folder / "checkpoint")
    export_stage(ExportRequest(folder / "checkpoint", folder / "onnx", ExportOptions(max_seq_len=96)), SilentProgress())
    return folder


def test_a_sound_build_with_codes_of_what_it_sees_with_passes(coded: Path) -> None:
    result = _check(coded)
    assert result.passed, result.first_failure()
    (seen,) = (
        place for stage in result.stages if stage.stage == ONNX for place in stage.places if place.name == VISION
    )
    assert 0 < seen.error < seen.limit


@pytest.mark.parametrize(
    ("name", "kind", "change", "says"),
    [
        ("vision_tower.encoder.layers.1.mlp.fc2", "codes", one_step_off_, ": 1 of .* differ; .* code minus zero point"),
        ("multi_modal_projector.linear_2", "codes", one_step_off_, ": 1 of .* differ; .* code minus zero point"),
        ("multi_modal_projector.linear_1", "scales", lambda value: value[::-1], r"\.scales: .* elements differ"),
    ],
    ids=["a code of the tower", "a code of the projector", "scales"],
)
def test_what_differs_in_a_coded_linear_of_the_vision_graph_is_named(
    name: str,
    kind: str,
    change: Callable[[Any], Any],
    says: str,
    coded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outputs alone do not show it: one code changes them by less than fp16 may."""
    broken = Path(shutil.copytree(coded, tmp_path / "broken"))
    edit_weights(broken, f"{name}.{kind}", change, VISION_FILE)
    with pytest.raises(SystemExit) as ended:
        app(["check", str(broken), "--model", str(coded / "model"), "--tokens", "40", "-o", str(tmp_path / "check")])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert re.search(re.escape(name) + says, printed), printed
    assert printed.splitlines()[-1].startswith(f"failed first at stage {ONNX}, {name}"), printed


def test_codes_that_are_not_of_the_originals_tower_are_found_in_the_checkpoint(coded: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(coded, tmp_path / "broken"))
    name = QuantizedCheckpoint.open(broken / "checkpoint").vision_linears[-1]

    def change(tensors: dict[str, Any]) -> None:
        codes = next(value for key, value in tensors.items() if key.startswith(f"{name}.") and value.dtype.kind in "iu")
        codes[0] ^= 1

    edit_checkpoint(broken, change)
    failure = _check(broken).first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (QUANTIZED, name)
