"""Sampling: docs/sampling.md taken literally against the fast implementation, seeds, and invalid settings."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from varied_scores import varied_sampling, varied_scores

from awq2trt.errors import ArtifactError, UsageError
from awq2trt.runtime import Sampler, Sampling
from awq2trt.runtime.sampling import LOWEST_EXPONENT, WEIGHT_BITS, candidates, integer_weights

TAYLOR = tuple(float(Decimal(2).ln() ** i / math.factorial(i)) for i in range(12))
"""Coefficients of 2^f."""

GOLDEN = [321, 399, 124, 909, 586, 765, 96, 337, 521, 316, 417, 106]
"""Tokens that the settings below choose; tests/plugins/runtime/generation/sampler_test.cpp has the same ones."""


def test_greedy_takes_the_best_and_of_equal_ones_the_first() -> None:
    assert Sampler(Sampling()).pick(_logits(0.1, 0.4, 0.4)) == 1
    assert Sampler(Sampling()).pick(np.array([-0.0, 0.0], np.float32)) == 0
    assert Sampler(Sampling(1e-50, top_k=5, seed=1)).pick(_logits(0.1, 0.5, 0.4)) == 1  # 0 in float32


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), {0: 0.15, 1: 0.5, 2: 0.3, 3: 0.05}),
        (Sampling(1.0, top_k=2), {1: 0.5, 2: 0.3}),
        (Sampling(1.0, top_k=9), {0: 0.15, 1: 0.5, 2: 0.3, 3: 0.05}),
        (Sampling(1.0, top_p=0.79), {1: 0.5, 2: 0.3}),
        (Sampling(1.0, top_p=0.81), {0: 0.15, 1: 0.5, 2: 0.3}),
        (Sampling(1.0, top_p=0.01), {1: 0.5}),
        (Sampling(1.0, top_k=3, top_p=0.5), {1: 0.5}),
        (Sampling(1.0, min_p=0.2), {0: 0.15, 1: 0.5, 2: 0.3}),
        (Sampling(1.0, min_p=0.31), {1: 0.5, 2: 0.3}),
        (Sampling(1.0, min_p=1.0), {1: 0.5}),
        (Sampling(1.0, top_p=0.79, min_p=0.9), {1: 0.5}),
        (Sampling(0.5, top_k=2), {1: 0.25, 2: 0.09}),
    ],
)
def test_candidates(sampling: Sampling, expected: dict[int, float]) -> None:
    tokens, weights = candidates(_logits(0.15, 0.5, 0.3, 0.05), sampling)
    assert tokens.tolist() == list(expected)
    assert weights.max() == 1 << WEIGHT_BITS
    np.testing.assert_allclose(weights / weights.sum(), np.array([*expected.values()]) / sum(expected.values()), 1e-6)


def test_of_equal_scores_the_first_are_kept() -> None:
    scores = np.array([1, 2, 1, 2, 1], np.float32)
    assert candidates(scores, Sampling(1.0, top_k=3))[0].tolist() == [0, 1, 3]
    assert candidates(scores, Sampling(1.0, top_p=0.4))[0].tolist() == [1, 3]
    assert candidates(scores, Sampling(1.0, top_p=0.3))[0].tolist() == [1]


def test_weights_are_those_of_the_exponential() -> None:
    exponents = -np.random.default_rng(0).uniform(0, -LOWEST_EXPONENT, 3000)
    with localcontext(prec=40):
        exact = [Decimal(x).exp() * 2**WEIGHT_BITS for x in exponents.tolist()]
    for weight, expected in zip(integer_weights(exponents).tolist(), exact, strict=True):
        assert abs(weight - expected) <= 1 + expected * Decimal(2) ** -44
    assert integer_weights(np.array([0.0, -0.0, -28.1, -math.inf])).tolist() == [1 << 40, 1 << 40, 0, 0]


def test_picks_are_those_of_the_description() -> None:
    for case in range(400):
        sampling = varied_sampling(case)
        sampler, described = Sampler(sampling), _Described(sampling)
        for row in range(4):
            scores = varied_scores(case * 4 + row, size=60)
            sampler.see([row])
            described.seen.add(row)
            assert sampler.pick(scores) == described.pick(scores), (case, sampling)


class _Described:
    """docs/sampling.md step by step, with Python's numbers, sorting everything."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self.seen = sampling, set[int]()
        self.words = iter(np.random.Philox(key=sampling.seed).random_raw(100).tolist())

    def pick(self, logits: NDArray[np.float32]) -> int:
        token = self._pick([np.float32(score) for score in logits])
        self.seen.add(token)
        return token

    def _pick(self, scores: list[np.float32]) -> int:
        sampling, penalty = self.sampling, np.float32(self.sampling.repetition_penalty)
        for token, bias in sampling.logit_bias.items():
            scores[token] = scores[token] + np.float32(bias)
        for token in self.seen:
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
        if sampling.temperature == 0:
            return order[0]
        best, temperature = float(scores[order[0]]), float(np.float32(sampling.temperature))
        if sampling.top_k:
            order = order[: sampling.top_k]
        weight = {token: self._weight((float(scores[token]) - best) / temperature) for token in order}
        if (top_p := float(np.float32(sampling.top_p))) < 1:
            mass = int(top_p * float(sum(weight[token] for token in order)))
            order = [t for i, t in enumerate(order) if i == 0 or sum(weight[b] for b in order[:i]) < mass]
        least = int(float(np.float32(sampling.min_p)) * 2**40)
        kept = sorted(token for token in order if weight[token] >= least)
        number = next(self.words) * sum(weight[token] for token in kept) // 2**64
        for token in kept:
            if number < weight[token]:
                return token
            number -= weight[token]
        raise AssertionError("the number is above the sum of the weights")

    @staticmethod
    def _weight(exponent: float) -> int:
        if exponent < -28:
            return 0
        power = exponent * 1.4426950408889634
        whole = round(power)
        value = 0.0
        for coefficient in reversed(TAYLOR):
            value = value * (power - whole) + coefficient
        return math.floor(math.ldexp(value, whole + 40))


