"""Work beside a computation: in order, up to a number of pieces; or at once."""

from __future__ import annotations

import threading

import pytest

from awq2trt.machine.behind import working_behind


def test_with_nothing_behind_each_piece_is_done_at_once() -> None:
    done: list[int] = []
    with working_behind(0) as behind:
        for number in range(3):
            behind(lambda number=number: done.append(number))  # type: ignore[misc]
            assert done[-1] == number


@pytest.mark.parametrize("most", [1, 2])
def test_the_caller_goes_on_until_too_many_pieces_wait(most: int) -> None:
    may_end, done = threading.Event(), list[int]()

    def slow() -> None:
        assert may_end.wait(10)
        done.append(0)

    with working_behind(most) as behind:
        behind(slow)
        for number in range(1, most):
            behind(lambda number=number: done.append(number))  # type: ignore[misc]
        assert not done
        threading.Timer(0.1, may_end.set).start()
        behind(lambda: done.append(most))
        assert done[0] == 0  # it had to be waited for
    assert done == [*range(most + 1)]


@pytest.mark.parametrize("another", [True, False], ids=["the next piece", "the end"])
@pytest.mark.parametrize("most", [1, 2])
def test_what_a_piece_raises_is_raised_by(another: bool, most: int) -> None:
    done: list[str] = []

    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), working_behind(most) as behind:
        behind(fails)
        for _ in range(most if another else most - 1):
            behind(lambda: done.append("after it"))
        assert not another
    assert not done


def test_if_the_caller_fails_only_what_is_under_way_is_done() -> None:
    began, may_end, done = threading.Event(), threading.Event(), list[str]()

    def kept() -> None:
        began.set()
        assert may_end.wait(10)
        done.append("kept")

    with pytest.raises(ValueError, match="mine"), working_behind(2) as behind:
        behind(kept)
        behind(lambda: done.append("not begun"))
        assert began.wait(10)
        threading.Timer(0.1, may_end.set).start()
        raise ValueError("mine")
    assert done == ["kept"]
