"""How far two models agree on the next token, at every position of a text. It needs only NumPy.

In: logits of a reference and of a candidate, and the tokens of the text. Out: numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Agreement:
    """How far two next-token distributions agree, over positions.

    Attributes:
        mean_kl: Mean KL(reference || candidate), nats.
        top1: Share of positions with the same best token.
        perplexity: Perplexity of the candidate: exp of the mean NLL of the following tokens; NaN without any.
    """

    mean_kl: float
    top1: float
    perplexity: float


def agreement(reference: Array, candidate: Array, tokens: Sequence[int]) -> Agreement:
    """Compares next-token distributions.

    Args:
        reference: Logits [S, V] of every position.
        candidate: Logits of the same shape.
        tokens: The S tokens of the text.
    """
    divergence, likelihoods = [], []
    # One position at a time: a text of 1,024 tokens has 2 GB of fp64 logits in a vocabulary of 262,144.
    for position, (row, other) in enumerate(zip(reference, candidate, strict=True)):
        expected, got = _log_softmax(row), _log_softmax(other)
        with np.errstate(invalid="ignore"):
            divergence.append((np.exp(expected) * (expected - got)).sum())
        if position + 1 < len(tokens):
            likelihoods.append(got[tokens[position + 1]])
    return Agreement(
        mean_kl=float(np.mean(divergence)),
        top1=float((reference.argmax(axis=-1) == candidate.argmax(axis=-1)).mean()),
        perplexity=float(np.exp(-np.mean(likelihoods))) if likelihoods else math.nan,
    )


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    """The log-probabilities of one position, [V]."""
    shifted = logits.astype(np.float64) - logits.max()
    scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return scores
