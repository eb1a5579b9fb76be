"""Chooses what runs a model: ONNX Runtime's Python package, or the C++ library.

In: a directory, and the user's choice, or AUTO. Out: the loaded model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from awq2trt.artifact.manifest import MANIFEST_FILE, read_manifest
from awq2trt.errors import Awq2trtError, ToolError, UnsupportedError
from awq2trt.machine.runtime_library import find_runtime_library
from awq2trt.progress import Progress, SilentProgress
from awq2trt.runtime.loaded_model import AUTO, DEFAULT_BACKEND, NATIVE, Model
from awq2trt.runtime.native import NativeModel
from awq2trt.runtime.native_library import NO_RUNTIME
from awq2trt.runtime.ort.loading import DeviceOptions

_LOWERED: Final = "lowered"
"""The kind of models built for `cpu` or `cuda`, which both can run, with the same tokens."""


def load_model(
    directory: Path,
    options: DeviceOptions,
    *,
    backend: str = AUTO,
    golden: bool = True,
    progress: Progress | None = None,
) -> Model | NativeModel:
    """Loads a model with the chosen backend.

    Args:
        directory: A directory that `export` or `build` wrote.
        options: Where the model runs.
        backend: `AUTO` takes the C++ library for models built for `cpu` or `cuda`, if it is installed and supports all
            of the model, and otherwise ONNX Runtime's package. `NATIVE` and `DEFAULT_BACKEND` take only that one.
        golden: Check the golden outputs on the first run on a GPU.
        progress: Receives what runs the model, and why the C++ library does not; None for silence.

    Raises:
        Awq2trtError: Whatever `Model.load` and `NativeModel.load` raise.
    """
    progress = progress or SilentProgress()
    if backend == NATIVE:
        return NativeModel.load(directory, options, golden=golden, progress=progress)
    if backend == AUTO:
        if _is_lowered(directory) and _library_is_there():
            try:
                return NativeModel.load(directory, options, golden=golden, progress=progress)
            except Awq2trtError as error:
                if not _other_may(error):
                    raise
                progress.note(f"the C++ library cannot run this model: {error.what}")
        backend = DEFAULT_BACKEND
    return Model.load(directory, options, backend=backend, golden=golden, progress=progress)


def _is_lowered(directory: Path) -> bool:
    return (directory / MANIFEST_FILE).is_file() and read_manifest(directory, None).kind == _LOWERED


def _library_is_there() -> bool:
    try:
        find_runtime_library()
    except ToolError:
        return False
    return True


def _other_may(error: Awq2trtError) -> bool:
    """Whether ONNX Runtime's package, with more tokenizers and templates, may run what the C++ library refuses."""
    return isinstance(error, UnsupportedError) or vars(error).get("code") == NO_RUNTIME
