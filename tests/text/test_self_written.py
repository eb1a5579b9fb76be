"""Text that a model writes for its own calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_llama

from awq2trt.errors import CalibrationError
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import load_tokenizer, ordinary_tokens


def test_the_model_writes_the_same_text_for_the_same_seed(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    with torch.inference_mode():
        first = self_written(source, range(256), samples=3, seqlen=24, seed=5, progress=SilentProgress())
        again = self_written(source, range(256), samples=3, seqlen=24, seed=5, progress=SilentProgress())
        other = self_written(source, range(256), samples=3, seqlen=24, seed=6, progress=SilentProgress())
    assert first.shape == (3, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({int(token) for token in first[:, 0]}) == 3


def test_a_long_window_has_several_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    monkeypatch.setattr("awq2trt.text.self_written.TEXT_TOKENS", 8)
    with torch.inference_mode():
        written = self_written(source, range(256), samples=3, seqlen=25, seed=5, progress=SilentProgress())
        alone = self_written(source, range(256), samples=9, seqlen=9, seed=5, progress=SilentProgress())
        few = self_written(source, range(5), samples=3, seqlen=25, seed=5, progress=SilentProgress())
    assert torch.equal(written, alone.view(3, 27)[:, :25])
    assert len({int(token) for token in written[:, ::9].flatten()}) == 9
    assert few.shape == (3, 25)  # no two texts begin alike, so each window is one


def test_the_text_is_drawn_from_the_model(tmp_path: Path) -> None:
    """The tokens right after the first are those that transformers finds most likely."""
    from transformers import AutoModelForCausalLM

    source = SafetensorsSource.open(save_llama(tmp_path))
    with torch.inference_mode():
        written = self_written(source, range(256), samples=2, seqlen=6, seed=0, progress=SilentProgress())
        logits = AutoModelForCausalLM.from_pretrained(tmp_path)(written).logits
    assert torch.equal(logits[:, :4].argmax(-1), written[:, 1:5])


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_the_model_writes_with_the_quickest_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, itemsize: int
) -> None:
    """All matrices, including the head's, have that type."""
    source, used = SafetensorsSource.open(save_llama(tmp_path)), set[int]()

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        used.add(weight.itemsize)
        return x @ weight.float().T

    monkeypatch.setattr("awq2trt.text.self_written.narrow_type", lambda: dtype)
    with torch.inference_mode():
        written = self_written(source, range(256), samples=4, seqlen=24, seed=5, progress=SilentProgress())
        monkeypatch.setattr("awq2trt.models.decoder.matmul_transposed", product)
        self_written(source, range(256), samples=4, seqlen=4, seed=5, progress=SilentProgress())
    assert written.shape == (4, 24)
    assert used == {itemsize}


def test_a_model_that_does_not_fit_in_memory_does_not_write_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    monkeypatch.setattr("awq2trt.text.self_written.available_bytes", lambda: 100_000)
    with pytest.raises(CalibrationError, match=r"GiB are available.*--calib"):
        self_written(source, range(256), samples=3, seqlen=24, seed=5, progress=SilentProgress())


def test_texts_begin_with_ordinary_tokens_alone(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    ordinary = ordinary_tokens(load_tokenizer(tmp_path))
    assert ordinary == {*range(256)}  # neither <|end|> and <|pad|>, nor rows of the embedding without a token
    with torch.inference_mode():
        written = self_written(source, ordinary, samples=256, seqlen=2, seed=0, progress=SilentProgress())
    assert sorted(written[:, 0].tolist()) == [*range(256)]
