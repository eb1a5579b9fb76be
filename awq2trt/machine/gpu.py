"""NVIDIA GPUs and CUDA on this machine, for ONNX Runtime's CUDA provider, without PyTorch.

In: a device as `--device` names it. Out: the GPU and CUDA's runtime library, ready to use; or one error that says what
is missing and which command installs it. ONNX Runtime itself would log a page of messages and run on the CPU.

The driver (libcuda.so.1) comes with the GPU. cuBLAS, cuRAND and the CUDA runtime come as wheels, from which they are
loaded by path; the provider's library, which looks for them by name, then finds them in the process. Driver API:
https://docs.nvidia.com/cuda/cuda-driver-api; runtime API: https://docs.nvidia.com/cuda/cuda-runtime-api.
"""

from __future__ import annotations

import ctypes
import importlib.util
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import OutOfMemoryError, ToolError, UsageError
from awq2trt.target import CUDA_TARGET, MINIMUM_CAPABILITY, MINIMUM_ONNXRUNTIME, find_target

PROVIDER: Final = "CUDAExecutionProvider"

INSTALL: Final = "pip install 'awq2trt[cuda]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
"""The second command is needed because onnxruntime and onnxruntime-gpu write the same folder, and the last one wins."""

_CPU_INSTEAD: Final = "or run the exported model (DIR/onnx) without --device, on the CPU."

# Each library needs only those before it.
_LIBRARIES: Final = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10")
_WHEELS: Final = {
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libcurand.so.10": "nvidia-curand",
}

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CUDA driver API, enum `CUdevice_attribute`: `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`."""

_NAME_BYTES: Final = 256

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3
"""CUDA runtime API, enum `cudaMemcpyKind`."""

_OUT_OF_MEMORY: Final = 2
"""CUDA runtime API, enum `cudaError_t`: `cudaErrorMemoryAllocation`."""

_COPIED_BYTES: Final = 1 << 30
"""Takes some hundred microseconds even on the fastest GPU, so that starting the copy does not count."""

_COPIES: Final = 15


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Attributes:
        index: Its number, as CUDA counts from 0.
        name: Its name, as the driver says it.
        capability: Compute capability, (major, minor).
    """

    index: int
    name: str
    capability: tuple[int, int]

    @property
    def capability_name(self) -> str:
        """Compute capability as NVIDIA writes it: `8.6`."""
        return f"{self.capability[0]}.{self.capability[1]}"


@dataclass(frozen=True)
class Driver:
    """The CUDA driver.

    Attributes:
        cuda: The latest CUDA that it runs, (major, minor).
        gpus: The GPUs that it finds.
    """

    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


def read_driver() -> Driver | None:
    """Asks the driver; None if there is none. Starts nothing on a GPU."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    if library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if library.cuDeviceGetCount(ctypes.byref(count)):
        return None
    gpus = (_read_gpu(library, index) for index in range(count.value))
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(gpu for gpu in gpus if gpu))


def _read_gpu(library: Any, index: int) -> Gpu | None:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
    capability = [ctypes.c_int(0), ctypes.c_int(0)]
    failed = library.cuDeviceGet(ctypes.byref(device), index) or library.cuDeviceGetName(name, _NAME_BYTES, device)
    for value, attribute in zip(capability, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR), strict=True):
        failed = failed or library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return (
        None if failed else Gpu(index, name.value.decode(errors="replace"), (capability[0].value, capability[1].value))
    )


class CudaMemory:
    """Memory of one GPU, allocated through the CUDA runtime: buffers that a session is bound to and that never move.

    Args:
        runtime: libcudart, as ctypes loads it.
        gpu: The GPU.
    """

    def __init__(self, runtime: Any, gpu: Gpu) -> None:
        self.device_type = "cuda"
        self._runtime = runtime
        self.gpu = gpu
        self.device_index = gpu.index

    def read_info(self) -> tuple[int, int]:
        """Returns free bytes and all bytes."""
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size_bytes: int) -> int:
        """Allocates memory filled with zeros and returns its address.

        Raises:
            OutOfMemoryError: There is too little memory.
        """
        address = ctypes.c_void_p(0)
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        self._call("cudaMemset", address, 0, ctypes.c_size_t(size_bytes))
        self._settle()
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Frees memory."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def write_(self, address: int, array: NDArray[Any]) -> None:
        """Copies a contiguous array to the GPU; it is visible to all streams when this returns."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)
        self._settle()

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Copies memory of the GPU to a new array."""
        array = np.empty(shape, dtype)
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)
        return array

    def measure_bandwidth(self) -> float:
        """Measures the bytes per second that a large copy within the GPU's memory reads and writes."""
        source, destination = (self.allocate(_COPIED_BYTES) for _ in range(2))
        seconds = []
        for _ in range(_COPIES):
            started = time.perf_counter()
            self._copy(destination, source, _COPIED_BYTES, _ON_DEVICE)
            self._settle()
            seconds.append(time.perf_counter() - started)
        for address in (source, destination):
            self.free(address)
        return 2 * _COPIED_BYTES / statistics.median(seconds)

    def _copy(self, destination: int, source: int, size_bytes: int, kind: int) -> None:
        addresses = ctypes.c_void_p(destination), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *addresses, ctypes.c_size_t(size_bytes), kind)

    def _settle(self) -> None:
        """Waits for the default stream, since a copy from pageable memory may return before it has ended.

        ONNX Runtime's stream does not wait for it (CUDA runtime API, "API synchronization behavior").
        """
        self._call("cudaStreamSynchronize", ctypes.c_void_p(0))

    def _call(self, function: str, *arguments: Any) -> None:
        status = self._runtime.cudaSetDevice(self.gpu.index) or getattr(self._runtime, function)(*arguments)
        if status:
            self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self._runtime.cudaGetErrorString(status).decode()
            kind = OutOfMemoryError if status == _OUT_OF_MEMORY else ToolError
            raise kind(
                f"{function} failed on {self.gpu.name}: {reason}.",
                where=f"cuda:{self.gpu.index}",
                fix="check with nvidia-smi what else uses the GPU; a driver in a bad state needs a restart.",
            )


