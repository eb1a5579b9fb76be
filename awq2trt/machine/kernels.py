"""The kernels of the plugin library on this machine, called through C, so that a benchmark can launch them.

In: the plugin library and the benchmark library beside it (`plugins/library/c_api.h`, `plugins/bench/c_api.h`), device
pointers and a stream. Out: launches. The structures mirror those of `w4a16_linear.h`; a test compares the two.
"""

from __future__ import annotations

import ctypes
from typing import Final

from awq2trt.errors import ToolError
from awq2trt.machine.plugin_library import PluginLibrary

BENCH_LIBRARY_NAME: Final = "libawq2trt_bench.so"

KERNEL_NAMES: Final = ("decode", "tile", "any-group", "decode-once", "warpgroup")

TILE_NAMES: Final = ("16x64", "16x128", "16x192", "32x128", "64x64", "64x128", "64x192", "128x128")

WARPGROUP_TILE_NAMES: Final = ("128x128", "128x192", "256x64", "256x128")


class GemmProblem(ctypes.Structure):
    """`awq2trt::GemmProblem` of w4a16_linear.h."""

    _fields_ = [
        ("m", ctypes.c_int),
        ("n", ctypes.c_int),
        ("k", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("dtype", ctypes.c_int32),
        ("has_zeros", ctypes.c_bool),
        ("has_bias", ctypes.c_bool),
    ]


class KernelConfig(ctypes.Structure):
    """`awq2trt::KernelConfig` of w4a16_linear.h."""

    _fields_ = [
        ("kernel", ctypes.c_int32),
        ("rows_per_block", ctypes.c_int),
        ("warps", ctypes.c_int),
        ("tile", ctypes.c_int32),
        ("warpgroup_tile", ctypes.c_int32),
        ("splits", ctypes.c_int),
        ("k_per_split", ctypes.c_int),
        ("overlap", ctypes.c_bool),
        ("workspace_bytes", ctypes.c_size_t),
    ]

    def __str__(self) -> str:
        if self.kernel == 0:
            return f"decode {self.rows_per_block}x{self.warps}" + ("" if self.overlap else " alone")
        if self.kernel == 1:
            return f"tile {TILE_NAMES[self.tile]}" + (f"/{self.splits}" if self.splits > 1 else "")
        if self.kernel == 4:
            return f"warpgroup {WARPGROUP_TILE_NAMES[self.warpgroup_tile]}"
        return KERNEL_NAMES[self.kernel]


class LinearTensors(ctypes.Structure):
    """`awq2trt::LinearTensors` of w4a16_linear.h: device pointers."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "codes", "scales", "zeros", "bias", "y", "workspace")]


class Kernels:
    """The C interfaces of the plugin library and of the benchmark library beside it.

    Args:
        c: The plugin library.
        ceilings: The benchmark library.
    """

    def __init__(self, c: ctypes.CDLL, ceilings: ctypes.CDLL) -> None:
        self._c = c
        self._ceilings = ceilings

    @classmethod
    def load(cls, library: PluginLibrary) -> Kernels:
        """Loads both libraries.

        Args:
            library: The plugin library's file.

        Raises:
            ToolError: There is no benchmark library, or one of another version.
        """
        c = ctypes.CDLL(str(library.path))
        c.awq2trt_check_validity.restype = ctypes.c_char_p
        return cls(c, _load_bench_library(library))

    def choose_config(self, problem: GemmProblem) -> KernelConfig:
        """Returns the library's own choice for the current device."""
        reason = self._c.awq2trt_check_validity(ctypes.byref(problem))
        if reason is not None:
            raise ToolError(f"there is no kernel for this problem: {reason.decode()}.", where="bench --kernels")
        config = KernelConfig()
        self._check(self._c.awq2trt_choose_config(ctypes.byref(problem), ctypes.byref(config)), "choose_config")
        return config

    def launch(self, problem: GemmProblem, config: KernelConfig, tensors: LinearTensors, stream: int) -> None:
        """Enqueues one call on a CUDA stream."""
        status = self._c.awq2trt_launch(
            ctypes.byref(problem), ctypes.byref(config), ctypes.byref(tensors), ctypes.c_void_p(stream)
        )
        self._check(status, f"launch of {config}")

    def launch_bytes(self, problem: GemmProblem, tensors: LinearTensors, stream: int, *, overlap: bool) -> None:
        """Enqueues one call with 8-bit codes."""
        status = self._c.awq2trt_launch_w8a16(
            ctypes.byref(problem), ctypes.byref(tensors), int(overlap), ctypes.c_void_p(stream)
        )
        self._check(status, "launch with 8-bit codes")

    def launch_mma_ceiling(self, iterations: int, *, normal: bool, sink: int, stream: int) -> None:
        """Enqueues the bare mma.sync loop, on operands that are normally distributed or have one exponent."""
        status = self._ceilings.awq2trt_launch_mma_ceiling(
            iterations, int(normal), ctypes.c_void_p(sink), ctypes.c_void_p(stream)
        )
        self._check(status, "mma")

    def mma_ceiling_flops(self, iterations: int) -> int:
        """Number of operations in one such launch."""
        return int(self._ceilings.awq2trt_mma_ceiling_flops(iterations))

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != 0:
            raise ToolError(f"{what} failed with CUDA error {status}.", where="bench --kernels")


def _load_bench_library(library: PluginLibrary) -> ctypes.CDLL:
    """Loads the library that measures the GPU itself; the same build puts it beside the plugin library."""
    path = library.path.with_name(BENCH_LIBRARY_NAME)
    fix = "run `make plugins`, which builds both libraries into one folder."
    if not path.is_file():
        raise ToolError(f"there is no {BENCH_LIBRARY_NAME} beside {library.path}.", where="bench --kernels", fix=fix)
    try:
        c = ctypes.CDLL(str(path))
        c.awq2trt_bench_version.restype = ctypes.c_char_p
        c.awq2trt_mma_ceiling_flops.restype = ctypes.c_int64
        version = c.awq2trt_bench_version().decode()
    except (OSError, AttributeError) as error:
        raise ToolError(f"this benchmark library cannot be used: {error}.", where=str(path), fix=fix) from error
    if version != library.version:
        raise ToolError(
            f"expected version {library.version}, the same as the plugin library beside it, got {version}.",
            where=str(path),
            fix=fix,
        )
    return c
