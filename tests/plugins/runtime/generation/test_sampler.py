"""The C++ sampler against Python's: the same tokens for the same seed, and the same refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from native_sampler import NativeSampler
from native_text import BAD_ARGUMENT, RUN_FAILED, NativeError
from varied_scores import varied_sampling, varied_scores

from awq2trt.runtime.sampling import Sampler, Sampling


@pytest.mark.parametrize(("size", "cases"), [(8, 1500), (1000, 600), (49_152, 40), (262_144, 8)])
def test_tokens_are_those_of_python(size: int, cases: int) -> None:
    for case in range(cases):
        sampling = varied_sampling(case)
        ours, native = Sampler(sampling), NativeSampler(sampling, size)
        for row in range(5):
            scores = varied_scores(case * 5 + row, size)
            seen = [row, size - 1, row]
            ours.see(seen)
            native.see(seen)
            assert native.pick(scores) == ours.pick(scores), (case, row, sampling)


def test_long_answers_stay_the_same() -> None:
    """The state of the random numbers and of the penalty, over many tokens."""
    sampling = Sampling(1.3, top_p=0.99, repetition_penalty=1.2, seed=(1 << 64) - 1)
    ours, native = Sampler(sampling), NativeSampler(sampling, 300)
    for row in range(2000):
        scores = varied_scores(row * 6, 300)
        assert native.pick(scores) == ours.pick(scores), row


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_none_are_refused(temperature: float, wrong: float) -> None:
    scores = np.zeros(100, np.float32)
    scores[71] = wrong
    with pytest.raises(NativeError, match=r"score of token 71 is .*\n  fix: .*awq2trt check") as caught:
        NativeSampler(Sampling(temperature, seed=0), 100).pick(scores)
    assert caught.value.code == RUN_FAILED


def test_no_token_at_all_is_refused() -> None:
    with pytest.raises(NativeError, match="all tokens are minus infinity"):
        NativeSampler(Sampling(seed=0), 3).pick(np.full(3, -math.inf, np.float32))


def test_tokens_that_are_none_are_refused() -> None:
    for token in (-1, 5):
        with pytest.raises(NativeError, match=rf"token {token} is not in the model's vocabulary") as caught:
            NativeSampler(Sampling(repetition_penalty=2.0, seed=0), 5).see([token])
        assert caught.value.code == BAD_ARGUMENT
    with pytest.raises(NativeError, match="logit_bias: got 5, expected an id of the model's vocabulary"):
        NativeSampler(Sampling(logit_bias={5: 1.0}, seed=0), 5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, value: object) -> None:
    sampling = Sampling(seed=0)
    object.__setattr__(sampling, name, value)  # past Python's own check
    with pytest.raises(NativeError, match=rf"GenerateOptions::{name}: got .*, expected ") as caught:
        NativeSampler(sampling, 5)
    assert caught.value.code == BAD_ARGUMENT
