"""`awq2trt eval`: perplexities of an original, its checkpoint and its ONNX model."""

from __future__ import annotations

import math
from pathlib import Path

from tiny_builds import TEXT

from awq2trt.evaluation.perplexity import Perplexity
from awq2trt.evaluation.results import EvalRequest, TextWindows
from awq2trt.progress import SilentProgress
from awq2trt.stages.evaluate import eval_stage


def test_eval_compares_original_checkpoint_and_onnx(model: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    models = (str(model), str(made / "checkpoint"), str(made / "onnx"))
    results = list(eval_stage(EvalRequest(models, TextWindows(str(tmp_path / "text.txt"), 2, 32)), SilentProgress()))
    assert [(result.executor, result.scheme) for result in results] == [
        ("PyTorch", None),
        ("PyTorch", "int4-g32-asym"),
        ("ONNX Runtime", "int4-g32-asym"),
    ]
    original, quantized, onnx = (result.measured for result in results)
    assert isinstance(original, Perplexity)
    assert isinstance(quantized, Perplexity)
    assert isinstance(onnx, Perplexity)
    assert (original.windows, original.seqlen) == (2, 32)
    assert not math.isclose(original.value, quantized.value, rel_tol=1e-4)
    assert math.isclose(quantized.value, onnx.value, rel_tol=0.02)  # int8 activations of ONNX Runtime's kernel
