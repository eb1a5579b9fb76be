"""The kernels that take a panel of columns on a GPU, against the same column by column on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from awq2trt.quantization import panels
from awq2trt.quantization.descent import descend
from awq2trt.quantization.gptq import ErrorSpread, GptqOptions, gptq_round
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import Rounded, group_grid, round_to_grid, to_groups
from awq2trt.scheme import WHOLE_ROW, QuantScheme

pytestmark = pytest.mark.gpu

SCHEMES = [QuantScheme(4, 128), QuantScheme(3, 32, zero_point=False), QuantScheme(2, WHOLE_ROW)]


def _problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and E[x x^T], with an input that is always zero."""
    generator = torch.Generator().manual_seed(columns)
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(2 * columns, columns, generator=generator) @ mixing
    x[:, 5] = 0
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


def _start(weight: torch.Tensor, scheme: QuantScheme) -> Rounded:
    return round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("tied", [False, True], ids=["rows", "heads"])
@pytest.mark.parametrize(("rows", "columns"), [(96, 328), (34, 128)])
def test_codes_descend_as_on_a_cpu(rows: int, columns: int, tied: bool, scheme: QuantScheme) -> None:
    weight, gram = _problem(rows, columns)
    start, gpu = _start(weight, scheme), torch.device("cuda")
    mixing = torch.randn(2, rows // 2, rows, generator=torch.Generator().manual_seed(7))
    moments = mixing @ mixing.mT if tied else None
    expected = descend(weight, start, gram, scheme, passes=2, moments=moments)
    assert panels.has_kernels(weight.to(gpu))
    on_gpu: dict[str, Any] = {"moments": None if moments is None else moments.to(gpu)}
    found = descend(weight.to(gpu), start.to(gpu), gram.to(gpu), scheme, passes=2, **on_gpu)
    assert found.codes.device.type == "cuda"
    assert float((found.codes.cpu() != expected.codes).float().mean()) < 0.01  # a last bit chooses among equals


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_rounds_as_on_a_cpu(act_order: bool, scheme: QuantScheme) -> None:
    weight, gram = _problem(96, 328)
    grid, options, gpu = _start(weight, scheme).grid, GptqOptions(act_order=act_order), torch.device("cuda")
    for given in (grid, None):
        expected = gptq_round(weight, ErrorSpread.of(gram, options), scheme, grid=given)
        on_gpu = given.to(gpu) if given else None
        spread = ErrorSpread.of(gram.to(gpu), options)
        found = gptq_round(weight.to(gpu), spread, scheme, grid=on_gpu).to(torch.device("cpu"))
        errors = [output_error(rounded.dequantize(scheme) - weight, gram) for rounded in (expected, found)]
        assert errors[1] == pytest.approx(errors[0], rel=1e-3)
