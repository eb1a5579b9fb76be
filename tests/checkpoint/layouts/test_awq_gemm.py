"""AutoAWQ's GEMM layout, against literal bytes and an unpacking written from the layout's description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts import pack_linear, unpack_linear
from awq2trt.checkpoint.layouts.awq_gemm import LAYOUT, pack
from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear, QuantScheme


def _random_linear(rows: int, columns: int, scheme: QuantScheme) -> QuantizedLinear:
    rng = np.random.default_rng(rows * columns)
    groups = scheme.groups(columns)
    return QuantizedLinear(
        codes=rng.integers(0, 16, (rows, columns), dtype=np.uint8),
        scales=rng.uniform(0.001, 0.1, (rows, groups)).astype(np.float16),
        zeros=rng.integers(0, 16, (rows, groups), dtype=np.uint8) if scheme.zero_point else None,
        scheme=scheme,
        bias=rng.normal(size=rows).astype(np.float16),
    )


def _unpack(tensors: Mapping[str, NDArray[np.generic]], scheme: QuantScheme, shape: tuple[int, int]) -> QuantizedLinear:
    return unpack_linear(LAYOUT, tensors, scheme, shape, where="model.layers.3.mlp.up_proj")


def _autoawq_unpack(words: NDArray[np.int32]) -> NDArray[np.int64]:
    """Column j of eight sits at bits 4 * order[j]; the order is AutoAWQ's AWQ_REVERSE_ORDER."""
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    rows, groups = words.shape
    out = np.zeros((rows, groups * 8), dtype=np.int64)
    for row in range(rows):
        for group in range(groups):
            word = int(words[row, group]) & 0xFFFFFFFF
            for j in range(8):
                out[row, group * 8 + j] = (word >> (4 * order[j])) & 15
    return out


@pytest.mark.parametrize("zero_point", [True, False])
def test_awq_gemm_agrees_with_an_independent_unpacking(zero_point: bool) -> None:
    scheme = QuantScheme(group_size=32, zero_point=zero_point)
    linear = _random_linear(24, 64, scheme)
    packed = pack(linear)

    codes = _autoawq_unpack(packed["qweight"].astype(np.int32))  # [K, N]
    zeros = _autoawq_unpack(packed["qzeros"].astype(np.int32))  # [K/G, N]
    scales = packed["scales"].astype(np.float32)  # [K/G, N]
    weight = (codes - np.repeat(zeros, 32, axis=0)) * np.repeat(scales, 32, axis=0)
    np.testing.assert_array_equal(weight.T, linear.dequantize())


def test_awq_gemm_literal_word() -> None:
    codes = np.arange(8, dtype=np.uint8).reshape(8, 1)  # N = 8, K = 1
    linear = QuantizedLinear(codes, np.ones((8, 1), np.float16), np.zeros((8, 1), np.uint8), QuantScheme(group_size=-1))
    # Nibbles from the lowest: columns 0, 2, 4, 6, 1, 3, 5, 7.
    assert int(pack(linear)["qweight"].view(np.uint32)[0, 0]) == 0x75316420


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(8, 32, 32), (40, 96, 32), (16, 80, -1), (8 * 69, 32, 32)])
def test_awq_gemm_round_trip(rows: int, columns: int, group_size: int, zero_point: bool) -> None:
    scheme = QuantScheme(group_size=group_size, zero_point=zero_point)
    linear = _random_linear(rows, columns, scheme)
    packed = {name.removeprefix("x."): value for name, value in pack_linear("x", linear, LAYOUT).items()}
    read = _unpack(packed, scheme, (rows, columns))
    np.testing.assert_array_equal(read.codes, linear.codes)
    np.testing.assert_array_equal(read.scales, linear.scales)
    np.testing.assert_array_equal(read.dequantize(), linear.dequantize())
    assert read.bias is not None
    np.testing.assert_array_equal(read.bias, linear.bias)


def test_broken_awq_tensors_are_refused_by_name() -> None:
    scheme, linear = QuantScheme(group_size=32), _random_linear(16, 64, QuantScheme(group_size=32))
    assert linear.bias is not None
    good: dict[str, NDArray[Any]] = {**pack(linear), "bias": linear.bias}
    broken = {
        "missing qzeros": {name: value for name, value in good.items() if name != "qzeros"},
        r"qweight: expected int32 \[64, 2\], got int64": {**good, "qweight": good["qweight"].astype(np.int64)},
        r"scales: expected \[2, 16\], got float16 \[1, 16\]": {**good, "scales": good["scales"][:1]},
        r"bias: expected \[16\], got float16 \[3\]": {**good, "bias": good["bias"][:3]},
    }
    for message, tensors in broken.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            _unpack(tensors, scheme, (16, 64))
        assert "model.layers.3.mlp.up_proj" in str(caught.value)


def test_symmetric_config_with_other_zero_points_is_refused() -> None:
    asymmetric = pack(_random_linear(16, 64, QuantScheme(group_size=32)))
    with pytest.raises(CheckpointError, match="zero_point"):
        _unpack(asymmetric, QuantScheme(group_size=32, zero_point=False), (16, 64))


def test_awq_gemm_needs_eight_columns() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        pack(_random_linear(12, 32, QuantScheme(group_size=32)))
