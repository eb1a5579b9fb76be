"""Progress: what each way of showing it prints, in order, and that failures pass through."""

from __future__ import annotations

import io
import sys

import pytest

from awq2trt.progress import PlainProgress, Progress, RichProgress, SilentProgress, terminal_progress


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_start_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), _Clock()
    with PlainProgress(stream, clock).task("searching scales", total=30) as advance:
        for _ in range(30):
            clock.now += 3.0
            advance(1)
    assert stream.getvalue().splitlines() == [
        "searching scales ...",
        "searching scales: 4/30, 1:18 left",
        "searching scales: 8/30, 1:06 left",
        "searching scales: 12/30, 0:54 left",
        "searching scales: 16/30, 0:42 left",
        "searching scales: 20/30, 0:30 left",
        "searching scales: 24/30, 0:18 left",
        "searching scales: 28/30, 0:06 left",
        "searching scales: done in 1:30",
    ]


def test_plain_hours() -> None:
    stream, clock = io.StringIO(), _Clock()
    with PlainProgress(stream, clock).task("long", total=1):
        clock.now = 2 * 3600 + 61
    assert stream.getvalue().splitlines()[-1] == "long: done in 2:01:01"


def test_a_failed_task_does_not_say_done() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), PlainProgress(stream).task("building", total=1):
        raise KeyError("x")
    assert stream.getvalue() == "building ...\n"


@pytest.mark.parametrize(
    "progress", [SilentProgress(), PlainProgress(), RichProgress()], ids=lambda p: type(p).__name__
)
def test_nested_and_empty_tasks_leave_stdout_clean(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.task("outer", total=2) as outer, progress.task("inner [g128]", total=0):
        outer(1)
        progress.note("layer [3] done")
    with progress.task("again", total=1) as again:
        again(1)
    assert capsys.readouterr().out == ""


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(terminal_progress(), PlainProgress)
