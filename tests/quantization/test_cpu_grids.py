"""Losses of candidate grids: the compiled loops against the formula in PyTorch."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization.cpu_grids import AT_ONCE, losses_on

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
    found = losses_on(weight, block, (scales, zeros), LAST, pull)
    in_steps = weight.unsqueeze(1) / scales.unsqueeze(-1)
    codes = (in_steps.round() + zeros.unsqueeze(-1)).clamp(0, LAST)
    difference = (codes - zeros.unsqueeze(-1) - in_steps) * scales.unsqueeze(-1)
    expected = torch.einsum("ncg,gh,nch->nc", difference, block.float(), difference)
    if pull is not None:
        expected += torch.einsum("ng,ncg->nc", pull, difference)
    assert found.shape == (37, candidates)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-4 if dtype == torch.float32 else 2e-2)


def test_a_step_that_is_no_number_gives_a_loss_that_is_none() -> None:
    weight, block = torch.ones(2, 8), torch.eye(8)
    scales, zeros = torch.tensor([[1.0], [torch.nan]]), torch.zeros(2, 1)
    losses = losses_on(weight, block, (scales, zeros), LAST)
    assert torch.equal(losses.isnan(), torch.tensor([[False], [True]]))
