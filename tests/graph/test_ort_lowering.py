"""Weights in the blocks of ONNX Runtime's kernel mean what they meant in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import random_linear

from awq2trt.graph.ort_lowering import block_weight
from awq2trt.scheme import WHOLE_ROW, QuantScheme


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(
    ("group_size", "features"), [(128, 576), (64, 77), (32, 96), (WHOLE_ROW, 80), (WHOLE_ROW, 300), (128, 96)]
)
def test_blocked_weight_means_the_same(group_size: int, features: int, zero_point: bool) -> None:
    linear = random_linear((9, features), QuantScheme(4, group_size, zero_point), np.random.default_rng(0))
    blocked = block_weight(linear.codes, linear.scales.astype(np.float32), linear.zeros, linear.group_length)
    assert blocked is not None
    nibbles = np.stack([blocked.codes & 15, blocked.codes >> 4], axis=-1).reshape(9, -1, blocked.block)
    zeros: Any = 8
    if blocked.zeros is not None:
        zeros = np.stack([blocked.zeros & 15, blocked.zeros >> 4], axis=-1).reshape(9, -1)
        zeros = zeros[:, : nibbles.shape[1], None].astype(np.int16)
    weight = (nibbles.astype(np.int16) - zeros) * blocked.scales[:, :, None]
    np.testing.assert_array_equal(weight.reshape(9, -1)[:, :features], linear.dequantize())


def test_blocked_weight_bytes() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16
    scales, zeros = np.ones((2, 1), np.float32), np.array([[3], [12]], dtype=np.uint8)
    blocked = block_weight(codes, scales, zeros, 16)
    assert blocked is not None
    assert blocked.codes[1, 0, :9].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0]
    assert blocked.zeros is not None
    assert blocked.zeros.tolist() == [[3], [12]]


def test_groups_that_no_block_fits_are_left_to_the_body() -> None:
    linear = random_linear((4, 48), QuantScheme(), np.random.default_rng(0))
    assert block_weight(linear.codes, np.ones((4, 2), np.float32), None, 24) is None
