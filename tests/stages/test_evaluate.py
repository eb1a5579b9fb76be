"""`awq2trt eval`: perplexities of an original, its checkpoint and its ONNX model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_builds import AWQ, TEXT
from tiny_kits import RTN

from awq2trt.errors import UsageError
from awq2trt.evaluation.perplexity import Perplexity
from awq2trt.evaluation.results import EvalRequest, TextWindows
from awq2trt.progress import SilentProgress
from awq2trt.stages.check import CheckRequest, check_stage
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def test_eval_compares_original_checkpoint_and_onnx(model: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    models = (str(model), str(made / "checkpoint"), str(made / "onnx"))
    results = list(eval_stage(EvalRequest(models, TextWindows(str(tmp_path / "text.txt"), 2, 32)), SilentProgress()))
    assert [(result.executor, result.scheme) for result in results] == [
        ("PyTorch", None),
        ("PyTorch", "int4-g32-asym"),
        ("ONNX Runtime, CPU", "int4-g32-asym"),
    ]
    original, quantized, onnx = (result.measured for result in results)
    assert isinstance(original, Perplexity)
    assert isinstance(quantized, Perplexity)
    assert isinstance(onnx, Perplexity)
    assert (original.windows, original.seqlen) == (2, 32)
    assert not math.isclose(original.value, quantized.value, rel_tol=1e-4)
    assert math.isclose(quantized.value, onnx.value, rel_tol=0.02)  # int8 activations of ONNX Runtime's kernel


def test_texts_longer_than_the_model_has_positions_are_refused(model: Path, made: Path, tmp_path: Path) -> None:
    text = str(made / "calibration.txt")
    (tmp_path / "long.txt").write_text(TEXT * 8)
    long = AWQ.model_copy(update={"calib": text, "seqlen": 257})
    with pytest.raises(UsageError, match=r"--seqlen: expected at most 256 tokens.*got 257.*--seqlen 256 or less"):
        quantize_stage(QuantizeRequest(str(model), tmp_path / "out", long), SilentProgress())
    assert not (tmp_path / "out" / "manifest.json").exists()
    quantize_stage(
        QuantizeRequest(str(model), tmp_path / "rtn", RTN.model_copy(update={"seqlen": 257})), SilentProgress()
    )
    request = EvalRequest((str(model),), TextWindows(str(tmp_path / "long.txt"), 1, 257))
    for name, most in ((model, 256), (made / "checkpoint", 256), (made / "onnx", 64)):
        with pytest.raises(UsageError, match=rf"--seqlen: expected at most {most} tokens.*got 257"):
            list(eval_stage(replace(request, models=(str(name),)), SilentProgress()))
    with pytest.raises(UsageError, match=r"--tokens: expected at most 256 tokens.*got 257"):
        check_stage(CheckRequest(made, model=str(model), tokens=257), SilentProgress())


def test_a_text_that_is_not_there_is_that_of_eval(made: Path, tmp_path: Path) -> None:
    request = EvalRequest((str(made / "onnx"),), TextWindows(str(tmp_path / "none.txt"), 1, 16), "cpu")
    with pytest.raises(UsageError, match="the path given as --text"):
        list(eval_stage(request, SilentProgress()))
