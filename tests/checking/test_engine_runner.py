"""The stage `engine` of `check`: ONNX Runtime stands in for the GPU, with an engine's inputs and outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import stand_in_engine
import tiny_models
from stand_in_engine import (
    RTX_CARD,
    TOKENS,
    ForgetfulSession,
    OnnxSession,
    engine_in,
    with_a_nan,
)

from awq2trt.checking import subject as subject_module
from awq2trt.checking.chain import run_chain
from awq2trt.checking.engine_runner import EngineRunner
from awq2trt.checking.outcome import CheckOutcome
from awq2trt.checking.results import ENGINE, ONNX, QUANTIZED, CheckResult
from awq2trt.checking.runners import calls_of
from awq2trt.checking.subject import find_subject
from awq2trt.errors import ToolError
from awq2trt.io_contract import LOGITS
from awq2trt.progress import SilentProgress
from awq2trt.report.lines import check_lines


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_engine.save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def build(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_engine.make_build(model, tmp_path_factory.mktemp("build"))


@pytest.fixture
def other_model(build: Path, tmp_path: Path) -> Path:
    """A copy of the exported model, to be damaged: what a wrong engine computes."""
    return Path(shutil.copytree(build / "onnx", tmp_path / "other"))


@pytest.fixture
def rtx_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this machine seem to have such a card, and polygraphy to have all that it needs."""
    monkeypatch.setattr(subject_module, "this_machine", lambda: RTX_CARD)
    monkeypatch.setattr(subject_module, "unmet_needs", lambda flavour: None)


def _check(build: Path, model: Path, open_engine: Callable[[], Any]) -> CheckResult:
    subject = find_subject(build, model=str(model))
    assert ENGINE not in subject.missing
    return run_chain(replace(subject, open_engine=open_engine), TOKENS, SilentProgress())


@pytest.mark.usefixtures("rtx_card")
@pytest.mark.parametrize("in_place", [True, False])
def test_a_sound_engine_passes(build: Path, model: Path, in_place: bool) -> None:
    session = OnnxSession(build / "onnx", in_place=in_place)
    result = _check(build, model, lambda: session)
    assert result.passed, result.first_failure()
    engine = result.stages[-1]
    assert (engine.stage, engine.against) == (ENGINE, QUANTIZED)
    assert [place.name for place in engine.places] == ["logits"]
    assert engine.places[0].difference.positions == len(TOKENS)
    assert engine.agreement is not None
    assert engine.agreement.top1 > 0.9
    lines = list(check_lines(CheckOutcome(result, ())))
    assert any(line.startswith("engine     quantized") for line in lines)
    assert lines[-1] == "passed: original, folded, quantized, onnx, runtime, engine"
    # First the tokens one by one, then all at once in an empty cache, then those at the end one by one.
    prefill, decode = 0, 1
    assert session.calls == [
        *((decode, position, 1) for position in range(15)),
        (prefill, 0, 16),
        *((decode, position, 1) for position in range(16, 20)),
    ]
    assert session.closed


@pytest.mark.usefixtures("rtx_card")
def test_a_wrong_engine_is_named_although_its_onnx_model_is_right(build: Path, model: Path, other_model: Path) -> None:
    _double_scales(other_model)
    result = _check(build, model, lambda: OnnxSession(other_model))
    failure = result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "logits")
    assert all(stage.passed for stage in result.stages if stage.stage != ENGINE)
    assert next(stage for stage in result.stages if stage.stage == ONNX).places


def _double_scales(onnx: Path) -> None:
    tensor = ir.load(onnx / "model.onnx").graph.initializers["model.layers.2.mlp.up_proj.scales"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    with (onnx / "model.onnx.data").open("r+b") as file:
        file.seek(tensor.offset)
        file.write((tensor.numpy() * np.float16(2)).tobytes())


@pytest.mark.usefixtures("rtx_card")
@pytest.mark.parametrize(
    "session",
    [
        pytest.param(partial(ForgetfulSession, in_place=False), id="a cache that is not carried over"),
        pytest.param(partial(OnnxSession, spoil=with_a_nan), id="nan"),
        pytest.param(partial(OnnxSession, spoil=lambda logits: logits[:, :, :-1]), id="too few logits"),
        pytest.param(partial(OnnxSession, spoil=lambda logits: np.roll(logits, 1, axis=-1)), id="logits moved"),
    ],
)
def test_faults_are_named(build: Path, model: Path, session: Callable[[Path], OnnxSession]) -> None:
    failure = _check(build, model, lambda: session(build / "onnx")).first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "logits")


@pytest.mark.usefixtures("rtx_card")
def test_an_engine_that_does_not_load_fails_and_the_rest_is_still_told(build: Path, model: Path) -> None:
    def refuse() -> OnnxSession:
        raise ToolError("tensorrt_rtx cannot run the engine: magic tag does not match", where="model.engine")

    result = _check(build, model, refuse)
    failure = result.first_failure()
    assert failure is not None
    assert (failure.stage, failure.place) == (ENGINE, "model.engine")
    assert "magic tag" in failure.message
    assert [stage.stage for stage in result.stages if stage.places][-1] == "runtime"
    lines = list(check_lines(CheckOutcome(result, ())))
    assert "  FAILED model.engine: tensorrt_rtx cannot run the engine: magic tag does not match" in lines


def test_without_a_gpu_the_table_says_what_is_needed(build: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_module, "this_machine", lambda: replace(RTX_CARD, gpu=None, capability=None))
    subject = find_subject(build, model=str(model))
    assert subject.missing[ENGINE] == (
        "not run: there is no NVIDIA GPU here, but the engine needs "
        "compute capability 8.6 or 8.9 or 12.0, TensorRT-RTX 1.7.1.116"
    )
    result = run_chain(subject, TOKENS, SilentProgress())
    assert result.passed
    assert any(
        line.startswith("engine     not run: there is no NVIDIA GPU") for line in check_lines(CheckOutcome(result, ()))
    )


def test_the_runner_gives_every_position(build: Path) -> None:
    engine = engine_in(build)
    with EngineRunner(lambda: OnnxSession(build / "onnx"), engine, ENGINE) as runner:
        shapes = [runner.infer(call)[LOGITS].shape for call in calls_of(TOKENS)]
    assert shapes == [(1, 16, tiny_models.VOCAB_SIZE)] + [(1, 1, tiny_models.VOCAB_SIZE)] * 4
