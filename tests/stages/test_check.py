"""`awq2trt check --golden`: a model's golden outputs in ONNX Runtime, and in its engine if that can be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in_engine
import tiny_models
from numpy.typing import NDArray
from stand_in_engine import (
    RTX_CARD,
    OnnxSession,
    with_a_nan,
)
from tiny_kits import RTN

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.checking import chain
from awq2trt.errors import ArtifactError, CheckpointError, UsageError
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.report.lines import golden_lines
from awq2trt.runtime import OrtBackend
from awq2trt.runtime.golden import compare_golden
from awq2trt.runtime.trt import engine as engine_module
from awq2trt.runtime.trt.session import TrtSession
from awq2trt.stages.check import CheckRequest, check_stage, golden_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose engine is ONNX Runtime."""
    directory = tmp_path_factory.mktemp("build")
    return stand_in_engine.make_build(stand_in_engine.save_model(directory / "model"), directory)


def test_a_model_keeps_its_golden_outputs(made: Path) -> None:
    assert {"golden.json", "golden.npz"} <= set(Artifact.open(made / "onnx").manifest.files)
    outcome = golden_stage(made / "onnx")
    assert [result.name for result in outcome.results] == ["prefill", "decode-1", "decode-2", "first"]
    assert outcome.passed
    assert (outcome.engine, outcome.engine_skipped) == ((), None)


def test_a_link_where_polygraphys_files_go_is_refused_before_anything_runs(made: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bisect").symlink_to(tmp_path / "precious")
    request = CheckRequest(made / "onnx", checkpoint=made / "checkpoint", output=tmp_path / "out", bisect=True)
    with pytest.raises(ArtifactError, match="out/bisect: expected a folder or a file of our own, got a symbolic link"):
        check_stage(request, SilentProgress())
    assert not list((tmp_path / "precious").iterdir())


def test_a_folder_for_polygraphys_files_that_cannot_be_is_refused_before_anything_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "run_chain", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "below"):
        request = CheckRequest(made / "onnx", checkpoint=made / "checkpoint", output=output)
        with pytest.raises(UsageError, match=rf"{output}: {tmp_path}/taken is no folder.*-o"):
            check_stage(request, SilentProgress())


def test_an_original_that_lacks_a_tensor_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.save_llama(tmp_path / "model")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", RTN), SilentProgress())
    monkeypatch.setattr(chain, "run_chain", lambda *_: pytest.fail("the work has begun"))
    monkeypatch.setattr(SafetensorsSource, "require_tensors", _lacks)
    with pytest.raises(CheckpointError, match="no such tensor"):
        check_stage(CheckRequest(tmp_path / "checkpoint", model=str(model)), SilentProgress())


def _lacks(source: SafetensorsSource) -> None:
    raise CheckpointError("the checkpoint has no such tensor.", where=source.name)


def test_another_models_golden_outputs_fail(made: Path, tmp_path: Path) -> None:
    """The graph has other weights than the checkpoint, as after a mistake of the exporter."""
    other = tiny_models.save_llama(tmp_path / "model", rms_norm_eps=1e-1)
    quantize_stage(QuantizeRequest(str(other), tmp_path / "checkpoint", RTN), SilentProgress())
    export_stage(
        ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=64)), SilentProgress()
    )
    results = compare_golden(OrtBackend.load(tmp_path / "onnx"), read_golden(made / "onnx"))
    assert not any(result.passed for result in results)


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
        assert last == "golden outputs: passed in ONNX Runtime, CPU and the engine"
    assert session.closed


def test_golden_outputs_without_a_gpu_say_why(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "this_machine", lambda: replace(RTX_CARD, gpu=None))
    outcome = golden_stage(build / "rtx")
    assert outcome.passed
    lines = list(golden_lines(outcome))
    assert lines[-2].startswith(
        "the engine was not run: there is no NVIDIA GPU here, but the engine needs compute capability 8.6"
    )
    assert lines[-1] == "golden outputs: passed in ONNX Runtime, CPU"
