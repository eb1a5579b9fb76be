"""Generation: where it ends, and prompts with which it cannot begin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.runtime import Sampler, Sampling, generate


class CountingBackend:
    """Answers every token with the next number."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.vocab_size, self.position = capacity, 100, 0

    def reset(self) -> None:
        self.position = 0

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.position += len(tokens)
        assert self.position <= self.capacity
        scores: NDArray[np.float32] = np.eye(self.vocab_size, dtype=np.float32)[tokens[-1] + 1]
        return scores


def test_generation_ends_before_a_stop_token() -> None:
    assert list(generate(CountingBackend(50), [3, 5], Sampler(Sampling()), stop_tokens={9})) == [6, 7, 8]


def test_generation_ends_after_the_tokens_asked_for() -> None:
    backend = CountingBackend(50)
    assert list(generate(backend, [3, 5], Sampler(Sampling()), max_new_tokens=3)) == [6, 7, 8]
    assert backend.position == 4  # the last token is not run for nothing
    assert list(generate(backend, [3], Sampler(Sampling()), max_new_tokens=0)) == []


def test_generation_fills_the_cache_and_ends() -> None:
    assert list(generate(CountingBackend(5), [1, 2, 3], Sampler(Sampling()))) == [4, 5, 6]
    assert list(generate(CountingBackend(3), [1, 2, 3], Sampler(Sampling()))) == [4]


def test_generation_starts_a_new_conversation() -> None:
    backend = CountingBackend(5)
    for _ in range(3):
        assert list(generate(backend, [1], Sampler(Sampling()), max_new_tokens=4)) == [2, 3, 4, 5]


def test_prompt_longer_than_the_cache_is_refused() -> None:
    with pytest.raises(UsageError, match=r"4 tokens, but the cache .* holds 3\. Fix: .*--max-seq-len 4"):
        list(generate(CountingBackend(3), [1, 2, 3, 4], Sampler(Sampling())))


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        list(generate(CountingBackend(3), [], Sampler(Sampling())))
