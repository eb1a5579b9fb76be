"""Time per token of the C++ library's sampler and of Python's, on one core.

    make runtime && python tools/bench_sampler.py

Prints the median microseconds of both for each vocabulary and setting; those of C++ include the call by ctypes (about 3
µs). Scores resemble a language model's: most are normally distributed, and a few tokens are far above the rest.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from awq2trt.runtime.sampling import Sampler, Sampling

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

VOCABULARIES = (49_152, 128_256)
ROWS = 16
TOKENS = {"native": 320, "python": 32}
SETTINGS = {
    "temperature": Sampling(0.8, seed=1),
    "top-k 40": Sampling(0.8, top_k=40, seed=1),
    "top-p 0.9": Sampling(0.8, top_p=0.9, seed=1),
    "min-p 0.05": Sampling(0.8, min_p=0.05, seed=1),
    "all of them": Sampling(0.8, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.1, seed=1),
}


def _scores(row: int, vocab_size: int) -> NDArray[np.float32]:
    random = np.random.default_rng(row)
    scores = random.normal(0.0, 2.5, vocab_size)
    scores[random.integers(0, vocab_size, 30)] = np.arange(30) * 0.4 + random.choice([0.0, 6.0])
    return scores.astype(np.float32)


def _microseconds(pick: Callable[[NDArray[np.float32]], int], rows: list[NDArray[np.float32]], tokens: int) -> float:
    times = []
    for token in range(tokens):
        began = time.perf_counter()
        pick(rows[token % len(rows)])
        times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    from native_sampler import NativeSampler

    for vocab_size in VOCABULARIES:
        rows = [_scores(row, vocab_size) for row in range(ROWS)]
        for name, sampling in SETTINGS.items():
            native = _microseconds(NativeSampler(sampling, vocab_size).pick, rows, TOKENS["native"])
            python = _microseconds(Sampler(sampling).pick, rows, TOKENS["python"])
            print(f"{vocab_size:7} {name:12} C++ {native:6.0f} µs   Python {python:7.0f} µs")


if __name__ == "__main__":
    main()
