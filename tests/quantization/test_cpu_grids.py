"""Losses of candidate grids: the compiled loops against the formula in PyTorch."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization.cpu_grids import AT_ONCE, Rows, fitted_steps, losses_around, losses_on

LAST = 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("candidates", [1, AT_ONCE, 2 * AT_ONCE + 1])
def test_losses_are_those_of_the_formula(dtype: torch.dtype, pulled: bool, candidates: int) -> None:
    generator = torch.Generator().manual_seed(candidates)
    weight = torch.randn(37, 24, generator=generator)
    inputs = torch.randn(100, 24, generator=generator)
    block = (inputs.T @ inputs / 100).to(dtype)
    scales = 0.1 + 0.2 * torch.rand(37, candidates, generator=generator)
    zeros = torch.randint(0, LAST + 1, (37, candidates), generator=generator).float()
    pull = torch.randn(37, 24, generator=generator) if pulled else None
    found = losses_on(Rows(weight, block, LAST, pull), scales, zeros)
    in_steps = weight.unsqueeze(1) / scales.unsqueeze(-1)
    codes = (in_steps.round() + zeros.unsqueeze(-1)).clamp(0, LAST)
    difference = (codes - zeros.unsqueeze(-1) - in_steps) * scales.unsqueeze(-1)
    expected = torch.einsum("ncg,gh,nch->nc", difference, block.float(), difference)
    if pull is not None:
        expected += torch.einsum("ng,ncg->nc", pull, difference)
    assert found.shape == (37, candidates)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("last", [3, 7, 15])
@pytest.mark.parametrize("length", [24, 29])
def test_zero_points_beside_one_have_the_losses_of_their_own_codes(
    length: int, last: int, pulled: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(last)
    weight, inputs = torch.randn(50, length, generator=generator), torch.randn(100, length, generator=generator)
    scales = (4 / last) * (0.5 + torch.rand(50, 2 * AT_ONCE - 1, generator=generator))  # most ranges cut something off
    middle = torch.randint(0, last + 1, (50, 1), generator=generator).float()
    zeros = (middle + torch.tensor([-1.0, 0.0, 1.0])).clamp(0, last)
    pull = torch.randn(50, length, generator=generator) if pulled else None
    rows = Rows(weight, (inputs.T @ inputs / 100).to(dtype), last, pull)
    found = losses_around(rows, scales, zeros)
    assert found.shape == (50, 2 * AT_ONCE - 1, 3)
    each = [losses_on(rows, scales, zeros[:, [one]].expand_as(scales)) for one in range(3)]
    torch.testing.assert_close(found, torch.stack(each, dim=2), rtol=2e-2, atol=1e-3 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("pulled", [False, True])
def test_no_other_step_size_suits_the_codes_better(pulled: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, inputs = torch.randn(20, 16, generator=generator), torch.randn(100, 16, generator=generator)
    block, pull = inputs.T @ inputs / 100, torch.randn(20, 16, generator=generator) if pulled else None
    scales, zeros = torch.full((20, 1), 0.3), torch.full((20, 1), 7.0)
    levels = ((weight / scales).round() + zeros).clamp(0, LAST) - zeros
    fitted = fitted_steps(Rows(weight, block, LAST, pull), scales, zeros)

    def error(steps: torch.Tensor) -> torch.Tensor:
        difference = levels * steps - weight
        own = ((difference @ block) * difference).sum(dim=1)
        return own if pull is None else own + (pull * difference).sum(dim=1)

    assert fitted.shape == (20, 1)
    assert (error(fitted) <= error(fitted * 1.01)).all()
    assert (error(fitted) <= error(fitted * 0.99)).all()


def test_a_row_of_zeros_keeps_its_step_size() -> None:
    rows, scales = Rows(torch.zeros(2, 8), torch.eye(8), LAST), torch.full((2, 1), 0.5)
    assert torch.equal(fitted_steps(rows, scales, torch.zeros(2, 1)), scales)


def test_a_step_that_is_no_number_gives_a_loss_that_is_none() -> None:
    weight, block = torch.ones(2, 8), torch.eye(8)
    scales, zeros = torch.tensor([[1.0], [torch.nan]]), torch.zeros(2, 1)
    losses = losses_on(Rows(weight, block, LAST), scales, zeros)
    assert torch.equal(losses.isnan(), torch.tensor([[False], [True]]))
