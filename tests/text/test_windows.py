"""Calibration windows: spread over the text that the options name, after a BOS if a family needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_family, save_llama, save_tokenizer

from awq2trt.errors import CalibrationError
from awq2trt.models.families import family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import encode, first_tokens, load_tokenizer
from awq2trt.text.windows import calibration_tokens, text_windows


@pytest.fixture
def tokenizer_directory(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


def test_windows_are_spread_evenly_and_do_not_overlap(tokenizer_directory: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_directory)
    text = "".join(chr(97 + i % 26) for i in range(1000))
    windows = text_windows(tokenizer, text, samples=4, seqlen=100, where="text")
    starts = [0, 300, 600, 900]
    assert [tokenizer.decode(window) for window in windows] == [text[start : start + 100] for start in starts]


def test_of_a_long_text_no_more_is_encoded_than_the_windows_need(
    tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encoded = load_tokenizer(tokenizer_directory), []

    def count(tokenizer: Any, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr("awq2trt.text.tokenizer.encode", count)
    text = "".join(f" word{index}" for index in range(500_000))
    windows = text_windows(tokenizer, text, samples=4, seqlen=100, where="text")
    assert windows.shape == (4, 100)
    assert sum(encoded) < 20_000
    found = [str(tokenizer.decode(window)) for window in windows]
    places = [text.index(piece) for piece in found]
    assert all(piece.startswith(" word") for piece in found)
    assert places == sorted(places)
    assert places[0] < 300
    assert places[-1] > len(text) * 0.99
    assert max(np.diff(places)) - min(np.diff(places)) < 300


def test_windows_of_a_long_text_without_spaces_are_found(tokenizer_directory: Path) -> None:
    windows = text_windows(load_tokenizer(tokenizer_directory), "x" * (3 << 20), samples=2, seqlen=100, where="text")
    assert windows.shape == (2, 100)


def test_the_first_tokens_are_those_of_the_whole_text(tokenizer_directory: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_directory)
    text = " ".join(str(index) for index in range(20_000))
    assert first_tokens(tokenizer, text, 500) == encode(tokenizer, text)[:500]
    assert first_tokens(tokenizer, "abc", 500) == encode(tokenizer, "abc")
    assert len(first_tokens(tokenizer, "\U0001f600" * 3000, 9000)) == 9000


@pytest.mark.parametrize(("length", "windows"), [(100, 1), (199, 1), (250, 2), (800, 8), (5000, 8)])
def test_short_texts_give_fewer_windows(length: int, windows: int, tokenizer_directory: Path) -> None:
    found = text_windows(load_tokenizer(tokenizer_directory), "x" * length, samples=8, seqlen=100, where="text")
    assert found.shape == (windows, 100)
    assert found.dtype == torch.int64


def test_a_text_shorter_than_a_window_is_refused_with_a_length_that_fits(tokenizer_directory: Path) -> None:
    with pytest.raises(CalibrationError, match=r"window of 100 tokens, got a text of 42.*--seqlen 42"):
        text_windows(load_tokenizer(tokenizer_directory), "x" * 42, samples=8, seqlen=100, where="text")
    with pytest.raises(CalibrationError, match=r"got a text of 0\. Fix: name a longer text\.$"):
        text_windows(load_tokenizer(tokenizer_directory), "", samples=8, seqlen=100, where="text")


def test_options_choose_the_text(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "abc" * 100}))
    options = QuantizeOptions(calib=str(path), samples=2, seqlen=30)
    assert calibration_tokens(source, tmp_path, options, SilentProgress()).shape == (2, 30)
    with torch.inference_mode():
        options = QuantizeOptions(calib="self", samples=2, seqlen=10)
        assert calibration_tokens(source, tmp_path, options, SilentProgress()).shape == (2, 10)


def test_a_family_that_needs_bos_gets_it_before_every_window(tmp_path: Path) -> None:
    source = open_source(str(save_family(tmp_path, {**family_named("gemma3").example})))
    written = self_written(source, range(256), samples=3, seqlen=12, seed=1, progress=SilentProgress())
    assert written.shape == (3, 12)
    assert (written[:, 0] == 256).all()
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    options = QuantizeOptions(calib=str(tmp_path / "text.txt"), samples=3, seqlen=12)
    windows = calibration_tokens(source, tmp_path, options, SilentProgress())
    assert (windows[:, 0] == 256).all()
    assert (windows[:, 1:] < 256).all()
