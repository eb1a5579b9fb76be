"""Where time goes: spans of work, written as they end, in the format that Chrome's tracing and Perfetto open.

    with traced(Path("trace.json")):
        with span("search scales", linear="q_proj"):
            ...

In: names and what they concern. Out: one JSON array of complete events (`ph` X of the Trace Event Format), a line each.
A file that was cut short, as by a kill, still opens: the format allows the closing bracket to be missing. Without
`traced`, a span costs a look-up.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

_MICROSECONDS: Final = 1e6


@dataclass(frozen=True)
class _Trace:
    """An open file of events, and what makes an accelerator finish what it was told, so that spans have its time."""

    stream: TextIO
    started: float
    settle: Callable[[], None]


_TRACE: ContextVar[_Trace | None] = ContextVar("trace", default=None)


@contextmanager
def traced(path: Path | None, settle: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Writes every span in it to a file.

    Args:
        path: Of the file; None to trace nothing.
        settle: Waits for work that was begun and not finished, as on a GPU.
    """
    if path is None:
        yield
        return
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[\n")
        token = _TRACE.set(_Trace(stream, time.perf_counter(), settle))
        try:
            with span("quantize"):
                yield
        finally:
            _TRACE.reset(token)
            stream.write("{}]\n")


@contextmanager
def span(name: str, **concerns: str | int) -> Iterator[None]:
    """One piece of work.

    Args:
        name: Of the phase, lower case.
        concerns: What it works on, e.g. a block's number, a linear's name.
    """
    trace = _TRACE.get()
    if trace is None:
        yield
        return
    trace.settle()
    began = time.perf_counter()
    try:
        yield
    finally:
        trace.settle()
        event = {
            "name": name,
            "ph": "X",
            "ts": (began - trace.started) * _MICROSECONDS,
            "dur": (time.perf_counter() - began) * _MICROSECONDS,
            "pid": os.getpid(),
            "tid": 0,
            "args": concerns,
        }
        trace.stream.write(json.dumps(event) + ",\n")
        trace.stream.flush()
