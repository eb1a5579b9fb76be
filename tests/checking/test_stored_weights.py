"""Weights compared with the stage before: each planted fault is found, with its stage, its block and its tensor."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plant_faults
import pytest
import tiny_builds
import tiny_models
from numpy.typing import NDArray
from plant_faults import edit_checkpoint, edit_weights, nan_in_the_middle_

from awq2trt.checking.results import FOLDED, ONNX, QUANTIZED
from awq2trt.checking.stored_weights import check_weights
from awq2trt.checking.subject import find_subject
from awq2trt.models.families import family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.quantization import job
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def test_a_bfloat16_checkpoint_may_have_rounded_its_scales_last(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such is a model that leaves fp16's range late: its scales are rounded to 8 bits after the codes were chosen."""
    at_first_and_at_last = iter(["float16", "bfloat16"])
    monkeypatch.setattr(job, "storage_dtype", lambda _: next(at_first_and_at_last))
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", rtn), SilentProgress())

    def found() -> list[str]:
        weights = check_weights(find_subject(tmp_path / "checkpoint", model=str(model)), SilentProgress())
        return [finding.place for findings in weights.findings.values() for finding in findings]

    assert found() == []
    edit_checkpoint(tmp_path, tiny_builds.move_a_zero_point)
    assert found() == ["model.layers.2.mlp.gate_proj"]


@pytest.mark.parametrize(
    ("edit", "stage", "place", "says"),
    [
        (tiny_builds.double_a_scale, QUANTIZED, "model.layers.1", r"self_attn\.k_proj: .* in row 5, group 0"),
        (tiny_builds.move_a_zero_point, QUANTIZED, "model.layers.2", r"mlp\.gate_proj: .* in row 7, group 1"),
        (tiny_builds.swap_two_rows, QUANTIZED, "model.layers.0", r"mlp\.down_proj: .* in row 3"),
        (tiny_builds.swap_nibbles, QUANTIZED, "model.layers.2", r"self_attn\.q_proj: .* far from their weights"),
        (tiny_builds.drop_a_bias, QUANTIZED, "model.layers.1", r"v_proj: the bias is missing"),
        (
            tiny_builds.plant_a_nan,
            FOLDED,
            "model.layers.2",
            r"post_attention_layernorm\.weight: 1 of 48 weights are NaN",
        ),
        (tiny_builds.plant_a_nan_scale, QUANTIZED, "model.layers.1", r"up_proj: some scales are NaN"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_faults_in_the_checkpoint(
    broken: Path, model: Path, edit: Callable[[Any], None], stage: str, place: str, says: str
) -> None:
    edit_checkpoint(broken, edit)
    found = tiny_builds.first_failure(broken, model)
    assert found[:2] == (stage, place)
    assert re.search(says, found[2]), found[2]


def test_a_norm_that_was_not_folded(broken: Path, model: Path) -> None:
    original = open_source(str(model)).tensor("model.layers.1.input_layernorm.weight").astype(np.float16)
    edit_checkpoint(broken, lambda tensors: tensors.update({"model.layers.1.input_layernorm.weight": original}))
    stage, place, message = tiny_builds.first_failure(broken, model)
    assert (stage, place) == (FOLDED, "model.layers.1")
    assert "input_layernorm.weight" in message
    # The outputs tell it, too.
    folded = next(stage for stage in tiny_builds.check(broken, model).stages if stage.stage == FOLDED)
    assert [place.passed for place in folded.places] == [True, False, False, False]


def test_a_wrong_rotary_base_in_the_checkpoint(broken: Path, model: Path) -> None:
    plant_faults.change_the_rotary_base(broken)
    stage, place, message = tiny_builds.first_failure(broken, model)
    assert (stage, place) == (FOLDED, "config.json")
    assert "layers" in message


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("model.layers.2.input_layernorm.weight", nan_in_the_middle_, "model.layers.2"),
        ("model.layers.1.mlp.up_proj.scales", lambda value: value * np.float16(2), "model.layers.1"),
        ("rotary.cos", lambda value: np.roll(value, 1, axis=1), "rotary.cos"),
        ("model.embed_tokens.weight", lambda value: value[::-1], "model.embed_tokens.weight"),
    ],
)
def test_faults_in_the_weights_file(
    broken: Path, model: Path, name: str, change: Callable[[NDArray[Any]], NDArray[Any]], place: str
) -> None:
    edit_weights(broken, name, change)
    stage, found, message = tiny_builds.first_failure(broken, model)
    assert (stage, found) == (ONNX, place)
    assert name in message


def test_damaged_codes_of_fused_linears_are_quantizings(tmp_path: Path) -> None:
    """Phi-3 stores q, k and v as one linear, under a name that no part of it has."""
    model = tiny_models.save_family(tmp_path / "phi3", family_named("phi3").example)
    options = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", options), SilentProgress())

    def plant(tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if ".qkv_proj." in n and n.rpartition(".")[2] in ("scales", "weight_scale"))
        tensors[name] = np.full_like(tensors[name], np.nan)

    edit_checkpoint(tmp_path, plant)
    findings = check_weights(find_subject(tmp_path / "checkpoint", model=str(model)), SilentProgress()).findings
    assert not findings[FOLDED]
    assert any("qkv_proj" in finding.place for finding in findings[QUANTIZED])


@pytest.fixture(scope="module", params=["int8", "int4"])
def with_head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A build whose head and embedding are one quantized weight, and its original."""
    directory = tmp_path_factory.mktemp("with-head")
    model = tiny_builds.save_model(directory / "tiny-llama", tie_word_embeddings=True)
    return tiny_builds.make_build(model, directory / "build", directory / "text.txt", head=request.param), model


def test_a_quantized_head_passes(with_head: tuple[Path, Path]) -> None:
    assert tiny_builds.check(*with_head).passed


def _double_a_step(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.double_a_scale_(tensors, "model.embed_tokens", 200)


def _change_a_code(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["model.embed_tokens.codes"][1234] ^= 0x18  # a bit of each nibble


@pytest.mark.parametrize("plant", [_double_a_step, _change_a_code])
def test_faults_in_a_quantized_head(
    with_head: tuple[Path, Path], tmp_path: Path, plant: Callable[[dict[str, NDArray[Any]]], None]
) -> None:
    build, model = with_head
    broken = Path(shutil.copytree(build, tmp_path / "broken"))
    edit_checkpoint(broken, plant)
    stage, place, message = tiny_builds.first_failure(broken, model)
    assert (stage, place) == (QUANTIZED, "model.embed_tokens, rows from 0")
    assert "row" in message


def test_a_fault_in_the_exported_head(with_head: tuple[Path, Path], tmp_path: Path) -> None:
    build, model = with_head
    broken = Path(shutil.copytree(build, tmp_path / "broken"))
    edit_weights(broken, "model.embed_tokens.scales", lambda value: value[::-1])
    stage, place, _ = tiny_builds.first_failure(broken, model)
    assert (stage, place) == (ONNX, "model.embed_tokens.scales")
