"""Starts ONNX Runtime on a decoder, on disk or changed in memory, with one of its execution providers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.errors import ArtifactError, OutOfMemoryError, ToolError
from awq2trt.foreign_files import reading
from awq2trt.graph.provider_file import INLINE_BYTES
from awq2trt.graph.read import load_model, weights_folder
from awq2trt.io_contract import MODEL_FILE, weights_of
from awq2trt.machine.plugin_library import register_custom_ops_

if TYPE_CHECKING:
    import onnxruntime

CPU_PROVIDER: Final = "CPUExecutionProvider"

_WARNINGS, _ERRORS_ONLY = 2, 3
"""ONNX Runtime's log severities; its warnings about our own graphs are of no use to the user."""

_OUT_OF_MEMORY: Final = ("out of memory", "Failed to allocate memory", "Available memory of")
"""ONNX Runtime's messages when its CUDA provider gets no memory: those of CUDA, and those of its own arena."""

_MAKE_AGAIN: Final = "make the model again: awq2trt export CHECKPOINT -o DIR, or awq2trt build"


@dataclass(frozen=True)
class Execution:
    """How ONNX Runtime executes a model.

    Attributes:
        provider: Name of the execution provider; nodes that it does not support run on the CPU.
        provider_options: Its options, by ONNX Runtime's names.
        threads: Threads of the CPU provider; None for ONNX Runtime's own choice.
        operators: Library of custom operators; None if the graph has none.
    """

    provider: str = CPU_PROVIDER
    provider_options: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    operators: Path | None = None


def open_session(
    model: ir.Model | None, path: Path, execution: Execution | None = None
) -> onnxruntime.InferenceSession:
    """Starts ONNX Runtime on a model.

    Weights that were changed in memory are passed as arrays, since a protobuf must not exceed 2 GB.

    Args:
        model: The model in memory, changed since it was read; None to load the file unchanged.
        path: `model.onnx`, or the directory with it and its weights.
        execution: How to execute the model; None for the CPU.

    Raises:
        ArtifactError: ONNX Runtime refuses the model.
        ToolError: ONNX Runtime is not installed, or does not accept the operators.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ToolError("ONNX Runtime is not installed.", where="run", fix="pip install onnxruntime") from error

    execution = execution or Execution()
    file = path / MODEL_FILE if path.is_dir() else path
    if model is None and (file.is_symlink() or file.with_name(weights_of(file.name)).is_symlink()):
        model = load_model(file)  # the file names its weights by a link, which ONNX Runtime does not follow
    folder = file.parent if model is None else weights_folder(model, file.parent)
    quiet = _errors_only(onnxruntime) if execution.provider != CPU_PROVIDER else nullcontext()
    read = reading("a model for ONNX Runtime", path, fix=_MAKE_AGAIN, error=ArtifactError)
    with read, translated_errors(where=str(path)), quiet:
        options = _session_options(onnxruntime, folder, execution)
        source: str | bytes = str(file)
        if model is not None:
            values = _hand_over_weights_(model)
            options.add_external_initializers(list(values), [shared(array) for array in values.values()])
            source = ir.to_proto(model).SerializeToString()
        providers = [(execution.provider, dict(execution.provider_options))]
        return onnxruntime.InferenceSession(source, options, providers=providers)


@contextmanager
def translated_errors(where: str) -> Iterator[None]:
    """Turns errors that ONNX Runtime raises into errors of ours.

    Args:
        where: The file or the device that it uses.

    Raises:
        OutOfMemoryError: A GPU had too little memory.
        ArtifactError: ONNX Runtime refuses the model for another reason.
    """
    try:
        yield
    except Exception as error:  # pybind exposes ONNX Runtime's errors only as classes of a private module
        if not type(error).__module__.startswith("onnxruntime") and type(error) is not RuntimeError:
            raise
        if any(words in str(error) for words in _OUT_OF_MEMORY):
            raise OutOfMemoryError(f"ONNX Runtime: {error}", where=where, fix="free memory of the GPU.") from error
        raise ArtifactError(f"ONNX Runtime refuses the model: {error}", where=where, fix=_MAKE_AGAIN) from error


@contextmanager
def _errors_only(onnxruntime: Any) -> Iterator[None]:
    """Keeps ONNX Runtime's own logger to errors while a session starts.

    Since 1.26 it warns, ignoring the session's options, that no plugin provides the GPU with this `device_id`, although
    the built-in provider does. The earlier severity cannot be queried, so ONNX Runtime's default is restored: warnings.
    """
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)


def shared(array: NDArray[Any]) -> onnxruntime.OrtValue:
    """Shares an array's memory with ONNX Runtime."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


def _session_options(onnxruntime: Any, folder: Path, execution: Execution) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if execution.threads is not None:
        options.intra_op_num_threads = execution.threads
    # Threads that spin while waiting starve each other when cores are shared: SmolLM2-135M on 2 busy cores needs 64 ms
    # per token with them and 35 ms without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if execution.provider != CPU_PROVIDER:
        # Weights get memory of their own, not an arena that grows by blocks.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if execution.operators is not None:
        register_custom_ops_(options, execution.operators)
    return options


def _hand_over_weights_(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Removes the arrays that lowering made from the model, which then only refers to them."""
    taken: dict[str, NDArray[Any]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= INLINE_BYTES:
            continue
        taken[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = ir.ExternalTensor(
            "in-memory", 0, taken[name].nbytes, tensor.dtype, shape=ir.Shape(taken[name].shape), name=name
        )
    return taken
