"""What calibration keeps of an input, against all of it at once in double precision."""

from __future__ import annotations

from pathlib import Path

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


def test_moments_of_narrow_factors_are_as_precise_as_the_search_takes_them() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 512, 250) + 1
    narrow, exact = InputStatistics.empty(250, torch.bfloat16), InputStatistics.empty(250)
    for part in x:
        narrow.add_(part)
        exact.add_(part)
    assert not torch.equal(narrow.gram(), exact.gram())
    torch.testing.assert_close(narrow.gram(), exact.gram(), rtol=2**-8, atol=0)
    assert torch.equal(narrow.magnitude(), exact.magnitude())


def test_more_tokens_may_come_after_moments_were_read() -> None:
    x, statistics = torch.randn(40, 400), InputStatistics.empty(400)
    statistics.add_(x[:20])
    statistics.gram()
    statistics.add_(x[20:])
    torch.testing.assert_close(statistics.gram(), x.T @ x / 40)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_moments_that_were_put_away_are_the_same_bits(device: str, tmp_path: Path) -> None:
    with torch.device(device):
        seen = InputStatistics.empty(5)
        seen.add_(torch.randn(7, 5))
        before = seen.gram()
        seen.put_away_(tmp_path / "moments.npy")
        assert (tmp_path / "moments.npy").is_file() == (device == "cpu")
        for _ in range(2):
            assert torch.equal(seen.gram(), before)
            assert seen.gram().device.type == device
