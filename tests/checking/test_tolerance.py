"""Limits: how they follow from number formats, and from the sums that TensorRT's kernels make."""

from __future__ import annotations

import numpy as np
import pytest

from awq2trt.checking.tolerance import SAFETY, cache_limit, drift_limit, engine_limit


def test_the_limit_counts_the_sums_of_tensorrts_own_kernels() -> None:
    assert engine_limit("float16", 31, []) == drift_limit("float16", 31)
    assert engine_limit("bfloat16", 31, [576]) == drift_limit("bfloat16", 31)
    # 768 products are 48 steps, which count as 24 rounded tensors: as many as the block has anyway.
    assert engine_limit("float16", 31, [768]) == pytest.approx(drift_limit("float16", 31) * 2**0.5)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_cache_of_codes_errs_as_normal_numbers_rounded_to_127_steps_do(head_dim: int) -> None:
    heads = np.random.default_rng(0).standard_normal((2000, head_dim))
    scale = np.abs(heads).max(-1, keepdims=True) / 127
    error = np.linalg.norm(np.rint(heads / scale) * scale - heads) / np.linalg.norm(heads)
    assert cache_limit(head_dim, 1) == pytest.approx(SAFETY * error * 2**0.5, rel=0.25)  # keys and values
    assert cache_limit(head_dim, 9) == pytest.approx(3 * cache_limit(head_dim, 1))
