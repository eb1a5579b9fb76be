"""Weights in the blocks of ONNX Runtime's kernel have the same values as in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import random_linear

from awq2trt.graph.ort_lowering import Blocks
from awq2trt.scheme import WHOLE_ROW, QuantScheme


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(
    ("group_size", "features"), [(128, 576), (64, 77), (32, 96), (WHOLE_ROW, 80), (WHOLE_ROW, 300), (128, 96)]
)
def test_blocked_weight_means_the_same(group_size: int, features: int, zero_point: bool) -> None:
    linear = random_linear((9, features), QuantScheme(4, group_size, zero_point), np.random.default_rng(0))
    blocks = Blocks.of(features, linear.scales.shape[1], linear.group_length)
    assert blocks is not None
    codes, scales = blocks.pack_codes(linear.codes, 4), blocks.spread(linear.scales.astype(np.float32))
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(9, -1, blocks.block)
    zeros: Any = 8
    if linear.zeros is not None:
        packed = blocks.pack_zeros(linear.zeros, 4)
        zeros = np.stack([packed & 15, packed >> 4], axis=-1).reshape(9, -1)
        zeros = zeros[:, : nibbles.shape[1], None].astype(np.int16)
    weight = (nibbles.astype(np.int16) - zeros) * scales[:, :, None]
    np.testing.assert_array_equal(weight.reshape(9, -1)[:, :features], linear.dequantize())


def test_blocked_weight_bytes() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16
    blocks = Blocks.of(features=16, groups=1, group_length=16)
    assert blocks is not None
    assert blocks.pack_codes(codes, 4)[1, 0, :9].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0]
    assert blocks.pack_zeros(np.array([[3], [12]], dtype=np.uint8), 4).tolist() == [[3], [12]]


def test_groups_that_no_block_fits_are_left_to_the_body() -> None:
    assert Blocks.of(features=48, groups=2, group_length=24) is None


@pytest.mark.parametrize(("group_size", "features"), [(128, 576), (WHOLE_ROW, 80), (32, 96)])
def test_codes_of_a_byte_are_not_packed(group_size: int, features: int) -> None:
    linear = random_linear((5, features), QuantScheme(8, group_size, True), np.random.default_rng(0))
    blocks = Blocks.of(features, linear.scales.shape[1], linear.group_length)
    assert blocks is not None
    assert linear.zeros is not None
    codes = blocks.pack_codes(linear.codes, 8).reshape(5, -1)
    np.testing.assert_array_equal(codes[:, :features], linear.codes)
    assert not codes[:, features:].any()
    zeros = blocks.pack_zeros(linear.zeros, 8)
    assert zeros.shape == blocks.spread(linear.scales).shape == (5, -(-features // blocks.block))
    np.testing.assert_array_equal(zeros, blocks.spread(linear.zeros))
