"""`QuantScheme` and `QuantizedLinear` against arithmetic written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from awq2trt.errors import UsageError
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme


def test_dequantize_follows_the_definition_with_a_short_last_group() -> None:
    scheme = QuantScheme(group_size=32)
    codes = np.arange(2 * 40, dtype=np.uint8).reshape(2, 40) % 16
    scales = np.array([[0.5, 2.0], [0.25, 1.0]], dtype=np.float16)
    zeros = np.array([[3, 0], [15, 8]], dtype=np.uint8)
    linear = QuantizedLinear(codes, scales, zeros, scheme)

    expected = np.empty((2, 40), dtype=np.float32)
    for n in range(2):
        for k in range(40):
            expected[n, k] = float(scales[n, k // 32]) * (int(codes[n, k]) - int(zeros[n, k // 32]))
    np.testing.assert_array_equal(linear.dequantize(), expected)


@pytest.mark.parametrize(("bits", "zero"), [(2, 2), (3, 4), (4, 8)])
def test_narrower_codes(bits: int, zero: int) -> None:
    scheme = QuantScheme(bits=bits, group_size=WHOLE_ROW, zero_point=False)
    codes = np.arange(2**bits, dtype=np.uint8)[None]
    linear = QuantizedLinear(codes, np.ones((1, 1), np.float16), None, scheme)
    assert linear.dequantize().tolist() == [list(range(-zero, zero))]
    with pytest.raises(ValueError, match=f"less than {2**bits}, got {2**bits}"):
        QuantizedLinear(codes + 1, np.ones((1, 1), np.float16), None, scheme)


def test_symmetric_zero_is_eight() -> None:
    linear = QuantizedLinear(
        np.array([[0, 8, 15]], dtype=np.uint8),
        np.array([[2.0]], dtype=np.float16),
        None,
        QuantScheme(group_size=WHOLE_ROW, zero_point=False),
    )
    np.testing.assert_array_equal(linear.dequantize(), [[-16.0, 0.0, 14.0]])


@pytest.mark.parametrize(
    ("group_size", "in_features", "length", "groups"),
    [(128, 576, 128, 5), (64, 576, 64, 9), (WHOLE_ROW, 576, 576, 1), (128, 96, 96, 1), (32, 33, 32, 2)],
)
def test_group_arithmetic(group_size: int, in_features: int, length: int, groups: int) -> None:
    scheme = QuantScheme(group_size=group_size)
    assert scheme.group_of(in_features) == length
    assert scheme.groups(in_features) == groups


@pytest.mark.parametrize("arguments", [{"bits": 5}, {"group_size": 0}, {"group_size": 100}, {"group_size": -2}])
def test_senseless_schemes_are_refused_with_the_choices(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected one of"):
        QuantScheme(**arguments)


def test_shapes_that_do_not_fit_are_refused() -> None:
    scheme = QuantScheme(group_size=32)
    codes = np.zeros((4, 64), dtype=np.uint8)
    scales = np.ones((4, 2), dtype=np.float16)
    zeros = np.zeros((4, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="scales"):
        QuantizedLinear(codes, scales[:, :1], zeros, scheme)
    with pytest.raises(ValueError, match="zeros"):
        QuantizedLinear(codes, scales, None, scheme)
    with pytest.raises(ValueError, match="codes"):
        QuantizedLinear(codes.astype(np.int8), scales, zeros, scheme)
    with pytest.raises(ValueError, match="bias"):
        QuantizedLinear(codes, scales, zeros, scheme, bias=np.zeros(3))


def test_names() -> None:
    assert QuantScheme().describe() == "int4-g128-asym"
    assert QuantScheme(group_size=WHOLE_ROW, zero_point=False).describe() == "int4-row-sym"


def test_eight_bits_are_not_for_blocks() -> None:
    assert QuantScheme(bits=4).for_blocks() == QuantScheme(bits=4)
    with pytest.raises(UsageError, match="got 8 bits for the linears of blocks, expected one of 2, 3, 4"):
        QuantScheme(bits=8).for_blocks()


def test_rows_are_taken_with_all_that_belongs_to_them() -> None:
    random = np.random.default_rng(0)
    scheme = QuantScheme(group_size=32)
    codes, zeros = random.integers(0, 16, (5, 40), dtype=np.uint8), random.integers(0, 16, (5, 2), dtype=np.uint8)
    scales, bias = random.random((5, 2)).astype(np.float16), random.random(5).astype(np.float16)
    linear = QuantizedLinear(codes, scales, zeros, scheme, bias)
    part = linear.rows(1, 4)
    np.testing.assert_array_equal(part.dequantize(), linear.dequantize()[1:4])
    assert part.bias is not None
    assert part.bias.tolist() == bias[1:4].tolist()
    assert linear.rows(3, 99).out_features == 2


def test_codes_of_a_byte_stay_as_they_are_where_narrower_ones_are_widened() -> None:
    linear = QuantizedLinear(
        np.full((1, 4), 200, np.uint8), np.ones((1, 1), np.float16), None, QuantScheme(8, 32, False)
    )
    assert linear.widened() is linear
    assert linear.dequantize().tolist() == [[72.0] * 4]
