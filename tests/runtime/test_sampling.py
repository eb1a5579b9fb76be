"""Sampling: the best token, candidates and their probabilities, seeds, and settings that make no sense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.runtime import Sampler, Sampling
from awq2trt.runtime.sampling import candidate_probabilities


def test_greedy_takes_the_best() -> None:
    assert Sampler(Sampling()).pick(_logits(0.1, 0.5, 0.4)) == 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), {1: 0.5, 2: 0.3, 0: 0.15, 3: 0.05}),
        (Sampling(1.0, top_k=2), {1: 0.625, 2: 0.375}),
        (Sampling(1.0, top_k=9), {1: 0.5, 2: 0.3, 0: 0.15, 3: 0.05}),
        (Sampling(1.0, top_p=0.79), {1: 0.625, 2: 0.375}),
        (Sampling(1.0, top_p=0.01), {1: 1.0}),
        (Sampling(1.0, top_k=3, top_p=0.5), {1: 1.0}),
        (Sampling(0.5, top_k=2), {1: 0.25 / 0.34, 2: 0.09 / 0.34}),
    ],
)
def test_candidates(sampling: Sampling, expected: dict[int, float]) -> None:
    candidates, probabilities = candidate_probabilities(_logits(0.15, 0.5, 0.3, 0.05), sampling)
    assert candidates.tolist() == list(expected)
    np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-5)


def test_seed_repeats_and_frequencies_follow_probabilities() -> None:
    logits = _logits(0.2, 0.8)
    first, second = (Sampler(Sampling(1.0, seed=3)) for _ in range(2))
    drawn = [first.pick(logits) for _ in range(2000)]
    assert drawn == [second.pick(logits) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.03)  # three standard deviations


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**wrong)


def _logits(*probabilities: float) -> NDArray[np.float32]:
    return np.array([math.log(probability) for probability in probabilities], dtype=np.float32)
