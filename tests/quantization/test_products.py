"""Products in the fastest type."""

from __future__ import annotations

import math

import pytest
import torch

from awq2trt.quantization.products import narrowed, output_error, product

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Relative error of three roundings: of both factors and the product."""


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_product_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("awq2trt.quantization.products.narrow_type", lambda: dtype)
    torch.manual_seed(0)
    rows, factor = torch.rand(5, 24), torch.rand(24, 7)
    found, exact = product(rows, narrowed(factor)), rows.double() @ factor.double()
    assert found.dtype == torch.float32
    assert narrowed(factor).dtype == dtype
    torch.testing.assert_close(found, exact.float(), rtol=ROUNDING[dtype], atol=0)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_output_error_is_the_mean_squared_output_difference(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("awq2trt.quantization.products.narrow_type", lambda: dtype)
    torch.manual_seed(1)
    x, difference = torch.randn(50, 24), torch.randn(6, 24)
    expected = (x.double() @ difference.double().T).square().sum(dim=1).mean()
    found = output_error(difference, narrowed(x.T @ x / 50))
    assert found == pytest.approx(float(expected), rel=ROUNDING[dtype])


def test_output_error_is_never_below_nothing_and_nan_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.quantization.products.narrow_type", lambda: torch.float32)
    difference = torch.tensor([[1.0, -1.0]])
    indefinite = torch.tensor([[1.0, 1.0 + 2**-20], [1.0 + 2**-20, 1.0]])  # as rounding leaves E[x x^T] of one input
    assert output_error(difference, indefinite) == 0
    assert math.isnan(output_error(difference * torch.nan, indefinite))
