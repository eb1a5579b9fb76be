"""Codes packed into bytes, against literal bytes and ONNX's own reading."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from awq2trt.checkpoint.pack import pack_int4, pack_words, signed_bytes, unpack_int4, unpack_words


def test_int4_bytes() -> None:
    # Codes 8, 9, 7, 0, 15 mean 0, 1, -1, -8, 7; two's complement nibbles 0, 1, F, 8, 7; low nibble first.
    codes = np.array([8, 9, 7, 0, 15], dtype=np.uint8)
    assert pack_int4(codes).tolist() == [0x10, 0x8F, 0x07]


def test_int4_agrees_with_onnx() -> None:
    import onnx

    codes = np.arange(15, dtype=np.uint8).reshape(3, 5)
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [3, 5], pack_int4(codes).tobytes(), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes.astype(np.int8) - 8)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_int4_round_trip(rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (rows, columns), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_int4(pack_int4(codes), (rows, columns)), codes)


def test_codes_of_three_bits_lie_in_a_stream_without_gaps() -> None:
    # Code 10 takes bits 30 to 32: two of them end the first word, one begins the second.
    codes = np.zeros((1, 12), np.uint8)
    codes[0, 0], codes[0, 10], codes[0, 11] = 5, 6, 1
    assert pack_words(codes, 3).view(np.uint32).tolist() == [[0x80000005, 0b0011]]
    np.testing.assert_array_equal(unpack_words(pack_words(codes, 3), 3, 12), codes)


def test_codes_that_fill_bytes_lie_low_bits_first_too() -> None:
    assert pack_words(np.array([[1, 2, 3, 4, 5]], np.uint8), 8).view(np.uint32).tolist() == [[0x04030201, 5]]
    assert pack_words(np.arange(9, dtype=np.uint8)[None], 4).view(np.uint32).tolist() == [[0x76543210, 8]]


def test_bytes_of_int8() -> None:
    # Codes 128, 129, 127, 0, 255 mean 0, 1, -1, -128, 127.
    assert signed_bytes(np.array([128, 129, 127, 0, 255], np.uint8)).tolist() == [0, 1, -1, -128, 127]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 31, 32, 100])
def test_words_are_taken_apart_as_they_were_put_together(bits: int, count: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (3, count), dtype=np.uint8)
    assert pack_words(codes, bits).shape == (3, -(-count * bits // 32))
    np.testing.assert_array_equal(unpack_words(pack_words(codes, bits), bits, count), codes)
