"""The C++ library on this machine: where it is, and what it needs to run a model from Python.

In: the shared library that `plugins/runtime` builds. Out: its path, and the paths of ONNX Runtime's and TensorRT's own
libraries, which are in their Python packages and which the C++ library opens by itself.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from awq2trt.errors import ToolError
from awq2trt.target import Flavour

LIBRARY_NAME: Final = "libawq2trt.so"
PATH_VARIABLE: Final = "AWQ2TRT_RUNTIME_PATH"

ONNXRUNTIME_VARIABLE: Final = "AWQ2TRT_ONNXRUNTIME"
"""The same as `kLibraryVariable` in plugins/runtime/ort/library.h."""

TENSORRT_VARIABLE: Final = "AWQ2TRT_TENSORRT"
"""The same as `kVariable` in plugins/runtime/trt/engine.cpp."""

_TENSORRT_PACKAGES: Final[Mapping[Flavour, tuple[str, str]]] = {
    Flavour.TENSORRT: ("tensorrt_libs", "libnvinfer.so.*"),
    Flavour.TENSORRT_RTX: ("tensorrt_rtx_libs", "libtensorrt_rtx.so.*"),
}

_PACKAGE: Final = Path(__file__).parents[1]
_BUILD_COMMAND: Final = f"run `make runtime`, or set {PATH_VARIABLE} to a {LIBRARY_NAME}."


def find_runtime_library() -> Path:
    """Finds the library: `AWQ2TRT_RUNTIME_PATH`, or the one in the package, or the one in the build folder.

    Raises:
        ToolError: There is no library.
    """
    override = os.environ.get(PATH_VARIABLE)
    if override:
        if not Path(override).is_file():
            raise ToolError(f"{PATH_VARIABLE} names {override}, which is not a file.", fix=f"correct {PATH_VARIABLE}.")
        return Path(override)
    candidates = (_PACKAGE / "lib" / LIBRARY_NAME, _PACKAGE.parent / "build" / "runtime" / LIBRARY_NAME)
    for path in candidates:
        if path.is_file():
            return path
    folders = " and ".join(str(path.parent) for path in candidates)
    raise ToolError(f"there is no {LIBRARY_NAME} in {folders}.", fix=_BUILD_COMMAND)


def find_onnxruntime_library() -> Path | None:
    """Finds ONNX Runtime's library in its Python package, without importing it; None if the C++ library has to look."""
    return _in_package("onnxruntime", "capi/libonnxruntime.so*", ONNXRUNTIME_VARIABLE)


def find_tensorrt_library(flavour: Flavour) -> Path | None:
    """Finds TensorRT's library in its Python package in the same way."""
    return _in_package(*_TENSORRT_PACKAGES[flavour], TENSORRT_VARIABLE)


def _in_package(package: str, pattern: str, variable: str) -> Path | None:
    """Returns a file of a package; None if it is missing, or if the variable names another."""
    found = None if os.environ.get(variable) else importlib.util.find_spec(package)
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob(pattern)):
            return path
    return None
