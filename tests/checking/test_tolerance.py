"""Limits: how they are made of number formats, and of the sums that TensorRT's kernels make."""

from __future__ import annotations

import pytest

from awq2trt.checking.tolerance import drift_limit, engine_limit


def test_the_limit_counts_the_sums_of_tensorrts_own_kernels() -> None:
    assert engine_limit("float16", 31, []) == drift_limit("float16", 31)
    assert engine_limit("bfloat16", 31, [576]) == drift_limit("bfloat16", 31)
    # 768 products are 48 steps, which count as 24 rounded tensors: as many as the block has anyway.
    assert engine_limit("float16", 31, [768]) == pytest.approx(drift_limit("float16", 31) * 2**0.5)
