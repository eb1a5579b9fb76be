"""Choosing the next token from its scores: greedy, temperature, top-k, top-p. NumPy only.

Order as in Hugging Face transformers: temperature, then top-k, then top-p (nucleus sampling, arXiv:1904.09751).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: Divides the scores; 0 always takes the best token.
        top_k: Only the k best tokens; 0 for all.
        top_p: Only the smallest set of best tokens whose probabilities reach p; 1 for all.
        seed: Of the random numbers; None for a different answer each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UsageError(f"got {self.temperature}, expected 0 (greedy) or more.", where="--temperature")
        if self.top_k < 0:
            raise UsageError(f"got {self.top_k}, expected 0 (all tokens) or more.", where="--top-k")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"got {self.top_p}, expected more than 0 and at most 1.", where="--top-p")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"got {self.seed}, expected 0 or more.", where="--seed")


class Sampler:
    """Chooses tokens; holds the state of the random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Always takes the best token."""
        return self._sampling.temperature == 0.0

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token, from its scores [V]."""
        if self.greedy:
            return int(np.argmax(logits))
        candidates, probabilities = candidate_probabilities(logits, self._sampling)
        return int(self._random.choice(candidates, p=probabilities))


def candidate_probabilities(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be chosen, best first, and their probabilities.

    Args:
        logits: Scores, float32 [V].
        sampling: With a temperature above 0.
    """
    scaled = logits.astype(np.float64) / sampling.temperature
    count = min(sampling.top_k, scaled.size) if sampling.top_k else scaled.size
    best = np.argpartition(-scaled, count - 1)[:count]
    order = best[np.argsort(-scaled[best], kind="stable")]
    weights = np.exp(scaled[order] - scaled[order[0]])
    probabilities = weights / weights.sum()
    if sampling.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities  # mass of all better tokens: the best always stays
        kept = before < sampling.top_p
        order, probabilities = order[kept], probabilities[kept] / probabilities[kept].sum()
    return order, probabilities
