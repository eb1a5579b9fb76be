"""ONNX decoder -> serialized TensorRT-RTX engine, on any machine.

In: the directory of an exported decoder, and a target. Out: `model.engine`, and `build.log` with what TensorRT says.
TensorRT-RTX compiles ahead of time for given compute capabilities and needs no GPU for it. Every engine has two
optimization profiles (`profiles`) over one set of weights. Without a plugin library the function bodies are built,
which TensorRT runs with its own 4-bit kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from awq2trt.artifact.records import ProfileRecord
from awq2trt.engine.profiles import decoder_profiles, profile_shapes
from awq2trt.engine.session import BuilderSession
from awq2trt.errors import ArtifactError, ToolError, UnsupportedError
from awq2trt.graph.inline import has_kernels, inline_bodies_
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.io_contract import ENGINE_FILE, MODEL_FILE
from awq2trt.machine.plugin_library import PluginLibrary, load_into_registry
from awq2trt.progress import Progress, SilentProgress
from awq2trt.target import Flavour, Target

LOG_FILE: Final = "build.log"

_MODULE: Final = "tensorrt_rtx"
_INSTALL: Final = "pip install tensorrt-rtx-cu13"


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        profiles: In the engine's order.
        compute_capabilities: What the engine runs on, as TensorRT names them.
        tensorrt_version: Of the TensorRT-RTX that built it, and that must run it.
    """

    profiles: tuple[ProfileRecord, ...]
    compute_capabilities: tuple[str, ...]
    tensorrt_version: str


def build_engine(
    onnx_path: Path,
    target: Target,
    directory: Path,
    *,
    plugin_library: PluginLibrary | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Builds the engine of an exported decoder into `directory`.

    Args:
        onnx_path: `model.onnx`, or the directory that holds it.
        target: What the engine must run on; a TensorRT-RTX one.
        directory: Gets `model.engine`, under that name only when whole, and `build.log`.
        plugin_library: Kernels to use for the custom operators, carried inside the engine; None for the function
            bodies.
        progress: Gets TensorRT's phases.

    Raises:
        ArtifactError: The model is missing or damaged, or the engine cannot be written.
        ToolError: TensorRT-RTX is not installed or does not load.
        UnsupportedError: The target is not TensorRT-RTX's, or this TensorRT-RTX does not know it.
        BuildError: TensorRT refuses the model; the message names the node.
    """
    _check_target(target)
    onnx_path = onnx_path / MODEL_FILE if onnx_path.is_dir() else onnx_path
    trt = import_tensorrt_rtx()
    serialized, sizes = prepare_model(trt, onnx_path, plugin_library)
    profiles = decoder_profiles(sizes.capacity)
    with BuilderSession(trt, directory / LOG_FILE, progress or SilentProgress(), onnx_path) as session:
        session.parse(serialized)
        capabilities = session.configure(target.compute_capabilities, plugin_library.path if plugin_library else None)
        session.add_profiles([profile_shapes(profile, sizes) for profile in profiles])
        _write_engine(session.build(), directory / ENGINE_FILE)
    return BuildResult(profiles, capabilities, str(trt.__version__))


def import_tensorrt_rtx() -> Any:
    """The module `tensorrt_rtx`.

    Raises:
        ToolError: It is not installed, or its libraries do not load.
    """
    if importlib.util.find_spec(_MODULE) is None:
        raise ToolError("TensorRT-RTX is not installed.", where="build", fix=_INSTALL)
    try:
        return importlib.import_module(_MODULE)
    except (ImportError, OSError) as error:
        raise ToolError(
            f"TensorRT-RTX does not load: {error}.", where="build", fix=f"{_INSTALL} --force-reinstall"
        ) from error


def _check_target(target: Target) -> None:
    if target.flavour is not Flavour.TENSORRT_RTX:
        raise UnsupportedError(
            f"{target.title} needs an engine built by {target.flavour.value} on the device itself.",
            where=f"--target {target.name}",
            fix="choose an RTX target; see `awq2trt targets`.",
        )


def prepare_model(trt: Any, onnx_path: Path, plugin_library: PluginLibrary | None) -> tuple[bytes, DecoderSizes]:
    """A model as the parser shall see it: custom nodes for the plugin, or their bodies in place of them.

    Args:
        trt: The module `tensorrt_rtx`, into whose registry the library is loaded.
        onnx_path: `model.onnx`, or the directory that holds it.
        plugin_library: As of `build_engine`.

    Returns:
        The serialized model, without its weights, and its sizes.
    """
    model, sizes = open_decoder(onnx_path)
    if plugin_library is None:
        inline_bodies_(model)
    else:
        inline_bodies_(model, keep=has_kernels)
        load_into_registry(trt, plugin_library)
    return ir.to_proto(model).SerializeToString(), sizes


def _write_engine(engine: memoryview, path: Path) -> None:
    """Writes the engine under a temporary name, then renames it.

    Raises:
        ArtifactError: The disk is full, or the directory cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(engine)
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"cannot write the engine, {engine.nbytes} bytes: {error.strerror or error}.",
            where=str(path),
            fix="free disk space or choose another output directory.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
