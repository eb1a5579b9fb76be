"""A head is rounded, judged by its output, and kept in one copy if it is the embedding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import WIDE, nearest, quantize_source, quantized_llama
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization import head as head_module
from awq2trt.quantization.grids import GridOptions
from awq2trt.quantization.head import CalibratedHead, quantize_head
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme

INT4 = QuantScheme(4, 32, True)


def _weight(rows: int = 90, columns: int = 72) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float16)


def _text(columns: int = 72, rows: int = 90) -> CalibratedHead:
    generator = torch.Generator().manual_seed(1)
    # Inputs of very different sizes: those that matter most determine the grids.
    scale = torch.logspace(-2, 0.5, columns)
    hidden = torch.randn(3, 40, columns, generator=generator) * scale
    return CalibratedHead(hidden, torch.randint(0, rows, (3, 40), generator=generator))


def test_without_text_every_code_is_the_nearest() -> None:
    linear, report = quantize_head(_weight(), INT4, None, None, where="lm_head")
    expected = nearest(torch.from_numpy(_weight()).float(), INT4)
    np.testing.assert_array_equal(linear.codes, expected.codes)
    np.testing.assert_array_equal(linear.scales, expected.scales)
    assert (report.scheme, report.grid, report.kl, report.tokens) == ("int4-g32-asym", "whole range", {}, 0)


def test_the_grid_that_moves_the_distribution_least_is_taken() -> None:
    weight, text = _weight(), _text()
    linear, report = quantize_head(weight, INT4, text, GridOptions(), where="lm_head")
    hidden, targets = text.hidden[:, :-1].flatten(0, 1).double(), text.tokens[:, 1:].flatten()
    plain = (hidden @ torch.from_numpy(weight).double().T).log_softmax(-1)
    rounded = (hidden @ torch.from_numpy(linear.dequantize()).double().T).log_softmax(-1)
    kl = float((plain.exp() * (plain - rounded)).sum(-1).mean())
    assert report.grid == "searched"
    assert report.kl["searched"] < 0.7 * report.kl["whole range"]
    assert report.kl["searched"] == pytest.approx(kl, rel=1e-3)
    assert report.tokens == 3 * 39
    for value, log_probability in ((report.perplexity, plain), (report.rounded_perplexity, rounded)):
        nll = -float(log_probability.gather(1, targets[:, None]).mean())
        assert value == pytest.approx(math.exp(nll), rel=1e-3)


def test_pieces_of_rows_make_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, of_whole = quantize_head(_weight(), INT4, _text(), GridOptions(), where="lm_head")
    monkeypatch.setattr(head_module, "PIECE_ROWS", 32)  # 90 = 2 x 32 + 26
    pieces, of_pieces = quantize_head(_weight(), INT4, _text(), GridOptions(), where="lm_head")
    np.testing.assert_array_equal(pieces.codes, whole.codes)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    assert of_pieces.kl == pytest.approx(of_whole.kl, rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True], ids=["zeros", "symmetric"])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize(("head", "limit"), [("int8", 0.02), ("int4", 0.2)])
def test_what_was_quantized_is_what_is_read_again(
    head: str, limit: float, tied: bool, symmetric: bool, tmp_path: Path
) -> None:
    overrides = {**WIDE, "tie_word_embeddings": tied}
    checkpoint = quantized_llama(tmp_path, overrides, head=head, symmetric=symmetric)
    source = SafetensorsSource.open(tmp_path / "model")
    scheme = QuantizeOptions(head=head, symmetric=symmetric).head_scheme  # type: ignore[arg-type]
    assert checkpoint.head_scheme == scheme
    assert scheme is not None
    name = checkpoint.spec.stored_head
    original = source.tensor(f"{name}.weight").astype(np.float32)
    expected = nearest(torch.from_numpy(original), scheme)
    np.testing.assert_array_equal(checkpoint.linear(name).codes, expected.codes)
    np.testing.assert_array_equal(checkpoint.tensor(f"{name}.weight"), expected.dequantize())
    assert not checkpoint.has(f"{name}.weight")
    assert checkpoint.has("model.embed_tokens.weight") != tied
    hidden = run_model(source, torch.arange(20)[None])
    logits = [Ends(model).logits(hidden) for model in (source, checkpoint)]
    assert (logits[1] - logits[0]).norm() / logits[0].norm() < limit


def test_layouts_of_a_quantized_head(tmp_path: Path) -> None:
    """Other tools read a separate head, and refuse a checkpoint whose embedding is quantized, too."""
    for tied, layout in ((False, "pack-quantized"), (True, "awq2trt")):
        folder = tmp_path / layout
        checkpoint = quantized_llama(folder, {**WIDE, "hidden_size": 128, "tie_word_embeddings": tied}, head="int8")
        assert checkpoint.format.layout.name == layout
        assert checkpoint.scheme == QuantScheme(4, 32, True)
    assert quantized_llama(tmp_path / "plain", WIDE, head="fp16").format.layout.name == "gemm"


def test_a_run_that_was_killed_in_the_head_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Any text is a text of a byte-level tokenizer, and this has more bytes than windows need. " * 8)
    options: dict[str, Any] = {"group_size": 32, "samples": 2, "seqlen": 64, "calib": str(text), "head": "int4"}
    source = SafetensorsSource.open(save_llama(tmp_path / "model", **WIDE, tie_word_embeddings=True))
    (tmp_path / "once").mkdir()
    whole = quantize_source(source, tmp_path / "once", **options)
    for name in ("files", "scratch"):
        (tmp_path / name).mkdir()

    def prepare() -> QuantizeJob:
        return QuantizeJob.prepare(
            source,
            QuantizeOptions(**options),
            files=tmp_path / "files",
            scratch=tmp_path / "scratch",
            progress=SilentProgress(),
        )

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("awq2trt.quantization.job.quantize_head", _interrupt)
        prepare().run()
    monkeypatch.setattr("awq2trt.quantization.chain.quantize_block", _interrupt)  # blocks are done
    result = prepare().run()
    assert result.head is not None
    assert result.head.kl["searched"] > 0
    again = QuantizedCheckpoint.open(tmp_path / "files")
    np.testing.assert_array_equal(again.linear("model.embed_tokens").codes, whole.linear("model.embed_tokens").codes)
    report = json.loads((tmp_path / "files" / "quantization.json").read_text())["lm_head"]
    assert report["grid"] == result.head.grid
    assert report["kl"] == result.head.kl


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
