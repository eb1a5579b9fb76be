"""Byte layouts, against literal bytes and an unpacking written from the layout's description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from awq2trt.checkpoint.pack import pack_awq_gemm, pack_int4, unpack_awq_gemm, unpack_int4
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
    packed = pack_awq_gemm(linear)

    codes = _autoawq_unpack(packed["qweight"].astype(np.int32))  # [K, N]
    zeros = _autoawq_unpack(packed["qzeros"].astype(np.int32))  # [K/G, N]
    scales = packed["scales"].astype(np.float32)  # [K/G, N]
    weight = (codes - np.repeat(zeros, 32, axis=0)) * np.repeat(scales, 32, axis=0)
    np.testing.assert_array_equal(weight.T, linear.dequantize())


def test_awq_gemm_literal_word() -> None:
    codes = np.arange(8, dtype=np.uint8).reshape(8, 1)  # N = 8, K = 1
    linear = QuantizedLinear(codes, np.ones((8, 1), np.float16), np.zeros((8, 1), np.uint8), QuantScheme(group_size=-1))
    # Nibbles from the lowest: columns 0, 2, 4, 6, 1, 3, 5, 7.
    assert int(pack_awq_gemm(linear)["qweight"].view(np.uint32)[0, 0]) == 0x75316420


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(8, 32, 32), (40, 96, 32), (16, 80, -1)])
def test_awq_gemm_round_trip(rows: int, columns: int, group_size: int, zero_point: bool) -> None:
    scheme = QuantScheme(group_size=group_size, zero_point=zero_point)
    linear = _random_linear(rows, columns, scheme)
    read = unpack_awq_gemm(pack_awq_gemm(linear), scheme, where="layer")
    np.testing.assert_array_equal(read.codes, linear.codes)
    np.testing.assert_array_equal(read.scales, linear.scales)
    np.testing.assert_array_equal(read.dequantize(), linear.dequantize())
    assert read.bias is not None
    np.testing.assert_array_equal(read.bias, linear.bias)


def test_broken_awq_tensors_are_refused_by_name() -> None:
    scheme = QuantScheme(group_size=32)
    good = pack_awq_gemm(_random_linear(16, 64, scheme))
    broken = {
        "missing qzeros": {name: value for name, value in good.items() if name != "qzeros"},
        "expected int32": {**good, "qweight": good["qweight"].astype(np.int64)},
        "expected qzeros": {**good, "scales": good["scales"][:1]},
        "expected a bias": {**good, "bias": good["bias"][:3]},
    }
    for message, tensors in broken.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            unpack_awq_gemm(tensors, scheme, where="model.layers.3.mlp.up_proj")
        assert "model.layers.3.mlp.up_proj" in str(caught.value)


def test_symmetric_config_with_other_zero_points_is_refused() -> None:
    asymmetric = pack_awq_gemm(_random_linear(16, 64, QuantScheme(group_size=32)))
    with pytest.raises(CheckpointError, match="zero_point"):
        unpack_awq_gemm(asymmetric, QuantScheme(group_size=32, zero_point=False), where="layer")


def test_awq_gemm_needs_eight_columns() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        pack_awq_gemm(_random_linear(12, 32, QuantScheme(group_size=32)))