def open_cuda(device: str) -> CudaMemory:
    """Opens the GPU that a device names, with everything that ONNX Runtime's CUDA provider needs on this machine.

    Args:
        device: `cuda`, or `cuda:N` for the Nth GPU from 0.

    Raises:
        UsageError: There is no such device.
        ToolError: Something is missing or too old; the message has the command that installs it.
    """
    gpu = require_gpu(device)
    require_onnxruntime(device)
    return CudaMemory(load_libraries(device), gpu)


def require_gpu(device: str) -> Gpu:
    """Returns the GPU that a device names, after checking that it and its driver are new enough.

    Raises:
        UsageError: There is no such device.
        ToolError: The GPU or the driver is too old.
    """
    where = f"--device {device}"
    index = _index_of(device)
    driver = read_driver()
    if driver is None or not driver.gpus:
        found = "the NVIDIA driver finds no GPU here" if driver else "there is no NVIDIA driver here (libcuda.so.1)"
        raise UsageError(f"{found}.", where=where, fix=f"run this on a machine with an NVIDIA GPU, {_CPU_INSTEAD}")
    if index >= len(driver.gpus):
        raise UsageError(
            f"there is no GPU {index} here; the number of GPUs is {len(driver.gpus)}.", where=where, fix="cuda:0"
        )
    gpu = driver.gpus[index]
    if gpu.capability < MINIMUM_CAPABILITY:
        least = f"{MINIMUM_CAPABILITY[0]}.{MINIMUM_CAPABILITY[1]}"
        raise ToolError(
            f"{gpu.name} has compute capability {gpu.capability_name}, expected {least} or later.",
            where=where,
            fix=f"use a GPU of the Ampere generation or later, {_CPU_INSTEAD}",
        )
    needed = find_target(CUDA_TARGET).cuda
    if needed and driver.cuda[0] < needed[0]:  # a driver runs every minor version of its CUDA major version
        raise ToolError(
            f"the NVIDIA driver runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}, expected {needed[0]}.{needed[1]}.",
            where=where,
            fix=f"install driver 580 or later (https://www.nvidia.com/drivers), {_CPU_INSTEAD}",
        )
    return gpu


def require_onnxruntime(device: str) -> None:
    """Refuses an ONNX Runtime that is missing, too old, or built without CUDA.

    Raises:
        ToolError: It is missing, too old, or built without CUDA.
    """
    where = f"--device {device}"
    if importlib.util.find_spec("onnxruntime") is None:
        raise ToolError("ONNX Runtime is not installed.", where=where, fix=INSTALL)
    import onnxruntime

    version = str(onnxruntime.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_ONNXRUNTIME:
        least = f"{MINIMUM_ONNXRUNTIME[0]}.{MINIMUM_ONNXRUNTIME[1]}"
        raise ToolError(f"ONNX Runtime here is {version}, expected {least} or later.", where=where, fix=INSTALL)
    if PROVIDER not in onnxruntime.get_available_providers():
        raise ToolError(f"ONNX Runtime {version} here was built without CUDA.", where=where, fix=INSTALL)


def load_libraries(device: str) -> Any:
    """Loads CUDA's libraries into the process, from their wheels if these are installed.

    Returns:
        libcudart.

    Raises:
        ToolError: A library is missing; the message names its wheel.
    """
    loaded: dict[str, Any] = {}
    for name in _LIBRARIES:
        try:
            loaded[name] = _load(name)
        except OSError as error:
            raise ToolError(
                f"CUDA's {name} was not found ({error}).",
                where=f"--device {device}",
                fix=f"pip install {_WHEELS[name]}",
            ) from error
    return loaded[_LIBRARIES[0]]


def _load(name: str) -> Any:
    for path in _wheel_files(name):
        return ctypes.CDLL(str(path))
    return ctypes.CDLL(name)  # from a CUDA toolkit on the dynamic linker's path, or already loaded by PyTorch


def _wheel_files(name: str) -> Iterator[Path]:
    """Paths in which NVIDIA's wheels keep a library: `nvidia/cu13/lib`, or a folder per component before CUDA 13."""
    namespace = importlib.util.find_spec("nvidia")
    for folder in namespace.submodule_search_locations or () if namespace else ():
        yield from sorted(Path(folder).glob(f"*/lib/{name}"))


def _index_of(device: str) -> int:
    kind, _, index = device.partition(":")
    if kind != "cuda" or (":" in device and not index.isdigit()):
        raise UsageError(
            f"expected cpu, cuda or cuda:N, got {device!r}.", where="--device", fix="cuda is the first NVIDIA GPU."
        )
    return int(index or 0)
