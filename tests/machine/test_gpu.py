"""GPUs, driver and CUDA's libraries: what is missing is one message with the command that installs it. All faked."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq2trt.errors import Awq2trtError, OutOfMemoryError, ToolError, UsageError
from awq2trt.machine import gpu
from awq2trt.machine.gpu import CudaMemory, Driver, Gpu, open_cuda, require_gpu

H100 = Gpu(0, "NVIDIA H100", (9, 0))
TURING = Gpu(1, "NVIDIA T4", (7, 5))


def _machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    driver: Driver | None = Driver((13, 0), (H100, TURING)),  # noqa: B008  (frozen)
    version: str = "1.31.1",
    providers: tuple[str, ...] = (gpu.PROVIDER, "CPUExecutionProvider"),
    libraries: bool = True,
) -> None:
    """A machine that lacks what a test names."""
    monkeypatch.setattr(gpu, "read_driver", lambda: driver)
    runtime = types.ModuleType("onnxruntime")
    runtime.__version__ = version  # type: ignore[attr-defined]
    runtime.get_available_providers = lambda: list(providers)  # type: ignore[attr-defined]
    runtime.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)

    def load(name: str) -> object:
        if not libraries and "curand" in name:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(gpu, "_load", load)


def test_a_whole_machine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch)
    assert open_cuda("cuda").gpu == open_cuda("cuda:0").gpu == H100


@pytest.mark.parametrize(
    ("device", "lacking", "error", "says", "fix"),
    [
        ("cuda", {"driver": None}, UsageError, "no NVIDIA driver here", "machine with an NVIDIA GPU"),
        ("cuda", {"driver": Driver((13, 0), ())}, UsageError, "finds no GPU", "machine with an NVIDIA GPU"),
        ("cuda:2", {}, UsageError, "no GPU 2 here; the number of GPUs is 2", "cuda:0"),
        ("cuda:x", {}, UsageError, "expected cpu, cuda or cuda:N", "first NVIDIA GPU"),
        ("gpu", {}, UsageError, "expected cpu, cuda or cuda:N", "first NVIDIA GPU"),
        ("cuda:1", {}, ToolError, "T4 has compute capability 7.5, expected 8.0", "Ampere"),
        ("cuda", {"driver": Driver((12, 8), (H100,))}, ToolError, "up to 12.8, expected 13.0", "driver 580"),
        ("cuda", {"version": "1.26.0"}, ToolError, "1.26.0, expected 1.27", r"awq2trt\[cuda\]"),
        ("cuda", {"providers": ("CPUExecutionProvider",)}, ToolError, "without CUDA", "--no-deps onnxruntime-gpu"),
        ("cuda", {"libraries": False}, ToolError, r"libcurand\.so\.10 was not found", "pip install nvidia-curand"),
    ],
)
def test_what_is_missing_is_one_message(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    lacking: dict[str, Any],
    error: type[Awq2trtError],
    says: str,
    fix: str,
) -> None:
    _machine(monkeypatch, **lacking)
    with pytest.raises(error, match=says) as raised:
        open_cuda(device)
    assert re.search(fix, raised.value.fix or "")


def test_a_driver_of_a_later_minor_version_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, driver=Driver((13, 2), (H100,)))
    assert require_gpu("cuda") == H100


def test_a_library_comes_from_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcurand.so.10").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: path)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")]),
    )
    assert gpu._load("libcurand.so.10") == str(folder / "libcurand.so.10")
    assert gpu._load("libcublas.so.13") == "libcublas.so.13"  # the dynamic linker's path


class _Runtime:
    """libcudart on host memory; counts waits for the default stream."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self.cudaGetErrorString = _named(b"out of memory")
        self._buffers: list[Any] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self._failing:
                return 2
            if name == "cudaMalloc":
                self._buffers.append(ctypes.create_string_buffer(arguments[1].value))
                arguments[0]._obj.value = ctypes.addressof(self._buffers[-1])
            elif name == "cudaMemcpy":
                ctypes.memmove(arguments[0], arguments[1], arguments[2].value)
            return 0

        return call


def _named(text: bytes) -> Any:
    def describe(_status: int) -> bytes:
        return text

    return describe


def test_what_is_written_is_read_and_no_stream_runs_ahead_of_it() -> None:
    runtime = _Runtime()
    memory = CudaMemory(runtime, H100)
    address = memory.allocate(64)
    runtime.calls.clear()
    memory.write_(address, np.arange(8, dtype=np.int64))
    assert runtime.calls[-1] == "cudaStreamSynchronize"  # a copy from pageable memory returns early
    assert memory.read(address, (2, 4), np.dtype(np.int64)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_failing_call_says_why() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"cudaMalloc failed on NVIDIA H100: out of memory\. Fix: check with nvidia-smi"
    ):
        CudaMemory(_Runtime(failing="cudaMalloc"), H100).allocate(64)
