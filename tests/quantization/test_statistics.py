"""What calibration keeps of an input, against all of it at once in double precision."""

from __future__ import annotations

import pytest
import torch

from awq2trt.quantization.statistics import SYRK_COLUMNS, InputStatistics


@pytest.mark.parametrize("channels", [1, 24, SYRK_COLUMNS, SYRK_COLUMNS + 1, 2 * SYRK_COLUMNS + 70])
def test_moments_are_those_of_all_tokens(channels: int) -> None:
    torch.manual_seed(channels)
    x, statistics = torch.randn(50, channels), InputStatistics.empty(channels)
    statistics.add_(x[:20])
    statistics.add_(x[20:])
    wide = x.double()
    torch.testing.assert_close(statistics.gram(), (wide.T @ wide / 50).float())
    torch.testing.assert_close(statistics.mean(), wide.mean(dim=0).float())
    torch.testing.assert_close(statistics.magnitude(), wide.abs().mean(dim=0).float())
    assert torch.equal(statistics.gram(), statistics.gram().T)


def test_more_tokens_may_come_after_moments_were_read() -> None:
    x, statistics = torch.randn(40, 400), InputStatistics.empty(400)
    statistics.add_(x[:20])
    statistics.gram()
    statistics.add_(x[20:])
    torch.testing.assert_close(statistics.gram(), x.T @ x / 40)
