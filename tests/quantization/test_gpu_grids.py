"""The kernel that searches grids on a GPU, against the same search by PyTorch's operations."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization import grids
from awq2trt.quantization.grids import GridOptions, search_grids
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import round_to_grid, with_steps_of
from awq2trt.scheme import BFLOAT16, FLOAT16, WHOLE_ROW, QuantScheme

SCHEMES = [QuantScheme(4, 128), QuantScheme(3, 32, zero_point=False), QuantScheme(2, 64), QuantScheme(4, WHOLE_ROW)]


def test_a_cpu_and_other_types_than_bf16_have_no_kernels() -> None:
    weight, scheme = torch.ones(4, 64), QuantScheme(group_size=32)
    assert not grids._fits_kernels(weight, torch.eye(64).bfloat16(), scheme)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("passes", [0, 2])
def test_grids_are_those_of_the_same_search_by_calls(
    passes: int, scheme: QuantScheme, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, steps = torch.Generator().manual_seed(3), with_steps_of(scheme, dtype)
    weight, x = torch.randn(70, 168, generator=generator), torch.randn(400, 168, generator=generator)
    weight[2], weight[3] = 0, weight[3].abs()
    with torch.device("cuda"):
        weight, gram = weight.cuda(), (x.T @ x / len(x)).cuda()
        fits = grids._fits_kernels(weight, gram.bfloat16(), scheme)
        assert fits == (scheme.group_of(168) <= grids.LONGEST_KERNEL_GROUP)
        found = search_grids(weight, gram, steps, GridOptions(passes=passes))
        monkeypatch.setattr(grids, "_fits_kernels", lambda *_: False)
        expected = search_grids(weight, gram, steps, GridOptions(passes=passes))
    assert torch.equal(found.scales, found.scales.to(getattr(torch, dtype)).float())
    if not passes:  # calls round their products to bf16, so that further looks go other ways to grids that are as good
        assert float((found.scales == expected.scales).float().mean()) > 0.8
    errors = [output_error(round_to_grid(weight, g, steps).dequantize(steps) - weight, gram) for g in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.005)
