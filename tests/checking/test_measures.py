"""The distance between two outputs, compared with sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from awq2trt.checking.measures import difference, merged


def test_errors_of_two_positions_by_hand() -> None:
    reference = np.array([[[3.0, 4.0], [0.0, 2.0]]], np.float32)  # norms 5 and 2
    candidate = np.array([[[3.0, 4.5], [1.0, 2.0]]], np.float32)
    found = difference(reference, candidate)
    assert (found.positions, found.max_abs, found.mean_abs) == (2, 1.0, 0.375)
    assert found.max_relative == pytest.approx(0.5)
    assert found.mean_relative == pytest.approx((0.1 + 0.5) / 2)
    assert found.cosine == pytest.approx(2 / math.sqrt(5))


def test_what_is_added_to_all_logits_means_nothing() -> None:
    """Softmax removes it again; quantized models shift all logits by more than they change them (SmolLM2, RTN)."""
    logits = np.random.default_rng(2).normal(size=(1, 5, 100)).astype(np.float32)
    noise = 0.1 * np.random.default_rng(3).normal(size=logits.shape).astype(np.float32)
    plain, shifted = (difference(logits + shift, logits + noise, centered=True) for shift in (0, -7))
    for name in ("max_abs", "mean_abs", "max_relative", "mean_relative", "cosine"):
        assert getattr(shifted, name) == pytest.approx(getattr(plain, name), rel=1e-4), name
    assert plain.mean_relative == pytest.approx(0.1, rel=0.2)
    assert difference(logits - 7, logits + noise).mean_relative > 0.9


def test_logits_that_say_nothing_of_the_reference_stay_unrelated() -> None:
    rng = np.random.default_rng(4)
    logits, other = rng.normal(size=(2, 6, 500)).astype(np.float32)
    assert difference(logits, other, centered=True).mean_relative > 1.2
    assert difference(logits, np.zeros_like(logits), centered=True).mean_relative == pytest.approx(1)


def test_no_number_is_within_no_limit() -> None:
    one = np.ones((1, 2, 3), np.float32)
    broken = one.copy()
    broken[0, 1, 1] = np.nan
    found = merged([difference(one, one), difference(one, broken)])
    assert math.isnan(found.mean_relative)
    assert math.isnan(found.max_relative)
    assert not found.mean_relative <= 1
