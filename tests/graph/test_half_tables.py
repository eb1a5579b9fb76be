"""Embeddings and heads in half precision: the scores are those of fp32, and ONNX Runtime does not widen them itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_checkpoints import RandomCheckpoint

from awq2trt.graph import half_tables, ort_lowering
from awq2trt.graph.provider_file import Lowering, write_lowered
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.runtime import OrtBackend

TOKENS = [5, 17, 80, 3, 99, 42]
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def _exported(directory: Path, *, tied: bool, dtype: str = "float16") -> Path:
    directory.mkdir()
    export_onnx(RandomCheckpoint(tie_word_embeddings=tied, torch_dtype=dtype), directory)
    return directory


@DTYPES
@TIED
@pytest.mark.parametrize("rows", [7, 50, 10**6], ids=["many-pieces", "few-pieces", "one-piece"])
def test_scores_are_those_of_a_head_in_fp32(
    rows: int, tied: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = _exported(tmp_path / "onnx", tied=tied, dtype=dtype)
    hidden = RandomCheckpoint().spec.hidden_size
    monkeypatch.setattr(half_tables, "PIECE_BYTES", 4 * hidden * rows)
    got = _scores(exported)
    with monkeypatch.context() as patch:
        patch.setattr(ort_lowering, "keep_half_", lambda _: [])
        expected = _scores(exported)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def _scores(exported: Path) -> NDArray[np.float32]:
    return np.concatenate(list(OrtBackend.load(exported, all_logits=True).logits(TOKENS)))


@DTYPES
@TIED
def test_onnx_runtime_does_not_widen_them_when_it_loads_the_model(tied: bool, dtype: str, tmp_path: Path) -> None:
    exported, directory = _exported(tmp_path / "onnx", tied=tied, dtype=dtype), tmp_path / "cpu"
    directory.mkdir()
    write_lowered(exported, Lowering.CPU, directory, SilentProgress())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    spec = RandomCheckpoint().spec
    smallest = spec.vocab_size * spec.hidden_size
    widened = [
        name
        for name, value in ir.load(tmp_path / "optimized.onnx").graph.initializers.items()
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None and value.const_value.size >= smallest
    ]
    assert not widened


@TIED
def test_the_file_is_little_larger_than_the_exported_one(tied: bool, tmp_path: Path) -> None:
    exported, directory = _exported(tmp_path / "onnx", tied=tied), tmp_path / "cpu"
    directory.mkdir()
    write_lowered(exported, Lowering.CPU, directory, SilentProgress())
    model, spec = ir.load(directory / MODEL_FILE), RandomCheckpoint().spec
    names = {"model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))}
    for name in names:
        assert model.graph.initializers[name].dtype is ir.DataType.FLOAT16
    tables = 2 * len(names) * spec.vocab_size * spec.hidden_size
    grown = (directory / WEIGHTS_FILE).stat().st_size - (exported / WEIGHTS_FILE).stat().st_size
    assert grown < tables / 2
