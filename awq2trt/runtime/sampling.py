"""Chooses the next token by its scores: greedy, temperature, top-k, top-p, min-p, penalty, bias.

The order of operations and every rounding follow docs/sampling.md, so that a seed gives the same tokens here and in the
C++ library (plugins/runtime/generation/sampler.cpp).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import ArtifactError, UsageError

WEIGHT_BITS: Final = 40
"""The most probable token has the weight 2^40: weights are integers, so that sums do not depend on their order."""

LOWEST_EXPONENT: Final = -28.0
"""Below this exponent, weights become 0: e^-28 is less than 2^-40."""

_LOG2_E: Final = float.fromhex("0x1.71547652b82fep+0")

_POWER_OF_TWO: Final = tuple(
    float.fromhex(coefficient)
    for coefficient in (
        "0x1.0000000000000p+0",
        "0x1.62e42fefa39efp-1",
        "0x1.ebfbdff82c58fp-3",
        "0x1.c6b08d704a0c0p-5",
        "0x1.3b2ab6fba4e77p-7",
        "0x1.5d87fe78a6731p-10",
        "0x1.430912f86c787p-13",
        "0x1.ffcbfc588b0c7p-17",
        "0x1.62c0223a5c824p-20",
        "0x1.b5253d395e7c4p-24",
        "0x1.e4cf5158b8ecap-28",
        "0x1.e8cac7351bb25p-32",
    )
)
"""Taylor's series of 2^f, with terms ln(2)^i / i!; it is within 2^-46 for |f| <= 1/2."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

        sampling = awq2trt.Sampling(temperature=0.7, top_p=0.9, seed=1)
        print(awq2trt.load("out/onnx").generate_text("The sea", raw=True, sampling=sampling, max_new_tokens=8))

    Attributes:
        temperature: Divides the scores; 0 always takes the most probable token.
        top_k: Restricts the choice to the k most probable tokens; 0 for all.
        top_p: Restricts the choice to the smallest set of most probable tokens that together reach p; 1 for all.
        seed: Seed of the random numbers; None for a different answer each time.
        min_p: Restricts the choice to tokens at least p times as probable as the most probable one; 0 for all.
        repetition_penalty: Divides positive and multiplies negative scores of tokens that are in the prompt or the
            answer; 1 changes nothing.
        logit_bias: Numbers that are added to the scores of tokens, by id; minus infinity forbids a token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(0.0 <= single(self.temperature) < np.inf, "--temperature", self.temperature, "0 (greedy) or more")
        _require(self.top_k >= 0, "--top-k", self.top_k, "0 (all tokens) or more")
        _require(0.0 < single(self.top_p) <= 1.0, "--top-p", self.top_p, "more than 0 and at most 1")
        _require(0.0 <= single(self.min_p) <= 1.0, "--min-p", self.min_p, "0 to 1")
        penalty = self.repetition_penalty
        _require(0.0 < single(penalty) < np.inf, "--repetition-penalty", penalty, "more than 0")
        if self.seed is not None:
            _require(0 <= self.seed < 1 << 64, "--seed", self.seed, "0 or more, and less than 2^64")
        for token, bias in self.logit_bias.items():
            _require(token >= 0, "logit_bias", token, "the id of a token")
            _require(single(bias) < np.inf, "logit_bias", bias, "a number, or minus infinity, which forbids the token")


