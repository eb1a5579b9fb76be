"""GPTQ against the optimal brain surgeon written out: one column at a time, with H inverted again for those left."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization import gptq
from awq2trt.quantization.gptq import DAMPING, ErrorSpread, GptqOptions, gptq_round
from awq2trt.quantization.panels import PANEL
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import (
    GroupGrid,
    fake_quantize,
    group_grid,
    round_to_codes,
    round_to_grid,
    to_groups,
)
from awq2trt.scheme import WHOLE_ROW, QuantScheme

SCHEMES = [
    QuantScheme(bits=4, group_size=32),
    QuantScheme(bits=3, group_size=64, zero_point=False),
    QuantScheme(bits=2, group_size=32, zero_point=False),
    QuantScheme(bits=3, group_size=128),
    QuantScheme(bits=2, group_size=WHOLE_ROW),
]


def _problem(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [6, K] and the Gram matrix of inputs that depend on each other, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    x = torch.randn(2 * columns, columns, generator=generator, dtype=torch.float64) @ (mixing + torch.eye(columns))
    x = x * torch.rand(columns, generator=generator, dtype=torch.float64).add_(0.1)
    return torch.randn(6, columns, generator=generator, dtype=torch.float64), x.T @ x / len(x)


def _surgeon(
    weight: torch.Tensor, gram: torch.Tensor, scheme: QuantScheme, order: list[int], grid: GroupGrid | None
) -> torch.Tensor:
    """After each rounding, solves for the remaining weights again: w_F -= e / [H_F^-1]_kk [H_F^-1]_k."""
    columns, length = weight.shape[1], scheme.group_of(weight.shape[1])
    hessian = gram + DAMPING * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    left, result, free = weight.clone(), torch.empty_like(weight), list(order)
    grids: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    while free:
        column = free[0]
        group = column // length
        if group not in grids:
            if grid is None:
                made = group_grid(left[:, group * length : (group + 1) * length].unsqueeze(1), scheme)
                grids[group] = (made.scales[:, 0, 0], made.zeros[:, 0, 0])
            else:
                grids[group] = (grid.scales[:, group, 0], grid.zeros[:, group, 0])
        step, zero = grids[group]
        rounded = (round_to_codes(left[:, column], GroupGrid(step, zero), scheme) - zero) * step
        inverse = torch.linalg.inv(hessian[free][:, free])
        left[:, free] -= torch.outer((left[:, column] - rounded) / inverse[0, 0], inverse[0])
        result[:, column] = rounded
        free = free[1:]
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("columns", "panel"), [(96, 32), (80, 128), (70, 32)])
def test_it_is_the_optimal_brain_surgeon(
    columns: int, panel: int, act_order: bool, scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "PANEL", panel)
    weight, gram = _problem(columns)
    order = gram.diagonal().argsort(descending=True).tolist() if act_order else list(range(columns))
    static = group_grid(to_groups(weight, scheme), scheme) if act_order else None
    expected = _surgeon(weight, gram, scheme, order, static)
    got = gptq_round(weight, ErrorSpread.of(gram, GptqOptions(act_order=act_order)), scheme).dequantize(scheme)
    torch.testing.assert_close(got, expected.to(got.dtype))


@pytest.mark.parametrize("act_order", [True, False])
def test_a_row_longer_than_a_panel_has_one_grid(act_order: bool) -> None:
    weight, gram = (value.float() for value in _problem(2 * PANEL + 20))
    scheme = QuantScheme(bits=3, group_size=WHOLE_ROW)
    rounded = gptq_round(weight, ErrorSpread.of(gram, GptqOptions(act_order=act_order)), scheme)
    torch.testing.assert_close(rounded.grid.scales, group_grid(to_groups(weight, scheme), scheme).scales)
    nearest = output_error(fake_quantize(weight, scheme) - weight, gram)
    assert output_error(rounded.dequantize(scheme) - weight, gram) < 0.7 * nearest


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_fp32_loses_nothing_that_matters(scheme: QuantScheme) -> None:
    weight, gram = _problem(128, seed=1)
    options = GptqOptions()
    exact = output_error(
        gptq_round(weight, ErrorSpread.of(gram, options), scheme).dequantize(scheme).double() - weight, gram
    )
    single = gptq_round(weight.float(), ErrorSpread.of(gram.float(), options), scheme).dequantize(scheme).double()
    assert output_error(single - weight, gram) == pytest.approx(exact, rel=0.02)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, _ = _problem(64)
    scheme = QuantScheme(group_size=32)
    gram = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.1)
    torch.testing.assert_close(
        gptq_round(weight.float(), ErrorSpread.of(gram, GptqOptions()), scheme).dequantize(scheme),
        fake_quantize(weight.float(), scheme),
    )


def test_channels_that_are_always_zero_do_no_harm() -> None:
    weight, gram = (value.float() for value in _problem(64))
    dead = [3, 40]
    gram[dead], gram[:, dead] = 0, 0
    scheme = QuantScheme(group_size=32)
    rounded = gptq_round(weight, ErrorSpread.of(gram, GptqOptions()), scheme).dequantize(scheme)
    torch.testing.assert_close(rounded[:, dead], fake_quantize(weight, scheme)[:, dead])
    everything_dead = gptq_round(weight, ErrorSpread.of(torch.zeros(64, 64), GptqOptions()), scheme).dequantize(scheme)
    torch.testing.assert_close(everything_dead, fake_quantize(weight, scheme))


@pytest.mark.parametrize("act_order", [True, False])
def test_a_given_grid_is_kept(act_order: bool) -> None:
    weight, gram = (value.float() for value in _problem(64))
    scheme = QuantScheme(bits=3, group_size=32)
    whole = group_grid(to_groups(weight, scheme), scheme)
    grid = GroupGrid((0.75 * whole.scales).half().float(), whole.zeros)
    rounded = gptq_round(weight, ErrorSpread.of(gram, GptqOptions(act_order=act_order)), scheme, grid=grid)
    assert torch.equal(rounded.grid.scales, grid.scales)
    assert torch.equal(rounded.grid.zeros, grid.zeros)
    nearest = round_to_grid(weight, grid, scheme).dequantize(scheme)
    assert output_error(rounded.dequantize(scheme) - weight, gram) < output_error(nearest - weight, gram)


def test_inputs_are_not_changed() -> None:
    weight, gram = _problem(64)
    before = weight.clone(), gram.clone()
    gptq_round(weight, ErrorSpread.of(gram, GptqOptions(act_order=False)), QuantScheme(group_size=32))
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
