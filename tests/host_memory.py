"""Host memory in place of a GPU's, so that code for CUDA runs on ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.machine.gpu import Gpu


class HostMemory:
    """A `DeviceMemory` and a stand-in for `CudaMemory`.

    Attributes:
        free_bytes: How much it reports as free.
        written: How often something was copied to it.
    """

    def __init__(self, free_bytes: int = 1 << 40) -> None:
        self.device_type = "cpu"
        self.device_index = 0
        self.gpu = Gpu(0, "NVIDIA Stand-in", (9, 0))
        self.free_bytes = free_bytes
        self.written = 0
        self._buffers: dict[int, NDArray[np.uint8]] = {}

    @property
    def held(self) -> int:
        """Number of buffers that were not freed."""
        return len(self._buffers)

    def read_info(self) -> tuple[int, int]:
        return self.free_bytes, 1 << 40

    def measure_bandwidth(self) -> float:
        return 1e12

    def allocate(self, size_bytes: int) -> int:
        buffer = np.zeros(size_bytes, np.uint8)
        self._buffers[buffer.ctypes.data] = buffer
        return int(buffer.ctypes.data)

    def free(self, address: int) -> None:
        del self._buffers[address]

    def write_(self, address: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self._buffers[address][: array.nbytes] = array.reshape(-1).view(np.uint8)
        self.written += 1

    def read(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        return self._buffers[address][:size_bytes].view(dtype).reshape(shape).copy()
