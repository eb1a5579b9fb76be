"""Progress of long work: a protocol that stages report to, and what shows it.

    with progress.task("quantizing", total=30) as advance:
        for block in blocks:
            ...
            advance(1)

Stages take a `Progress` and never print. The command line hands them bars with the time left on a terminal,
plain lines when the output is a file or a pipe; library callers get `SilentProgress` unless they ask for more.
Tasks may be nested. Everything goes to stderr, so that stdout holds results alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

Advance = Callable[[int], None]
"""Says that so many more units of a task are done."""

PLAIN_INTERVAL_S: Final = 10.0
"""A log of an hour's work stays readable at a line every ten seconds, and still shows that it moves."""


class Progress(Protocol):
    """What a stage reports to.

        awq2trt.export("out/checkpoint", "out/again", progress=awq2trt.terminal_progress())

    Any class with these two methods will do.
    """

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Starts a task of `total` units, which ends with the `with` block.

        Args:
            description: What is being done, lower case, e.g. `searching scales`.
            total: Units of work; 0 is allowed.
        """

    def note(self, message: str) -> None:
        """Shows one line that stays, e.g. the result of a task."""


class SilentProgress:
    """Shows nothing.

        class Notes(awq2trt.SilentProgress):
            def note(self, message):
                print(message)

        awq2trt.export("out/checkpoint", "out/noted", progress=Notes())

    A class that shows some of it derives from this one.
    """

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Ignores the task."""
        yield _ignore

    def note(self, message: str) -> None:
        """Ignores the line."""


class PlainProgress:
    """Lines of text for logs: one when a task starts, one every few seconds, one when it ends.

    Args:
        stream: Where lines go; stderr if None.
        clock: Seconds, monotonic.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Prints the task's lines."""
        started = said = self._clock()
        done = 0
        self.note(f"{description} ...")

        def advance(units: int) -> None:
            nonlocal done, said
            done += units
            now = self._clock()
            if done < total and now - said >= PLAIN_INTERVAL_S:
                said = now
                left = (now - started) / done * (total - done) if done else 0.0
                self.note(f"{description}: {done}/{total}, {_clock_text(left)} left")

        yield advance
        self.note(f"{description}: done in {_clock_text(self._clock() - started)}")

    def note(self, message: str) -> None:
        """Prints the line at once."""
        print(message, file=self._stream or sys.stderr, flush=True)


class RichProgress:
    """Bars on a terminal, with the time gone and the time left. Nested tasks get bars of their own."""

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
        bar = bars.add_task(description, total=total)
        try:
            yield lambda units: bars.advance(bar, units)
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


def terminal_progress() -> Progress:
    """What suits stderr: bars on a terminal, lines otherwise.

        progress = awq2trt.terminal_progress()
        awq2trt.export("out/checkpoint", "out/shown", progress=progress)

    Returns:
        Bars or lines, for one stage after another.
    """
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def _new_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _ignore(units: int) -> None:
    del units
