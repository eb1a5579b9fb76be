"""Codes that are not the nearest: what a search may do to a group passes, and what breaks a group is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from awq2trt.checking.weights import Codes, code_finding, compensated_limits
from awq2trt.quantization.rounding import group_grid, round_to_grid, to_groups
from awq2trt.scheme import QuantizedLinear, QuantScheme

ROWS, COLUMNS = 40, 512
MOVED = Codes(nearest=False)


def _compensated(bits: int, scatter: float = 0.5, rows: int = ROWS) -> tuple[NDArray[np.float32], QuantizedLinear]:
    """A weight, and codes that are off by a step or more in some places at random."""
    generator = torch.Generator().manual_seed(bits)
    weight, scheme = torch.randn(rows, COLUMNS, generator=generator), QuantScheme(bits=bits, group_size=128)
    moved = weight + scatter * torch.randn(rows, COLUMNS, generator=generator) * 2.0 / scheme.levels
    return weight.numpy(), round_to_grid(moved, group_grid(to_groups(weight, scheme), scheme), scheme).to_linear(scheme)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_codes_that_scatter_around_their_weights_pass(bits: int) -> None:
    weight, linear = _compensated(bits, scatter=1.0)
    assert code_finding("linear", weight, linear, Codes(nearest=True)) is not None
    assert code_finding("linear", weight, linear, MOVED) is None


def _zeros(linear: QuantizedLinear) -> NDArray[np.uint8]:
    assert linear.zeros is not None
    return linear.zeros


def _zero_off_by_one(linear: QuantizedLinear) -> QuantizedLinear:
    zeros = _zeros(linear).copy()
    zeros[7, 2] += 1 if zeros[7, 2] < linear.scheme.levels - 1 else -1
    return replace(linear, zeros=zeros)


def _step_doubled(linear: QuantizedLinear) -> QuantizedLinear:
    scales = linear.scales.copy()
    scales[7, 2] *= 2
    return replace(linear, scales=scales)


def _step_halved(linear: QuantizedLinear) -> QuantizedLinear:
    scales = linear.scales.copy()
    scales[7, 2] /= 2
    return replace(linear, scales=scales)


def _channels_swapped(linear: QuantizedLinear) -> QuantizedLinear:
    codes = linear.codes.copy()
    codes[7, 256:384] = codes[7, 256:384].reshape(-1, 2)[:, ::-1].ravel()
    return replace(linear, codes=codes)


def _step_not_a_number(linear: QuantizedLinear) -> QuantizedLinear:
    scales = linear.scales.copy()
    scales[7, 2] = np.nan
    return replace(linear, scales=scales)


@pytest.mark.parametrize(
    ("break_", "bits"),
    [
        *((break_, bits) for break_ in (_zero_off_by_one, _step_doubled, _channels_swapped) for bits in (4, 3)),
        (_step_halved, 4),
        (_step_not_a_number, 2),
    ],
)
def test_a_broken_group_is_found(break_: Callable[[QuantizedLinear], QuantizedLinear], bits: int) -> None:
    weight, linear = _compensated(bits)
    finding = code_finding("linear", weight, break_(linear), MOVED)
    assert finding is not None
    assert f"1 of {ROWS * COLUMNS // 128} groups" in finding.message
    assert "row 7, group 2" in finding.message


def test_channels_that_are_hardly_used_count_for_little() -> None:
    weight, linear = _compensated(4)
    codes, magnitude = linear.codes.copy(), np.ones(COLUMNS, np.float32)
    codes[3, :100], magnitude[:100] = 0, 1e-3  # nothing of their weights is left
    free = replace(linear, codes=codes)
    assert code_finding("linear", weight, free, MOVED) is not None
    assert code_finding("linear", weight, free, Codes(nearest=False, magnitude=magnitude)) is None


def test_a_group_that_no_input_uses_and_one_of_zeros_are_compared_all_the_same() -> None:
    weight, linear = _compensated(4)
    unused = Codes(nearest=False, magnitude=np.zeros(COLUMNS, np.float32))
    assert code_finding("linear", weight, linear, unused) is None
    assert code_finding("linear", weight, _step_doubled(linear), unused) is not None
    nothing = np.zeros_like(weight)
    zeros = replace(linear, codes=np.repeat(_zeros(linear), 128, axis=1))
    assert code_finding("linear", nothing, zeros, MOVED) is None
    assert code_finding("linear", nothing, linear, MOVED) is not None


def test_fewer_levels_have_wider_limits() -> None:
    mean, fit = np.array([compensated_limits(levels) for levels in (16, 8, 4)]).T
    assert (np.diff(mean) >= 0).all()
    assert (np.diff(fit) > 0).all()
    assert mean.max() < 1
    assert fit[0] < 0.5


def test_in_int3_one_group_of_thousands_may_be_given_to_the_errors_of_others() -> None:
    weight, linear = _compensated(3, rows=250)
    off = _step_doubled(linear)
    assert code_finding("linear", weight, off, MOVED) is None
    scales = off.scales.copy()
    scales[11, 1] *= 2
    finding = code_finding("linear", weight, replace(off, scales=scales), MOVED)
    assert finding is not None
    assert "2 of 1000 groups" in finding.message
