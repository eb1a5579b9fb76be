"""Calibration windows: spread over the text that the options name, after a BOS where a family needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_family, save_llama, save_tokenizer

from awq2trt.errors import CalibrationError
from awq2trt.models.families import family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.text.read import CHARACTERS_PER_TOKEN
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import encode_start, load_tokenizer
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


@pytest.mark.parametrize(("length", "windows"), [(100, 1), (199, 1), (250, 2), (800, 8), (5000, 8)])
def test_short_texts_give_fewer_windows(length: int, windows: int, tokenizer_directory: Path) -> None:
    found = text_windows(load_tokenizer(tokenizer_directory), "x" * length, samples=8, seqlen=100, where="text")
    assert found.shape == (windows, 100)
    assert found.dtype == torch.int64


def test_a_text_shorter_than_a_window_is_refused_with_a_length_that_fits(tokenizer_directory: Path) -> None:
    with pytest.raises(CalibrationError, match=r"window of 100 tokens, got a text of 42.*--seqlen 42"):
        text_windows(load_tokenizer(tokenizer_directory), "x" * 42, samples=8, seqlen=100, where="text")


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


class _Counting:
    """A tokenizer that counts the characters it is asked for: a token for every two."""

    name_or_path = "a tokenizer that counts"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        self.seen += len(text)
        return {"input_ids": [ord(text[place]) for place in range(0, len(text), 2)]}


def test_of_a_long_text_only_what_the_windows_need_is_tokenized() -> None:
    text = "".join(chr(33 + place // 100_000) * 100_000 for place in range(0, 8_000_000, 100_000))
    tokenizer: Any = _Counting()
    windows = text_windows(tokenizer, text, samples=4, seqlen=100, where="text")
    assert tokenizer.seen == 4 * 100 * CHARACTERS_PER_TOKEN
    assert windows[:, 0].tolist() == [ord(text[start]) for start in (0, 2_666_133, 5_332_266, 7_998_399)]
    assert windows.shape == (4, 100)


def test_a_long_text_of_long_tokens_is_tokenized_whole() -> None:
    class Long(_Counting):
        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            self.seen += len(text)
            return {"input_ids": list(range(len(text) // 1000))}

    tokenizer: Any = Long()
    windows = text_windows(tokenizer, "a" * 5_000_000, samples=2, seqlen=100, where="text")
    assert windows[:, 0].tolist() == [0, 4900]


def test_of_a_text_that_is_evaluated_only_the_start_is_tokenized() -> None:
    tokenizer: Any = _Counting()
    text = "abcdef" * 100_000
    assert encode_start(tokenizer, text, 100) == [ord(character) for character in text[:200:2]]
    assert tokenizer.seen == 100 * CHARACTERS_PER_TOKEN
    assert len(encode_start(tokenizer, "abcd", 100)) == 2
