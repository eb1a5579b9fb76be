"""Progress of long work: a protocol that stages report to, and the classes that show it.

    with progress.task("quantizing", total=30) as advance:
        for block in blocks:
            ...
            advance(1)

Stages take a `Progress` and never print. The command line hands them bars with the time left on a terminal, plain lines
when the output is a file or a pipe; library callers get `SilentProgress` unless they ask for more. Tasks may be nested.
Everything goes to stderr, so that stdout holds nothing but results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

Advance = Callable[[int], None]
"""Reports that this many more units of a task are done."""

STDERR: Final = "-"
"""The file name that stands for stderr."""

PLAIN_INTERVAL_S: Final = 10.0
"""Seconds between lines: the log of an hour's work stays readable, and still shows that the work moves."""


_STEADY_UNITS: Final = 2


class Progress(Protocol):
    """What a stage reports to.

        awq2trt.export("out/checkpoint", "out/again", progress=awq2trt.terminal_progress())

    Any class with these two methods will do.
    """

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Starts a task of `total` units; it ends with the `with` block.

        Args:
            description: What is being done, lower case, e.g. `searching scales`.
            total: Units of work; 0 is allowed.
        """

    def note(self, message: str) -> None:
        """Shows one line that stays on the screen, e.g. the result of a task."""


class TimeLeft:
    """Estimates how long a task will still take from how long its units have taken so far.

    The first unit includes what happens only once (loading libraries, choosing kernels), so it is left out as soon as
    there are two others.

    Args:
        total: Number of units.
        clock: Returns seconds, never less than before.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._started = clock()
        self._first = (self._started, 0)  # when the first units were done, and how many there were
        self._last = (self._started, 0)

    @property
    def done(self) -> int:
        """Number of units done so far."""
        return self._last[1]

    @property
    def elapsed_s(self) -> float:
        """Seconds since the task began."""
        return self._clock() - self._started

    def advance_(self, units: int) -> None:
        """Counts this many more units as done."""
        self._last = (self._clock(), self._last[1] + units)
        if self._first[1] == 0:
            self._first = self._last

    def left_s(self) -> float | None:
        """Seconds left; None before the first unit is done."""
        (now, done), (began, skipped) = self._last, self._first
        if done - skipped < _STEADY_UNITS:
            began, skipped = self._started, 0
        if done == skipped:
            return None
        pace = (now - began) / (done - skipped)
        return max(0.0, pace * (self._total - done) - (self._clock() - now))


class SilentProgress:
    """Shows nothing.

        class Notes(awq2trt.SilentProgress):
            def note(self, message):
                print(message)

        awq2trt.export("out/checkpoint", "out/noted", progress=Notes())

    Derive a class from this one to show only some of the progress.
    """

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Ignores the task."""
        yield _ignore

    def note(self, message: str) -> None:
        """Ignores the line."""


class PlainProgress:
    """Prints lines for logs: one when a task starts, one every few seconds, one when it ends.

    Args:
        stream: Where lines go; stderr if None.
        clock: Returns seconds, never less than before.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Prints the task's lines."""
        said, time_left = self._clock(), TimeLeft(total, self._clock)
        self.note(f"{description} ...")

        def advance(units: int) -> None:
            nonlocal said
            time_left.advance_(units)
            now = self._clock()
            if time_left.done < total and now - said >= PLAIN_INTERVAL_S:
                said = now
                left = time_left.left_s() or 0.0
                self.note(f"{description}: {time_left.done}/{total}, {_clock_text(left)} left")

        yield advance
        self.note(f"{description}: done in {_clock_text(time_left.elapsed_s)}")

    def note(self, message: str) -> None:
        """Prints the line at once."""
        print(message, file=self._stream or sys.stderr, flush=True)


class RichProgress:
    """Shows bars on a terminal, with the time spent and the time left. Nested tasks get bars of their own."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._open_tasks = 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Shows a bar while the task runs; the outermost task's bar stays when it is done."""
        bars = self._bars = self._bars or _new_bars()
        if self._open_tasks == 0:
            bars.start()
        self._open_tasks += 1
        time_left = TimeLeft(total)
        bar = bars.add_task(description, total=total, time_left=time_left)

        def advance(units: int) -> None:
            time_left.advance_(units)
            bars.advance(bar, units)

        try:
            yield advance
        finally:
            self._open_tasks -= 1
            if self._open_tasks == 0:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(bar)

    def note(self, message: str) -> None:
        """Prints the line above the bars."""
        if self._bars is None:
            print(message, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(message, markup=False, highlight=False)


class JsonProgress:
    """Writes JSON for programs: one object a line, for every task that begins, advances or ends, and for every note.

    Keys: `event` (`begin`, `advance`, `end`, `note`); `task` and `total` in the first three; `done`, `elapsed_s` and
    `left_s` (null while unknown) in `advance`; `elapsed_s` in `end`; `message` in `note`. A task that fails has no
    `end`. Keys may be added; none will change its meaning.

    Args:
        stream: Where lines go.
        clock: Returns seconds, never less than before.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Writes the task's lines."""
        time_left = TimeLeft(total, self._clock)
        self._write(event="begin", task=description, total=total)

        def advance(units: int) -> None:
            time_left.advance_(units)
            left = time_left.left_s()
            self._write(
                event="advance",
                task=description,
                total=total,
                done=time_left.done,
                elapsed_s=round(time_left.elapsed_s, 3),
                left_s=None if left is None else round(left, 3),
            )

        yield advance
        self._write(event="end", task=description, total=total, elapsed_s=round(time_left.elapsed_s, 3))

    def note(self, message: str) -> None:
        """Writes the line at once."""
        self._write(event="note", message=message)

    def _write(self, **event: object) -> None:
        print(json.dumps(event), file=self._stream, flush=True)


class SharedProgress:
    """Passes everything on to several listeners.

    Args:
        listeners: Those that are told, in this order.
    """

    def __init__(self, *listeners: Progress) -> None:
        self._listeners = listeners

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Starts the task with each listener."""
        with ExitStack() as stack:
            advances = [stack.enter_context(listener.task(description, total)) for listener in self._listeners]

            def advance(units: int) -> None:
                for each in advances:
                    each(units)

            yield advance

    def note(self, message: str) -> None:
        """Shows the line with each listener."""
        for listener in self._listeners:
            listener.note(message)


def terminal_progress() -> Progress:
    """Returns what suits stderr: bars on a terminal, lines otherwise.

        progress = awq2trt.terminal_progress()
        awq2trt.export("out/checkpoint", "out/shown", progress=progress)

    Returns:
        Bars or lines, for one stage after another.
    """
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


@contextmanager
def chosen_progress(json_file: Path | None) -> Iterator[Progress]:
    """Returns what suits stderr, and also writes JSON for programs if it is wanted.

    Args:
        json_file: Where JSON goes in addition; `-` writes JSON to stderr instead; None writes none.
    """
    if json_file is None:
        yield terminal_progress()
    elif str(json_file) == STDERR:
        yield JsonProgress(sys.stderr)
    else:
        with json_file.open("w", encoding="utf-8") as stream:
            yield SharedProgress(terminal_progress(), JsonProgress(stream))


def _new_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        _left_column(),
        console=Console(stderr=True),
    )


def _left_column() -> ProgressColumn:
    """A column with the time left. rich's own forgets units older than half a minute, less than a large block takes."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class TimeLeftColumn(ProgressColumn):
        def render(self, task: Any) -> Text:
            left = task.fields["time_left"].left_s()
            return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")

    return TimeLeftColumn()


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _ignore(units: int) -> None:
    del units
