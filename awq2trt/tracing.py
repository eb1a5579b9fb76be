"""Records where time goes: spans of work, written as they end, in the format of Chrome's tracing and Perfetto.

    with traced(Path("trace.json")):
        with span("search scales", linear="q_proj"):
            ...

In: names of spans and what they concern, from any thread. Out: a JSON array of complete events (`ph` X of the Trace
Event Format), one per line, and the names of threads. A file that was cut short by a kill still opens, because the
format allows the closing bracket to be missing. Outside `traced`, a span costs one look-up.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

_MICROSECONDS: Final = 1e6


@dataclass
class _Trace:
    """An open file of events.

    Attributes:
        stream: The file.
        settle: Waits for an accelerator, so that spans of the thread that opened the file include its time. Other
            threads do not wait, since they would wait for that thread's work.
        started: When it was opened.
        threads: Numbers of the threads that have written; 0 is the one that opened the file.
        lock: Held while an event is written.
    """

    stream: TextIO
    settle: Callable[[], None]
    started: float = field(default_factory=time.perf_counter)
    threads: dict[tuple[int, str], int] = field(default_factory=lambda: {_this_thread(): 0})
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """Microseconds since the file was opened."""
        if self.threads.get(_this_thread()) == 0:
            self.settle()
        return (time.perf_counter() - self.started) * _MICROSECONDS

    def write(self, event: dict[str, object]) -> None:
        """Writes an event of this thread, whose name comes before its first one."""
        with self.lock:
            thread = _this_thread()
            if thread not in self.threads:
                self.threads[thread] = len(self.threads)
                self._write({"name": "thread_name", "ph": "M", "args": {"name": thread[1]}}, thread)
            self._write(event, thread)

    def end(self) -> None:
        """Completes the file."""
        with self.lock:
            self.stream.write("{}]\n")
            self.stream.close()

    def _write(self, event: dict[str, object], thread: tuple[int, str]) -> None:
        if not self.stream.closed:  # the thread may have outlived the trace
            self.stream.write(json.dumps({**event, "pid": os.getpid(), "tid": self.threads[thread]}) + ",\n")
            self.stream.flush()


def _this_thread() -> tuple[int, str]:
    """Identifier and name: the former alone may be that of a thread that has ended."""
    return threading.get_ident(), threading.current_thread().name


_OPEN: Final[list[_Trace]] = []
"""The trace of this process, if there is one."""


@contextmanager
def traced(path: Path | None, settle: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Writes every span inside the block to a file.

    Args:
        path: The file; None records nothing.
        settle: Waits for work that was begun but not finished, e.g. on a GPU.
    """
    if path is None:
        yield
        return
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[\n")
        trace = _Trace(stream, settle)
        _OPEN.append(trace)
        try:
            with span("quantize"):
                yield
        finally:
            _OPEN.remove(trace)
            trace.end()


@contextmanager
def span(name: str, **concerns: str | int) -> Iterator[None]:
    """Records one piece of work.

    Args:
        name: Name of the phase, lower case.
        concerns: What the work is on, e.g. a block's number or a linear's name.
    """
    trace = next(iter(_OPEN[:]), None)  # at once: another thread may be closing it
    if trace is None:
        yield
        return
    began = trace.now()
    try:
        yield
    finally:
        trace.write({"name": name, "ph": "X", "ts": began, "dur": trace.now() - began, "args": concerns})
