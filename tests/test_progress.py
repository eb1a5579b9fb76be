"""Progress: what each way of showing it prints, in order, and that failures pass through."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from awq2trt.progress import (
    JsonProgress,
    PlainProgress,
    Progress,
    RichProgress,
    SharedProgress,
    SilentProgress,
    TimeLeft,
    chosen_progress,
    terminal_progress,
)


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


def test_the_time_left_is_right_after_the_third_unit_although_the_first_was_slow() -> None:
    clock = _Clock()
    left = TimeLeft(80, clock)
    assert left.left_s() is None
    for seconds in (100.0, 20.0, 22.0):
        clock.now += seconds
        left.advance_(1)
    assert left.left_s() == pytest.approx(77 * 21)
    clock.now += 10.0  # half a block later, half a block less
    assert left.left_s() == pytest.approx(77 * 21 - 10)
    assert left.elapsed_s == 152


def test_json_for_programs() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = JsonProgress(stream, clock)
    progress.note("reading a model")
    with progress.task("quantizing", total=2) as advance:
        clock.now += 4
        advance(1)
        clock.now += 4
        advance(1)
    task = {"task": "quantizing", "total": 2}
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "note", "message": "reading a model"},
        {"event": "begin", **task},
        {"event": "advance", **task, "done": 1, "elapsed_s": 4.0, "left_s": 4.0},
        {"event": "advance", **task, "done": 2, "elapsed_s": 8.0, "left_s": 0.0},
        {"event": "end", **task, "elapsed_s": 8.0},
    ]


def test_a_file_for_json_does_not_silence_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chosen_progress(tmp_path / "log.jsonl") as progress, progress.task("work", total=1) as advance:
        advance(1)
    assert isinstance(progress, SharedProgress)
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events == ["begin", "advance", "end"]
    assert "work: done" in capsys.readouterr().err


def test_json_on_stderr_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    with chosen_progress(Path("-")) as progress, progress.task("work", total=0):
        progress.note("a word")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["begin", "note", "end"]
