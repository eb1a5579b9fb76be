"""Pieces side by side: their order, their errors, the settings of PyTorch that they see and leave behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from awq2trt.machine.cores import LEAST_ROWS, even_parts, side_by_side


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_are_in_order_and_computed_by_single_threads(threads: int) -> None:
    with torch.no_grad():
        found = side_by_side(lambda piece: (piece, torch.get_num_threads(), torch.is_grad_enabled()), range(5))
    assert found == [(piece, 1, False) for piece in range(5)]
    assert torch.get_num_threads() == threads


def test_as_many_pieces_are_worked_on_at_a_time_as_there_are_threads(threads: int) -> None:
    together = threading.Barrier(threads)
    side_by_side(lambda _: together.wait(timeout=60), range(2 * threads))


def test_an_error_reaches_the_caller_and_changes_no_setting(threads: int) -> None:
    def fail(piece: int) -> None:
        raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece 0"):
        side_by_side(fail, range(2))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("rows", [1, LEAST_ROWS - 1, LEAST_ROWS, 576, 1536, 1537])
def test_parts_are_even_and_hold_every_row_once(rows: int) -> None:
    parts = even_parts(rows, 512)
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(rows)]
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= 512
    assert max(sizes) - min(sizes) < len(parts)
    assert len(parts) == 1 if rows < LEAST_ROWS else len(parts) % 2 == 0


def test_few_rows_at_once_are_kept_to() -> None:
    assert [part.stop - part.start for part in even_parts(10, 4)] == [4, 4, 2]
