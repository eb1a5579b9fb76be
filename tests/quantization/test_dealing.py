"""What ranks are dealt: all rows once, the same on every rank, GPUs as evenly as their pieces allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from awq2trt.machine.ranks import Ranks
from awq2trt.models.families import describe_model
from awq2trt.models.published_shapes import shape_config
from awq2trt.quantization.dealing import PIECE_WEIGHTS, Rows, deal, dealt_unevenly

LINEARS = {"q": Rows(48, 64, 16), "k": Rows(16, 64, 16), "up": Rows(130, 64, 1), "down": Rows(64, 130, 1)}


@pytest.mark.parametrize("device", ["cpu", "meta"], ids=["cpu", "as on a gpu"])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_row_is_somebody_s_in_whole_units(count: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.quantization.dealing.PIECE_WEIGHTS", 2048)
    with torch.device(device):
        dealt = [deal(LINEARS, Ranks(rank, count)) for rank in range(count)]
    assert all(found == dealt[0] for found in dealt)
    for name, shares in dealt[0].items():
        rows = LINEARS[name]
        assert [row for share in shares for row in range(rows.length)[share.rows]] == list(range(rows.length))
        assert all(share.rows.start % rows.unit == 0 and 0 <= share.rank < count for share in shares)
    uneven = dealt_unevenly(dealt[0], Ranks(0, count))
    assert uneven == (device == "meta" and count > 1)


def test_gpus_take_the_pieces_that_one_would_work_on() -> None:
    rows = Rows(PIECE_WEIGHTS // 1024 + 5, 2048, 1)
    with torch.device("meta"):
        shares = deal({"down": rows, "q": replace(rows, length=7)}, Ranks(0, 2))
    assert [share.rows for share in shares["down"]] == list(rows.pieces())
    assert [share.rows for share in shares["q"]] == [slice(0, 7)]


@pytest.mark.parametrize(("model", "count"), [("llama-3-8b", 2), ("llama-2-70b", 2), ("llama-2-70b", 8)])
def test_gpus_have_about_as_much_to_do(model: str, count: int) -> None:
    """By groups of columns of all pieces, which set the time: a linear of 4,096 columns took a third of down_proj's."""
    spec = describe_model(shape_config(model), [])
    shapes = {name: spec.linear_shape(name) for name in spec.block.linears}
    linears = {name: Rows(length, width, 1) for name, (length, width) in shapes.items()}
    with torch.device("meta"):
        dealt = deal(linears, Ranks(0, count))
    loads = [0] * count
    for name, shares in dealt.items():
        for share in shares:
            loads[share.rank] += linears[name].width
    assert max(loads) < 1.2 * sum(loads) / count
