"""The logger passes on TensorRT's messages, for either TensorRT."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from awq2trt.machine.tensorrt_logger import listening_logger


class _ILogger:
    """TensorRT's logger class, which must be initialised."""

    ERROR = 1
    ready = False

    def __init__(self) -> None:
        self.ready = True


def test_every_message_is_handed_over_with_its_severity() -> None:
    heard: list[tuple[Any, str]] = []
    trt = SimpleNamespace(ILogger=_ILogger)
    logger: Any = listening_logger(trt, lambda severity, message: heard.append((severity, message)))
    assert logger.ready
    logger.log(_ILogger.ERROR, "no")
    assert heard == [(1, "no")]


@pytest.mark.trt
def test_tensorrt_speaks_to_it() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    heard: list[str] = []

    def hear(severity: Any, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            heard.append(message)

    logger = listening_logger(trt, hear)
    assert trt.Runtime(logger).deserialize_cuda_engine(b"not an engine") is None
    assert heard
