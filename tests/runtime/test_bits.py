"""Numbers as they are stored: bf16 and back, rounded to the nearest."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from awq2trt.runtime.bits import STORED, narrow, widen

NUMBERS = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 100


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_what_was_stored_comes_back(dtype: str) -> None:
    kept = narrow(NUMBERS, dtype)
    assert kept.dtype == STORED[dtype]
    np.testing.assert_array_equal(narrow(widen(kept, dtype), dtype), kept)
    np.testing.assert_array_equal(widen(kept, dtype), NUMBERS.astype(np.dtype(dtype)).astype(np.float32))


def test_halves_go_to_the_even_number_as_in_ml_dtypes() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF818000, 0], np.uint32)
    wide = bits.view(np.float32)
    expected = wide.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert expected.tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF82, 0]
    np.testing.assert_array_equal(narrow(wide, "bfloat16"), expected)
