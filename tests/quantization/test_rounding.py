"""Step sizes are rounded to the type that stores them, and codes are the nearest for the stored step sizes."""

from __future__ import annotations

from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest
import torch

from awq2trt.quantization.rounding import Bfloat16Steps, as_step, group_grid, round_to_grid, to_groups, with_steps_of
from awq2trt.scheme import BFLOAT16, FLOAT16, QuantScheme

_SCHEME = with_steps_of(QuantScheme(group_size=32), BFLOAT16)


def test_steps_for_bf16_are_what_both_types_hold() -> None:
    # Magnitudes of fp16 from its smallest number on, 2^-24, to its largest; beyond, there is no step.
    steps = torch.tensor([1.0, 1.003, 0.0071234, 60000.0, 3e-6, 2.0**-24, 0.0, 7e4])
    got = as_step(steps, _SCHEME).numpy()
    # 1.003 is nearer to 1 than to 1 + 2^-7; 0.0071234 = 1.8235904 * 2^-8, whose 128ths are 105.42.
    expected = [1.0, 1.0, (1 + 105 / 128) * 2.0**-8, 59904.0, 50 * 2.0**-24, 2.0**-24, 1.0, np.inf]
    np.testing.assert_array_equal(got, np.array(expected, np.float32))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(got.astype(dtype).astype(np.float32), got)


@pytest.mark.parametrize("zero_point", [True, False])
def test_codes_are_nearest_on_steps_for_bf16(*, zero_point: bool) -> None:
    scheme = replace(_SCHEME, zero_point=zero_point)
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    linear = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme).to_linear(scheme)
    stored = replace(linear, scales=linear.scales.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(stored.dequantize(), linear.dequantize())
    steps = np.repeat(linear.scales.astype(np.float32), 32, axis=1)
    inside = (stored.codes > 0) & (stored.codes < 15)
    gap = np.abs(stored.dequantize() - weight.numpy())[inside] / steps[inside]
    assert gap.max() <= 0.5 * (1 + 2**-20)  # 0.53 where steps are rounded after the codes


def test_a_scheme_for_bf16_is_the_same_in_all_else() -> None:
    scheme = QuantScheme(bits=3, group_size=64, zero_point=False)
    chosen = with_steps_of(scheme, BFLOAT16)
    assert isinstance(chosen, Bfloat16Steps)
    assert asdict(chosen) == asdict(scheme)
    assert with_steps_of(chosen, FLOAT16) == scheme
