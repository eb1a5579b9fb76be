"""What linears share that read the same input."""

from __future__ import annotations

import pytest
import torch

from awq2trt.errors import CalibrationError
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.linear_input import InputMoments, LinearInput
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.statistics import InputStatistics
from awq2trt.scheme import QuantScheme

METHOD = BlockMethod(QuantScheme(), search=EFFORTS["default"])


def _input(seed: int) -> LinearInput:
    seen = InputStatistics.empty(8)
    seen.add_(torch.randn(50, 8, generator=torch.Generator().manual_seed(seed)))
    return LinearInput.unscaled(seen)


def test_one_input_is_computed_once_and_damped_once() -> None:
    moments, seen = InputMoments(METHOD), _input(0)
    moments.turn_to(seen, "q_proj")
    gram, spread = moments.gram, moments.spread
    moments.turn_to(seen, "k_proj")
    assert moments.gram is gram
    assert moments.spread is spread
    expected = seen.gram()
    expected.diagonal().mul_(1.3)
    torch.testing.assert_close(gram, expected)


def test_the_next_input_takes_its_place() -> None:
    moments, other = InputMoments(METHOD), _input(1)
    moments.turn_to(_input(0), "q_proj")
    before = moments.spread
    moments.turn_to(other, "o_proj")
    assert moments.spread is not before
    assert float((moments.gram - other.gram()).tril(-1).abs().max()) == 0
    moments.forget_unless(other)
    assert len(moments.gram) == 8
    moments.forget_unless(None)
    with pytest.raises(AssertionError):
        _ = moments.gram


def test_activations_that_are_not_finite_are_refused_by_name() -> None:
    seen = InputStatistics.empty(4)
    seen.add_(torch.full((3, 4), torch.nan))
    with pytest.raises(CalibrationError, match=r"layers\.7"):
        InputMoments(METHOD).turn_to(LinearInput.unscaled(seen), "model.layers.7.q_proj")
