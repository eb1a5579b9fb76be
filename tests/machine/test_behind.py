"""Work beside a computation: in order, one piece at a time; on a CPU at once."""

from __future__ import annotations

import threading

import pytest
import torch

from awq2trt.machine.behind import one_behind

_GPU = "meta"  # any device but a CPU


def test_on_a_cpu_each_piece_is_done_at_once() -> None:
    done: list[int] = []
    with one_behind() as behind:
        for number in range(3):
            behind(lambda number=number: done.append(number))  # type: ignore[misc]
            assert done[-1] == number


def test_beside_a_gpu_the_caller_goes_on_and_the_next_piece_waits() -> None:
    may_end, done = threading.Event(), list[str]()

    def slow() -> None:
        assert may_end.wait(10)
        done.append("first")

    with torch.device(_GPU), one_behind() as behind:
        behind(slow)
        assert not done
        may_end.set()
        behind(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


@pytest.mark.parametrize("another", [True, False], ids=["the next piece", "the end"])
def test_what_a_piece_raises_is_raised_by(another: bool) -> None:
    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), torch.device(_GPU), one_behind() as behind:
        behind(fails)
        if another:
            behind(lambda: None)
            pytest.fail("not raised")


def test_an_error_of_the_caller_comes_after_what_is_under_way() -> None:
    done: list[str] = []
    with pytest.raises(ValueError, match="mine"), torch.device(_GPU), one_behind() as behind:
        behind(lambda: done.append("kept"))
        raise ValueError("mine")
    assert done == ["kept"]
