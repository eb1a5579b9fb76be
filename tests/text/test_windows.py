"""Calibration windows from files, data sets and the model itself."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_family, save_llama, save_tokenizer

from awq2trt.errors import CalibrationError, CheckpointError, ToolError, UsageError
from awq2trt.models.families import family_named
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.text.read import read_text
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import load_tokenizer
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


def test_jsonl_documents_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one", "url": "x"}\n\n{"text": "two"}\n')
    assert read_text(str(path), characters=10) == "one\n\ntwo"


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', '{"text": 3}', "[]"])
def test_a_bad_jsonl_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(CalibrationError, match=r"text\.jsonl, line 2"):
        read_text(str(path), characters=10)


def test_missing_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_text(str(tmp_path / "missing.txt"), characters=10)
    (tmp_path / "text.pdf").write_bytes(b"x")
    with pytest.raises(UsageError, match="jsonl"):
        read_text(str(tmp_path / "text.pdf"), characters=10)


def test_a_data_set_is_streamed_until_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    read: list[int] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        for index in range(1000):
            read.append(index)
            yield {"text": f"document {index}"}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    text = read_text("allenai/c4:en:validation", characters=25)
    assert asked == [("allenai/c4", "en", "validation", True)]
    assert text == "document 0\n\ndocument 1\n\ndocument 2"
    assert len(read) == 3


def test_a_data_set_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such dataset on the hub")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(CalibrationError, match="nobody/nothing"):
        read_text("nobody/nothing", characters=25)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ToolError, match="pip install datasets"):
        read_text("wikitext", characters=25)


def test_the_model_writes_the_same_text_for_the_same_seed(tmp_path: Path) -> None:
    source = SafetensorsSource(save_llama(tmp_path))
    with torch.inference_mode():
        first = self_written(source, samples=3, seqlen=24, seed=5, progress=SilentProgress())
        again = self_written(source, samples=3, seqlen=24, seed=5, progress=SilentProgress())
        other = self_written(source, samples=3, seqlen=24, seed=6, progress=SilentProgress())
    assert first.shape == (3, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({int(token) for token in first[:, 0]}) == 3


def test_the_text_is_drawn_from_the_model(tmp_path: Path) -> None:
    """The tokens right after the first are the ones transformers finds most likely."""
    from transformers import AutoModelForCausalLM

    source = SafetensorsSource(save_llama(tmp_path))
    with torch.inference_mode():
        written = self_written(source, samples=2, seqlen=6, seed=0, progress=SilentProgress())
        logits = AutoModelForCausalLM.from_pretrained(tmp_path)(written).logits
    assert torch.equal(logits[:, :4].argmax(-1), written[:, 1:5])


def test_a_model_that_does_not_fit_in_memory_does_not_write_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SafetensorsSource(save_llama(tmp_path))
    monkeypatch.setattr("awq2trt.text.self_written.available_bytes", lambda: 100_000)
    with pytest.raises(CalibrationError, match=r"GiB are available.*--calib"):
        self_written(source, samples=3, seqlen=24, seed=5, progress=SilentProgress())


def test_options_choose_the_text(tmp_path: Path) -> None:
    source = SafetensorsSource(save_llama(tmp_path))
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "abc" * 100}))
    options = QuantizeOptions(calib=str(path), samples=2, seqlen=30)
    assert calibration_tokens(source, tmp_path, options, SilentProgress()).shape == (2, 30)
    with torch.inference_mode():
        options = QuantizeOptions(calib="self", samples=2, seqlen=10)
        assert calibration_tokens(source, tmp_path, options, SilentProgress()).shape == (2, 10)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(tmp_path)


def test_a_family_that_needs_bos_gets_it_before_every_window(tmp_path: Path) -> None:
    source = open_source(str(save_family(tmp_path, {**family_named("gemma3").example})))
    written = self_written(source, samples=3, seqlen=12, seed=1, progress=SilentProgress())
    assert written.shape == (3, 12)
    assert (written[:, 0] == 256).all()
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    options = QuantizeOptions(calib=str(tmp_path / "text.txt"), samples=3, seqlen=12)
    windows = calibration_tokens(source, tmp_path, options, SilentProgress())
    assert (windows[:, 0] == 256).all()
    assert (windows[:, 1:] < 256).all()
