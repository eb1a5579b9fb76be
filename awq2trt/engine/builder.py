"""ONNX decoder -> serialized TensorRT-RTX engine, on any machine.

TensorRT-RTX compiles ahead of time for given compute capabilities and needs no GPU for it. Every engine has two
optimization profiles over one set of weights: `prefill` (many new tokens) and `decode` (one). Without a plugin library
the function bodies are built, which TensorRT runs with its own 4-bit kernels. What TensorRT says goes to `build.log`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from awq2trt.engine.session import BuilderSession, ShapeRanges
from awq2trt.errors import ArtifactError, ToolError, UnsupportedError
from awq2trt.graph.inline import inline_bodies
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.io_contract import CACHE_POSITION, ENGINE_FILE, INPUT_IDS, MODEL_FILE, cache_names
from awq2trt.machine.plugin_library import PluginLibrary, load_into_registry
from awq2trt.progress import Progress, SilentProgress
from awq2trt.target import Flavour, Target

LOG_FILE: Final = "build.log"

TYPICAL_PREFILL: Final = 512
"""Prompt length that TensorRT chooses prefill kernels for; any up to the capacity works."""

_MODULE: Final = "tensorrt_rtx"
_INSTALL: Final = "pip install tensorrt-rtx-cu13"


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        plugin_library: Kernels to use for the custom operators, carried inside the engine; None for the function
            bodies.
    """

    plugin_library: PluginLibrary | None = None


@dataclass(frozen=True)
class OptimizationProfile:
    """Numbers of new tokens that a call of this profile may have.

    Attributes:
        name: `prefill` or `decode`; the index of the profile is its place in `BuildResult.profiles`.
        typical: What kernels are chosen for.
    """

    name: str
    shortest: int
    typical: int
    longest: int


@dataclass(frozen=True)
class BuildResult:
    """What was built.

    Attributes:
        files: Every file written, the engine first.
        profiles: In the engine's order.
        compute_capabilities: What the engine runs on, as TensorRT names them.
        tensorrt_version: Of the TensorRT-RTX that built it, and that must run it.
    """

    files: tuple[Path, ...]
    profiles: tuple[OptimizationProfile, ...]
    compute_capabilities: tuple[str, ...]
    tensorrt_version: str


def build_engine(
    onnx_path: Path,
    target: Target,
    directory: Path,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Builds the engine of an exported decoder into `directory`.

    Args:
        onnx_path: `model.onnx`, or the directory that holds it.
        target: What the engine must run on; a TensorRT-RTX one.
        directory: Gets `model.engine`, under that name only when whole, and `build.log`.
        options: How to build.
        progress: Gets TensorRT's phases.

    Raises:
        ArtifactError: The model is missing or damaged, or the engine cannot be written.
        ToolError: TensorRT-RTX is not installed or does not load.
        UnsupportedError: The target is not TensorRT-RTX's, or this TensorRT-RTX does not know it.
        BuildError: TensorRT refuses the model; the message names the node.
    """
    plugin = (options or BuildOptions()).plugin_library
    _check_target(target)
    onnx_path = onnx_path / MODEL_FILE if onnx_path.is_dir() else onnx_path
    trt = import_tensorrt_rtx()
    serialized, sizes = _prepare(trt, onnx_path, plugin)
    profiles = _profiles(sizes)
    with BuilderSession(trt, directory / LOG_FILE, progress or SilentProgress(), onnx_path) as session:
        session.parse(serialized)
        capabilities = session.configure(target.compute_capabilities, plugin.path if plugin else None)
        session.add_profiles([_profile_shapes(profile, sizes) for profile in profiles])
        _write_engine(session.build(), directory / ENGINE_FILE)
    return BuildResult(
        files=(directory / ENGINE_FILE, directory / LOG_FILE),
        profiles=profiles,
        compute_capabilities=capabilities,
        tensorrt_version=str(trt.__version__),
    )


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


def _prepare(trt: Any, onnx_path: Path, plugin: PluginLibrary | None) -> tuple[bytes, DecoderSizes]:
    """The model as the parser shall see it: custom nodes for the plugin, or their bodies in place of them."""
    model, sizes = open_decoder(onnx_path)
    if plugin is None:
        inline_bodies(model)
    else:
        load_into_registry(trt, plugin)
    return ir.to_proto(model).SerializeToString(), sizes


def _profiles(sizes: DecoderSizes) -> tuple[OptimizationProfile, ...]:
    return (
        OptimizationProfile("prefill", 1, min(TYPICAL_PREFILL, sizes.capacity), sizes.capacity),
        OptimizationProfile("decode", 1, 1, 1),
    )


def _profile_shapes(profile: OptimizationProfile, sizes: DecoderSizes) -> ShapeRanges:
    """Shapes of all inputs in a profile: one conversation, its cache of fixed length."""
    lengths = (profile.shortest, profile.typical, profile.longest)
    caches = cache_names("past", sizes.num_layers)
    return {
        INPUT_IDS: ((1, lengths[0]), (1, lengths[1]), (1, lengths[2])),
        CACHE_POSITION: ((1,), (1,), (1,)),
        **dict.fromkeys(caches, (sizes.cache_shape, sizes.cache_shape, sizes.cache_shape)),
    }


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
