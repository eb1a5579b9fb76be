"""Golden outputs: what is written, what transformers says of it, what a wrong model gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from awq2trt.artifact.golden import (
    ARRAYS_FILE,
    DESCRIPTION_FILE,
    Golden,
    GoldenCall,
    read_golden,
    relative_error,
    write_golden,
)
from awq2trt.checking.golden import PREFILL_TOKENS, TEXT, make_golden
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.runtime.golden import compare_golden

TOKENS = list(range(40, 80))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def golden(model: Path) -> Golden:
    return make_golden(open_source(str(model)), TOKENS, 64, "float16", SilentProgress())


class _Recorded:
    """A backend that says what it is told to, and notes what it was asked."""

    capacity = 64
    vocab_size = tiny_models.VOCAB_SIZE
    position = 0

    def __init__(self, answers: list[np.ndarray]) -> None:
        self.answers = answers
        self.asked: list[tuple[int, list[int]]] = []

    def reset(self) -> None:
        self.position = 0

    def forward(self, tokens: object) -> np.ndarray:
        self.asked.append((self.position, list(tokens)))  # type: ignore[call-overload]
        self.position += len(self.asked[-1][1])
        return self.answers[len(self.asked) - 1]


def test_logits_are_those_of_transformers(model: Path, golden: Golden) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    conversation: list[int] = []
    for call in golden.calls:
        conversation = conversation[: call.position] + list(call.tokens)
        with torch.inference_mode():
            expected = oracle(torch.tensor([conversation])).logits[0, -1].numpy()
        np.testing.assert_allclose(call.logits, expected, atol=1e-4)
    assert [(call.name, call.position, len(call.tokens)) for call in golden.calls] == [
        ("prefill", 0, PREFILL_TOKENS),
        ("decode-1", PREFILL_TOKENS, 1),
        ("decode-2", PREFILL_TOKENS + 1, 1),
        ("first", 0, 1),
    ]


def test_a_small_cache_gets_a_short_conversation(model: Path) -> None:
    calls = make_golden(open_source(str(model)), TOKENS, 2, "float16", SilentProgress()).calls
    assert [(call.name, call.position, len(call.tokens)) for call in calls] == [
        ("prefill", 0, 1),
        ("decode-1", 1, 1),
        ("first", 0, 1),
    ]


def test_no_tokens_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        make_golden(open_source(str(model)), [], 64, "float16", SilentProgress())


def test_files_hold_the_contracts_inputs_and_outputs(golden: Golden, tmp_path: Path) -> None:
    written = write_golden(golden, tmp_path)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    prefill, decode = description["calls"][0], description["calls"][1]
    assert description["text"] == TEXT
    assert decode["files"] == {}
    raw = np.fromfile(tmp_path / prefill["files"]["input_ids"], "<i8")
    assert raw.tolist() == prefill["tokens"] == TOKENS[:PREFILL_TOKENS]
    assert (tmp_path / prefill["files"]["cache_position"]).read_bytes() == bytes(8)
    logits = np.fromfile(tmp_path / prefill["files"]["logits"], "<f4")
    with np.load(tmp_path / ARRAYS_FILE) as arrays:
        assert arrays["decode-1.cache_position"].tolist() == [PREFILL_TOKENS]
        assert arrays["prefill.logits"].shape == (1, 1, tiny_models.VOCAB_SIZE)
        np.testing.assert_array_equal(arrays["prefill.logits"][0, 0], logits)


def test_reading_gives_back_what_was_written_and_writing_again_the_same_bytes(golden: Golden, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_golden(golden, first)
    read = read_golden(first)
    write_golden(read, second)
    assert read.relative_tolerance == golden.relative_tolerance
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("name", [DESCRIPTION_FILE, ARRAYS_FILE])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(golden: Golden, tmp_path: Path, name: str, content: bytes) -> None:
    write_golden(golden, tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"damaged golden outputs|golden\.npz: not a readable"):
        read_golden(tmp_path)


def test_a_model_without_golden_outputs_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no golden\.json"):
        read_golden(tmp_path)


def test_conversations_start_at_position_0(golden: Golden) -> None:
    backend = _Recorded([call.logits for call in golden.calls])
    results = compare_golden(backend, golden)
    assert [position for position, _ in backend.asked] == [call.position for call in golden.calls]
    assert all(result.passed and result.top1 and result.error == 0.0 for result in results)


@pytest.mark.parametrize("wrong", ["noise", "nan", "other call"])
def test_wrong_logits_fail(golden: Golden, wrong: str) -> None:
    answers = [call.logits.copy() for call in golden.calls]
    if wrong == "noise":
        noise = np.random.default_rng(0).normal(size=answers[1].shape)
        answers[1] += (2 * golden.relative_tolerance * answers[1].std() * noise).astype(np.float32)
    elif wrong == "nan":
        answers[1][7] = np.nan
    else:
        answers[1] = answers[2]
    assert [result.passed for result in compare_golden(_Recorded(answers), golden)] == [True, False, True, True]


def test_relative_error_leaves_out_the_mean() -> None:
    expected = np.array([99.0, 101.0], np.float32)
    assert relative_error(np.array([99.0, 102.0], np.float32), expected) == pytest.approx(1 / np.sqrt(2))
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), expected))


def test_calls_have_the_contracts_shapes() -> None:
    arrays = GoldenCall("prefill", (3, 4, 5), 0, np.zeros(7, np.float32)).arrays()
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "input_ids": ((1, 3), "int64"),
        "cache_position": ((1,), "int64"),
        "logits": ((1, 1, 7), "float32"),
    }
