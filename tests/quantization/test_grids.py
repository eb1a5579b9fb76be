"""The search for rounding grids, against every candidate tried by hand, in NumPy and float64."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from awq2trt.quantization import grids
from awq2trt.quantization.grids import LIMITS, SHARES, GridOptions, cut_share, search_grids
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import GroupGrid, fake_quantize, group_grid, round_to_grid, to_groups
from awq2trt.scheme import WHOLE_ROW, QuantScheme

SCHEMES = [QuantScheme(b, g, z) for b in (2, 3, 4) for g in (32, WHOLE_ROW) for z in (True, False)]
FIRST_LOOK = GridOptions(passes=0)
AS_LLM_AWQ = GridOptions(ends_apart=False, passes=0)


def _problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with outliers [N, K], and the Gram matrix of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight += (
        3 * torch.randn(rows, columns, generator=generator) * (torch.rand(rows, columns, generator=generator) < 0.05)
    )
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return weight, x.T @ x / len(x)


def _error(weight: torch.Tensor, gram: torch.Tensor, scheme: QuantScheme, grid: GroupGrid) -> float:
    return output_error(round_to_grid(weight, grid, scheme).dequantize(scheme) - weight, gram)


def _error_by_hand(
    weight: NDArray[np.float64], gram: NDArray[np.float64], ends: tuple[float, float], scheme: QuantScheme
) -> float:
    """Output error of one group of one row whose range is [low, high]."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    top = 2**scheme.bits - 1
    if scheme.zero_point:
        step = float(np.float16((high - low) / top)) or 1.0
        zero = min(max(round(-low / step), 0), top)
    else:
        step = float(np.float16(max(-low, high) / (2 ** (scheme.bits - 1) - 1))) or 1.0
        zero = 2 ** (scheme.bits - 1)
    difference = step * (np.clip(np.round(weight / step) + zero, 0, top) - zero) - weight
    return float(difference @ gram @ difference)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_the_limit_on_weights_is_the_best_of_llm_awqs(scheme: QuantScheme) -> None:
    weight, gram = _problem(6, 24)
    found = search_grids(weight, gram, scheme, AS_LLM_AWQ)
    expected = 0.0
    for row in weight.double().numpy():
        limits = [share * np.abs(row).max() for share in LIMITS]
        ranges = [(max(row.min(), -limit), min(row.max(), limit)) for limit in limits]
        expected += min(_error_by_hand(row, gram.double().numpy(), ends, scheme) for ends in ranges)
    assert _error(weight, gram, scheme, found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_the_first_look_is_at_least_as_good_as_any_share_of_the_ends(scheme: QuantScheme) -> None:
    weight, gram = _problem(6, 24, seed=1)
    found = search_grids(weight, gram, scheme, FIRST_LOOK)
    for row, steps, zeros in zip(weight, found.scales, found.zeros, strict=True):
        got = _error(row[None], gram, scheme, GroupGrid(steps[None], zeros[None]))
        values, matrix = row.double().numpy(), gram.double().numpy()
        pairs = product(SHARES, SHARES) if scheme.zero_point else zip(SHARES, SHARES, strict=True)
        for low, high in pairs:
            ends = (low * min(values.min(), 0), high * max(values.max(), 0))
            assert got <= _error_by_hand(values, matrix, ends, scheme) * (1 + 1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("columns", [64, 72])
def test_every_further_look_lowers_the_error_of_the_whole_row(columns: int, scheme: QuantScheme) -> None:
    weight, gram = _problem(5, columns, seed=2)
    errors = [
        _error(weight, gram, scheme, search_grids(weight, gram, scheme, GridOptions(passes=passes)))
        for passes in range(4)
    ]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))
    assert errors[0] < output_error(fake_quantize(weight, scheme) - weight, gram)


def test_the_further_look_sees_what_other_groups_get_wrong() -> None:
    """Two groups read the same input, so that one can undo the error of the other."""
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(8, 64, generator=generator), torch.randn(500, 32, generator=generator)
    twice = torch.cat((x, x), dim=1)
    gram, scheme = twice.T @ twice / 500, QuantScheme(bits=3, group_size=32)
    alone = _error(weight, gram, scheme, search_grids(weight, gram, scheme, FIRST_LOOK))
    together = _error(weight, gram, scheme, search_grids(weight, gram, scheme, GridOptions(passes=2)))
    assert together < 0.9 * alone


@pytest.mark.parametrize("options", [AS_LLM_AWQ, FIRST_LOOK, GridOptions(passes=2)])
def test_grids_are_what_a_checkpoint_holds(options: GridOptions) -> None:
    weight, gram = _problem(7, 72)
    weight[2] = 0
    weight[3] = weight[3].abs() + 0.5
    for scheme in SCHEMES:
        grid = search_grids(weight, gram, scheme, options)
        assert grid.scales.shape == grid.zeros.shape == (7, scheme.groups(72), 1)
        assert torch.equal(grid.scales.half().float(), grid.scales)
        assert (grid.scales > 0).all()
        assert torch.equal(grid.zeros.round(), grid.zeros)
        assert ((grid.zeros >= 0) & (grid.zeros < scheme.levels)).all()
        if not scheme.zero_point:
            assert (grid.zeros == scheme.symmetric_zero).all()


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = _problem(7, 64)
    scheme = QuantScheme(group_size=32)
    together = search_grids(weight, gram, scheme, GridOptions())
    monkeypatch.setattr(grids, "ROWS", 3)
    apart = search_grids(weight, gram, scheme, GridOptions())
    torch.testing.assert_close(together.scales, apart.scales)
    assert torch.equal(together.zeros, apart.zeros)


@pytest.mark.parametrize("options", [AS_LLM_AWQ, GridOptions(passes=2)])
@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_candidates_tried_at_once_as_on_a_gpu_give_grids_as_good(
    scheme: QuantScheme, options: GridOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = _problem(7, 72)
    in_turns = search_grids(weight, gram, scheme, options)
    monkeypatch.setattr(grids, "few_at_once", lambda _: False)
    at_once = search_grids(weight, gram, scheme, options)
    same = (in_turns.scales == at_once.scales) & (in_turns.zeros == at_once.zeros)
    assert float(same.float().mean()) > 0.9  # sums in another order choose among grids that are equally good
    expected = _error(weight, gram, scheme, at_once)
    assert _error(weight, gram, scheme, in_turns) == pytest.approx(expected, rel=1e-2)


def test_an_outlier_that_no_input_reads_is_cut_off() -> None:
    weight, gram = torch.randn(4, 64, generator=torch.Generator().manual_seed(5)) * 0.1, torch.eye(64)
    weight[:, 7], gram[7, 7] = 4.0, 1e-8
    scheme = QuantScheme(group_size=64)
    found = search_grids(weight, gram, scheme, GridOptions())
    assert cut_share(weight, found, scheme) == 1.0
    assert _error(weight, gram, scheme, found) < 0.4 * output_error(fake_quantize(weight, scheme) - weight, gram)


def test_nothing_is_cut_from_the_whole_range() -> None:
    weight, _ = _problem(4, 72)
    scheme = QuantScheme(group_size=32)
    assert cut_share(weight, group_grid(to_groups(weight, scheme), scheme), scheme) == 0
