"""A logger that passes TensorRT's messages to us; it works with the module of either TensorRT.

In: `tensorrt` or `tensorrt_rtx`, imported by the caller, and a function. Out: the logger that calls it. That function
must not raise, since TensorRT calls it from C++.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[Any, str], None]
"""Takes a severity (errors have at most `trt.ILogger.ERROR`) and a message."""


def listening_logger(trt: Any, listener: Listener) -> Any:
    """Makes a logger that passes messages on. TensorRT only borrows it: keep it as long as what was made with it."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class exists only once TensorRT is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            listener(severity, message)

    return Logger()