def test_a_seed_means_these_tokens_for_ever() -> None:
    sampler = Sampler(Sampling(0.8, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=2026))
    rows = [(np.arange(1000) * 7919 * (row + 3) % 1009).astype(np.float32) / np.float32(64) for row in range(12)]
    assert [sampler.pick(row) for row in rows] == GOLDEN


def test_seed_repeats_and_frequencies_follow_probabilities() -> None:
    logits = _logits(0.2, 0.5, 0.3)
    first, second = (Sampler(Sampling(1.0, seed=3)) for _ in range(2))
    drawn = [first.pick(logits) for _ in range(3000)]
    assert drawn == [second.pick(logits) for _ in range(3000)]
    counts = Counter(drawn)
    for token, probability in enumerate((0.2, 0.5, 0.3)):
        deviation = math.sqrt(probability * (1 - probability) / 3000)
        assert counts[token] / 3000 == pytest.approx(probability, abs=4 * deviation)


def test_no_seed_is_another_answer_each_time() -> None:
    logits = np.zeros(1000, np.float32)
    first, second = ([Sampler(Sampling(1.0)).pick(logits) for _ in range(8)] for _ in range(2))
    assert first != second


def test_penalty_is_for_tokens_of_prompt_and_answer() -> None:
    logits = np.array([2.0, 1.5, 1.2, -1.0, -1.05], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    sampler.see([0, 0])  # once, however often it came: 2.0 -> 1.0
    assert [sampler.pick(logits) for _ in range(4)] == [1, 2, 0, 0]
    negative = Sampler(Sampling(repetition_penalty=2.0, logit_bias=dict.fromkeys(range(3), -math.inf)))
    assert [negative.pick(logits) for _ in range(2)] == [3, 4]


def test_bias_comes_before_the_penalty() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0, logit_bias={0: 3.0}))
    sampler.see([0])
    assert sampler.pick(np.array([-2.0, 0.0], np.float32)) == 0  # (-2 + 3) / 2; the other way round -2 * 2 + 3


def test_a_device_may_choose_only_from_scores_as_they_are() -> None:
    assert Sampler(Sampling()).takes_best
    for sampling in (Sampling(1.0), Sampling(repetition_penalty=1.1), Sampling(logit_bias={1: 1.0})):
        assert not Sampler(sampling).takes_best


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, math.nan], "score of token 1 is nan"),
        ([1.0, 2.0, math.inf], "score of token 2 is inf"),
        ([-math.inf, -math.inf], "all tokens are minus infinity"),
    ],
)
def test_scores_that_are_none_are_refused(temperature: float, scores: list[float], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Sampler(Sampling(temperature)).pick(np.array(scores, np.float32))


def test_forbidden_tokens_are_never_chosen() -> None:
    sampler = Sampler(Sampling(5.0, seed=1, logit_bias={1: -math.inf}))
    logits = np.array([0.0, 9.0, 0.0, -math.inf], np.float32)
    assert {sampler.pick(logits) for _ in range(100)} == {0, 2}


def test_bias_of_a_token_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="got token 7, expected ids below 2"):
        Sampler(Sampling(logit_bias={7: 1.0})).pick(_logits(0.5, 0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e39},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
        {"seed": 1 << 64},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: float("nan")}},
    ],
)
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**wrong)


def _logits(*probabilities: float) -> NDArray[np.float32]:
    return np.array([math.log(probability) for probability in probabilities], dtype=np.float32)
