"""Scores and settings to sample with, of all kinds: peaked, flat, with ties, forbidden tokens, tiny and huge."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from awq2trt.runtime.sampling import Sampling


def varied_scores(number: int, size: int) -> NDArray[np.float32]:
    """The row with a given number, float32 [size]."""
    random = np.random.default_rng(number)
    scores = random.normal(0.0, float(random.choice([1e-3, 0.5, 3.0, 10.0, 1e4])), size)
    kind = number % 6
    if kind == 1:
        scores = np.round(scores)  # ties
    elif kind == 2:
        scores = scores.astype(np.float16).astype(np.float64)  # as a model in half precision gives them
    elif kind == 3:
        scores[random.integers(0, size, size // 2)] = -math.inf
        scores[random.integers(0, size)] = 0.0
    elif kind == 4:
        scores = np.full(size, scores[0])
    elif kind == 5:
        scores *= 10.0 ** random.integers(-30, 30)
    return scores.astype(np.float32)


def varied_sampling(number: int) -> Sampling:
    """The settings with a given number, and with a seed; tokens of their biases are below 8."""
    random = np.random.default_rng(number)
    biased = random.random() < 0.3
    return Sampling(
        temperature=float(random.choice([0.0, 1e-30, 0.1, 0.7, 1.0, 1.5, 5.0, 1e30], p=[0.1, 0.02, *[0.17] * 5, 0.03])),
        top_k=int(random.choice([0, 1, 2, 5, 40, 1000])),
        top_p=float(random.choice([1.0, 0.999, 0.9, 0.5, 0.1, 1e-9])),
        min_p=float(random.choice([0.0, 0.0, 0.0, 1e-4, 0.05, 0.5, 1.0])),
        repetition_penalty=float(random.choice([1.0, 1.0, 1.1, 1.3, 0.8])),
        seed=int(random.integers(0, 1 << 64, dtype=np.uint64)),
        logit_bias={int(i): float(random.choice([-math.inf, -3.3, 0.1, 7.0])) for i in random.permutation(8)[:3]}
        if biased
        else {},
    )
