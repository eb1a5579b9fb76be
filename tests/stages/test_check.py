"""`awq2trt check --golden`: a model's golden outputs in ONNX Runtime, and in its engine where that can be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in_engine
from numpy.typing import NDArray
from stand_in_engine import (
    RTX_CARD,
    OnnxSession,
    with_a_nan,
)

from awq2trt.report.lines import golden_lines
from awq2trt.runtime.trt import engine as engine_module
from awq2trt.runtime.trt.session import TrtSession
from awq2trt.stages.check import golden_stage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_engine.save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def build(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_engine.make_build(model, tmp_path_factory.mktemp("build"))


@pytest.mark.parametrize("spoil", [None, with_a_nan])
def test_an_engine_answers_the_golden_inputs(
    build: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[NDArray[Any]], NDArray[Any]] | None
) -> None:
    session = OnnxSession(build / "onnx", spoil=spoil)
    monkeypatch.setattr("awq2trt.stages.check._why_no_engine", lambda engine: None)
    monkeypatch.setattr(TrtSession, "open", lambda engine: session)
    outcome = golden_stage(build / "rtx")
    assert [result.passed for result in outcome.engine] == [spoil is None] * 4
    assert outcome.passed == (spoil is None)
    last = list(golden_lines(outcome))[-1]
    if spoil:
        assert last.startswith("failed: prefill in the engine, decode-1 in the engine")
    else:
        assert last == "golden outputs: passed in ONNX Runtime on the CPU and the engine"
    assert session.closed


def test_golden_outputs_without_a_gpu_say_why(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "this_machine", lambda: replace(RTX_CARD, gpu=None))
    outcome = golden_stage(build / "rtx")
    assert outcome.passed
    lines = list(golden_lines(outcome))
    assert lines[-2].startswith("the engine was not run: no NVIDIA GPU here, the engine needs compute capability 8.6")
    assert lines[-1] == "golden outputs: passed in ONNX Runtime on the CPU"
