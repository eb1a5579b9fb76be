"""Coordinate descent on codes, against every single change of a code tried by hand."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization import descent
from awq2trt.quantization.descent import descend
from awq2trt.quantization.grids import GridOptions, search_grids
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import group_grid, round_to_grid, to_groups
from awq2trt.scheme import WHOLE_ROW, QuantScheme

SCHEMES = [QuantScheme(b, g, z) for b in (2, 3, 4) for g in (32, WHOLE_ROW) for z in (True, False)]


def _problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("columns", [40, 64])
def test_in_the_end_no_single_code_can_be_better(
    columns: int, scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "PANEL", 24)
    weight, gram = _problem(3, columns)
    start = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)
    found = descend(weight, start, gram, scheme, passes=30)
    length, exact = scheme.group_of(columns), gram.double()
    error = (found.dequantize(scheme) - weight).double()
    for row in range(3):
        whole = float(error[row] @ exact @ error[row])
        for column in range(columns):
            step, zero = (float(v[row, column // length, 0]) for v in (found.grid.scales, found.grid.zeros))
            for code in range(scheme.levels):
                changed = error[row].clone()
                changed[column] = step * (code - zero) - float(weight[row, column])
                assert float(changed @ exact @ changed) >= whole * (1 - 1e-5)


def _tied(error: torch.Tensor, moments: torch.Tensor, gram: torch.Tensor) -> float:
    """tr(M D G D^T), summed over heads."""
    heads = error.double().view(len(moments), moments.shape[1], -1)
    return float((moments.double() * (heads @ gram.double() @ heads.mT)).sum())


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=QuantScheme.describe)
def test_rows_that_weigh_on_each_other_end_where_no_single_code_can_be_better(
    scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "PANEL", 24)
    weight, gram = _problem(6, 40)
    mixing = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7))
    moments = mixing @ mixing.mT  # of two heads of three rows
    start = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)
    alone = descend(weight, start, gram, scheme, passes=30)
    errors = [_tied(alone.dequantize(scheme) - weight, moments, gram)]
    for passes in (1, 2, 30):
        found = descend(weight, alone, gram, scheme, passes=passes, moments=moments)
        errors.append(_tied(found.dequantize(scheme) - weight, moments, gram))
    assert errors[1] < 0.97 * errors[0]
    assert errors[3] <= errors[2] * (1 + 1e-5) <= errors[1] * (1 + 2e-5)
    length = scheme.group_of(40)
    for row in range(6):
        for column in range(40):
            for code in range(scheme.levels):
                changed = found.dequantize(scheme) - weight
                step, zero = (float(v[row, column // length, 0]) for v in (found.grid.scales, found.grid.zeros))
                changed[row, column] = step * (code - zero) - float(weight[row, column])
                assert _tied(changed, moments, gram) >= errors[3] * (1 - 1e-5)


def test_rows_that_do_not_weigh_on_each_other_descend_by_themselves() -> None:
    weight, gram = _problem(6, 64)
    scheme = QuantScheme(bits=3, group_size=32)
    start = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)
    apart = torch.diag_embed(torch.rand(2, 3, generator=torch.Generator().manual_seed(1)) + 0.1)
    alone, tied = (descend(weight, start, gram, scheme, passes=2, moments=moments) for moments in (None, apart))
    assert torch.equal(alone.codes, tied.codes)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_every_pass_lowers_the_error_on_any_grid(scheme: QuantScheme) -> None:
    weight, gram = _problem(5, 72)
    grid = search_grids(weight, gram, scheme, GridOptions())
    start = round_to_grid(weight, grid, scheme)
    before = start.codes.clone()
    errors = [output_error(start.dequantize(scheme) - weight, gram)]
    for passes in (1, 2, 4):
        found = descend(weight, start, gram, scheme, passes=passes)
        assert torch.equal(found.grid.scales, grid.scales)
        assert torch.equal(found.codes, found.codes.round())
        assert ((found.codes >= 0) & (found.codes < scheme.levels)).all()
        errors.append(output_error(found.dequantize(scheme) - weight, gram))
    assert torch.equal(start.codes, before)
    assert errors[1] < 0.97 * errors[0]
    assert errors[3] <= errors[2] * (1 + 1e-5) <= errors[1] * (1 + 2e-5)


def test_inputs_that_do_not_depend_on_each_other_leave_nothing_to_improve() -> None:
    weight, _ = _problem(4, 64)
    scheme = QuantScheme(bits=3, group_size=32)
    gram = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(1)))
    gram[5, 5] = 0  # never read
    start = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)
    assert torch.equal(descend(weight, start, gram, scheme, passes=2).codes, start.codes)


def test_it_stays_where_its_weight_is_whatever_the_default_device() -> None:
    weight, gram = _problem(4, 64)
    scheme = QuantScheme(bits=3, group_size=32)
    start = round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)
    moments = torch.eye(2).expand(2, 2, 2)
    with torch.device("meta"):
        for ties in (None, moments):
            assert descend(weight, start, gram, scheme, passes=1, moments=ties).codes.device.type == "cpu"
