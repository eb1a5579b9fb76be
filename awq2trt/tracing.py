"""Records where time goes: spans of work, written as they end, in the format of Chrome's tracing and Perfetto.

    with traced(Path("trace.json")):
        with span("search scales", linear="q_proj"):
            ...

In: names of spans and what they concern. Out: a JSON array of complete events (`ph` X of the Trace Event Format), one
per line. A file that was cut short by a kill still opens, because the format allows the closing bracket to be missing.
Outside `traced`, a span costs one look-up.
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
    """An open file of events, and a function that waits for an accelerator, so that spans include its time."""

    stream: TextIO
    started: float
    settle: Callable[[], None]


_TRACE: ContextVar[_Trace | None] = ContextVar("trace", default=None)


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
        token = _TRACE.set(_Trace(stream, time.perf_counter(), settle))
        try:
            with span("quantize"):
                yield
        finally:
            _TRACE.reset(token)
            stream.write("{}]\n")


@contextmanager
def span(name: str, **concerns: str | int) -> Iterator[None]:
    """Records one piece of work.

    Args:
        name: Name of the phase, lower case.
        concerns: What the work is on, e.g. a block's number or a linear's name.
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