def single(value: float) -> float:
    """Rounds a setting to a float32, which it is in the C++ library."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _require(sensible: bool, option: str, got: float, expected: str) -> None:
    if not sensible:
        raise UsageError(f"got {got}, expected {expected}.", where=option)


class Sampler:
    """Chooses the tokens of one answer; holds the state of the random numbers, and which tokens have occurred."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._greedy = single(sampling.temperature) == 0.0
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._random = np.random.Philox(key=seed)
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), dtype=np.int64)
        self._biases = np.fromiter(sampling.logit_bias.values(), dtype=np.float32)
        self._penalty = np.float32(sampling.repetition_penalty)
        self._seen: set[int] = set()

    @property
    def takes_best(self) -> bool:
        """Whether the largest unchanged score always wins, so that a device can choose without copying scores."""
        return self._greedy and not self._adjusts

    @property
    def _adjusts(self) -> bool:
        return self._bias_ids.size > 0 or self._penalty != 1.0

    def see(self, tokens: Sequence[int]) -> None:
        """Notes the tokens of the prompt, for the repetition penalty; picked tokens are noted automatically."""
        if self._penalty != 1.0:
            self._seen.update(tokens)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """Picks the next token.

        Args:
            logits: Scores, float32 [V].

        Raises:
            ArtifactError: The scores are invalid: one is NaN or infinite, or all tokens are forbidden.
            UsageError: `logit_bias` has a token that is not in the vocabulary.
        """
        scores = self._adjusted(logits) if self._adjusts else logits
        _check_scores(scores)
        if self._greedy:
            token = int(np.argmax(scores))
        else:
            tokens, weights = candidates(scores, self._sampling)
            below = np.cumsum(weights)
            number = int(self._random.random_raw()) * int(below[-1]) >> 64
            token = int(tokens[np.searchsorted(below, number, side="right")])
        self.see([token])
        return token

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the scores [V] with bias and penalty, in float32."""
        if self._bias_ids.size and (highest := int(self._bias_ids.max())) >= logits.size:
            raise UsageError(f"got token {highest}, expected ids below {logits.size}.", where="logit_bias")
        scores = logits.copy()
        scores[self._bias_ids] += self._biases
        seen = np.fromiter(self._seen, dtype=np.int64)
        with np.errstate(over="ignore"):  # overflows to infinity, which _check_scores refuses
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / self._penalty, scores[seen] * self._penalty)
        return scores


def candidates(scores: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the tokens that may be chosen.

    Args:
        scores: Finite numbers or minus infinity, which must not be all of them, float32 [V].
        sampling: Settings with a temperature above 0.

    Returns:
        Their ids, ascending, and their weights, which are proportional to their probabilities.
    """
    best = np.float64(scores.max())
    tokens = _best(np.flatnonzero(scores > -np.inf), scores, sampling.top_k)
    with np.errstate(over="ignore"):  # a tiny temperature overflows to minus infinity
        weights = integer_weights((scores[tokens].astype(np.float64) - best) / single(sampling.temperature))
    tokens, weights = tokens[weights > 0], weights[weights > 0]
    if (top_p := single(sampling.top_p)) < 1.0:
        ranked = np.argsort(-scores[tokens], kind="stable")
        below = np.cumsum(weights[ranked])
        mass = int(top_p * float(below[-1]))
        kept = np.sort(ranked[: 1 + np.searchsorted(below, mass, side="left")])
        tokens, weights = tokens[kept], weights[kept]
    least = int(np.ldexp(single(sampling.min_p), WEIGHT_BITS))
    return tokens[weights >= least], weights[weights >= least]


def integer_weights(exponents: NDArray[np.float64]) -> NDArray[np.int64]:
    """Computes e to these powers, in units of 2^-40, rounded down, with only IEEE 754 operations, like weights.cpp.

    Args:
        exponents: At most 0, or minus infinity, [V].
    """
    power = np.where(exponents >= LOWEST_EXPONENT, exponents, LOWEST_EXPONENT) * _LOG2_E
    whole = np.rint(power)
    fraction = power - whole
    value = np.full_like(fraction, _POWER_OF_TWO[-1])
    for coefficient in reversed(_POWER_OF_TWO[:-1]):
        value = value * fraction + coefficient
    weights = np.floor(np.ldexp(value, whole.astype(np.int64) + WEIGHT_BITS)).astype(np.int64)
    return np.where(exponents >= LOWEST_EXPONENT, weights, 0)


def _best(tokens: NDArray[np.int64], scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` best of `tokens`, which are ascending; the first of equal ones. 0 for all."""
    if not 0 < count < tokens.size:
        return tokens
    own = scores[tokens]
    worst = np.partition(own, own.size - count)[own.size - count]
    better, equal = tokens[own > worst], tokens[own == worst]
    return np.sort(np.concatenate([better, equal[: count - better.size]]))


def _check_scores(scores: NDArray[np.float32]) -> None:
    """Refuses scores from which no token can be chosen.

    Raises:
        ArtifactError: A score is NaN or infinite, or all are minus infinity.
    """
    wrong = np.flatnonzero(~(scores < np.inf))
    if wrong.size:
        what = f"the score of token {wrong[0]} is {scores[wrong[0]]}"
    elif np.isneginf(scores.max()):
        what = "the scores of all tokens are minus infinity"
    else:
        return
    raise ArtifactError(
        f"{what}.",
        where="the model's scores",
        fix="`awq2trt check` finds where the model leaves its type's range; logit_bias must not forbid every token.",
    )
