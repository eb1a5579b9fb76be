"""GPU memory through the CUDA driver, on a stand-in: copies, and an error code for each refusal."""

from __future__ import annotations

import os
import subprocess

import pytest
from native_text import BUILD

from awq2trt.runtime.native_library import NO_DRIVER, OUT_OF_DEVICE_MEMORY, WRONG_DEVICE

PROGRAM = BUILD / "tests" / "memory_on_stub"


def run(device: int = 0, size_bytes: int = 64, **variables: str) -> str:
    if not PROGRAM.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    line = [str(PROGRAM), str(device), str(size_bytes)]
    return subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout


def test_copies_are_what_was_copied() -> None:
    assert run().startswith("ok, ")
    assert run(STUB_ALLOCATOR="1").startswith("ok, ")


def test_what_is_free_is_what_the_driver_says_unless_the_host_shares_it() -> None:
    assert run(STUB_FREE_MIB="300") == "ok, free 300 MiB of 1024\n"
    assert run(STUB_FREE_MIB="300", STUB_INTEGRATED="1") == "ok, free 1024 MiB of 1024\n"


@pytest.mark.parametrize(
    ("device", "size_bytes", "variables", "code", "says"),
    [
        (0, 64, {"STUB_COUNT": "0"}, NO_DRIVER, "finds no GPU"),
        (0, 64, {"STUB_CUDA": "12090"}, NO_DRIVER, "runs CUDA up to 12.9, expected 13.0"),
        (1, 64, {}, WRONG_DEVICE, "there are 1"),
        (0, 64, {"STUB_MAJOR": "7"}, WRONG_DEVICE, "A stub has compute capability 7.0, expected 8.0 or later"),
        (0, 1 << 40, {}, OUT_OF_DEVICE_MEMORY, "cuMemAlloc failed: out of memory"),
    ],
)
def test_what_is_refused(device: int, size_bytes: int, variables: dict[str, str], code: int, says: str) -> None:
    found = run(device, size_bytes, **variables)
    assert found.startswith(f"{code} ")
    assert says in found
    assert "fix: " in found
