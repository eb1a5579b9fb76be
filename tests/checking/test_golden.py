"""Golden outputs: they agree with transformers, and a wrong executor fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from awq2trt.artifact.golden import (
    Golden,
)
from awq2trt.checking.golden import PREFILL_TOKENS, make_golden
from awq2trt.errors import UsageError
from awq2trt.io_contract import CACHE_LAYOUT, LOGITS, CacheContract, IoContract, TensorContract
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.runtime.golden import compare_golden

TOKENS = list(range(40, 80))


@pytest.fixture(scope="module")
def golden(model: Path) -> Golden:
    return make_golden(open_source(str(model)), TOKENS, _io(64), SilentProgress())


def _io(capacity: int) -> IoContract:
    """As much of a decoder's contract as golden outputs depend on."""
    logits = TensorContract(LOGITS, "float16", ("batch", 1, tiny_models.VOCAB_SIZE), "Scores.")
    return IoContract((), (logits,), CacheContract("float16", CACHE_LAYOUT, capacity))


class _Recorded:
    """A backend that returns prepared answers, and records its calls."""

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
    calls = make_golden(open_source(str(model)), TOKENS, _io(2), SilentProgress()).calls
    assert [(call.name, call.position, len(call.tokens)) for call in calls] == [
        ("prefill", 0, 1),
        ("decode-1", 1, 1),
        ("first", 0, 1),
    ]


def test_no_tokens_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        make_golden(open_source(str(model)), [], _io(64), SilentProgress())


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
