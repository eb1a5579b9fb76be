"""What TensorRT says, handed to us: a logger for either TensorRT, which is given the module that the caller uses.

In: `tensorrt` or `tensorrt_rtx`, imported by the caller, and a function. Out: the logger that calls it. No exception
may come out of that function, since TensorRT calls it from C++.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[Any, str], None]
"""Takes a severity, of which errors are at most `trt.ILogger.ERROR`, and a message."""


def listening_logger(trt: Any, listener: Listener) -> Any:
    """A logger that hands every message over. TensorRT only borrows it: keep it as long as what was made with it."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class exists only once TensorRT is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            listener(severity, message)

    return Logger()
