"""What all tests share: skips for what this machine lacks, which `--require-gpu` turns into failures.

Nothing here runs at collection time, so that collecting tests never touches CUDA.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Generator
from functools import cache

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="a test marked gpu or trt that would be skipped fails instead",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("needs an NVIDIA GPU, and this machine has none")
    if item.get_closest_marker("trt") and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs TensorRT-RTX: pip install 'awq2trt[rtx]'")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    reason = str(call.excinfo.value) if call.excinfo else ""
    hardware = item.get_closest_marker("gpu") or item.get_closest_marker("trt")
    if hardware and item.config.getoption("--require-gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --require-gpu is given: {reason}"
    elif reason in ("", "unconditional skip"):
        report.outcome = "failed"
        report.longrepr = "skipped without a reason"
    return report


@cache
def _has_gpu() -> bool:
    """Whether the CUDA driver is installed and finds a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
