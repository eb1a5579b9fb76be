"""ONNX decoder -> serialized TensorRT-RTX engine, on any machine.

In: the directory of an exported decoder, and a target. Out: `model.engine`, and `build.log` with TensorRT's messages.
TensorRT-RTX compiles ahead of time for given compute capabilities and needs no GPU for it. Every engine has two
optimization profiles (`profiles`) that share one set of weights. With the plugin library, the graph is fused first
(`fusion`), and the library's kernels run its operators. Without it, TensorRT builds the function bodies, which it runs
with its own 4-bit kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from awq2trt.artifact.records import Contents, ProfileRecord
from awq2trt.engine.profiles import contract_shapes, decoder_profiles, profile_shapes, profiles_beside
from awq2trt.engine.session import BuilderSession
from awq2trt.errors import ArtifactError, ToolError, UnsupportedError
from awq2trt.graph.basic_ops import drop_functions_
from awq2trt.graph.fusion import fuse_
from awq2trt.graph.inline import has_kernels, inline_bodies_
from awq2trt.graph.int8_cache import quantize_cache_
from awq2trt.graph.provider_file import save_model
from awq2trt.graph.read import DecoderSizes, load_model, open_decoder, operators_of, read_sizes
from awq2trt.io_contract import DECODER, ENGINE_FILE, MODEL_FILE, engine_of_graph
from awq2trt.machine.plugin_library import PluginLibrary, load_into_registry
from awq2trt.progress import Progress, SilentProgress
from awq2trt.target import Flavour, Target

LOG_FILE: Final = "build.log"

_MODULE: Final = "tensorrt_rtx"
_INSTALL: Final = "pip install tensorrt-rtx-cu13"


@dataclass(frozen=True)
class GraphOptions:
    """How the graph is changed before TensorRT sees it.

    Attributes:
        fusion: Whether, with the library, linears are merged and its fused operators are used.
        int8_cache: Whether keys and values are kept as codes (`int8_cache`); needs fusion.
    """

    fusion: bool = True
    int8_cache: bool = False


@dataclass(frozen=True)
class BuildResult:
    """The result of a build.

    Attributes:
        profiles: The profiles, in the engine's order.
        compute_capabilities: What the engine runs on, as TensorRT names them.
        tensorrt_version: Version of the TensorRT-RTX that built the engine and has to run it.
        operators: Our operators that the engine calls, by name, with the version of each.
    """

    profiles: tuple[ProfileRecord, ...]
    compute_capabilities: tuple[str, ...]
    tensorrt_version: str
    operators: Mapping[str, str]


@dataclass(frozen=True)
class PreparedModel:
    """A model as the parser will see it.

    Attributes:
        serialized: The model without its weights.
        path: The model's file; its weights are beside it.
        sizes: Sizes of the decoder.
        operators: Its custom operators, by name, with the version of each.
    """

    serialized: bytes
    path: Path
    sizes: DecoderSizes
    operators: Mapping[str, str]


def build_engine(
    onnx_path: Path,
    target: Target,
    directory: Path,
    *,
    plugin_library: PluginLibrary | None = None,
    graph: GraphOptions | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Builds the engine of an exported decoder into `directory`.

    Args:
        onnx_path: `model.onnx`, or its directory.
        target: What the engine must run on; a TensorRT-RTX one.
        directory: Receives `model.engine`, which has that name only when it is complete, and `build.log`.
        plugin_library: Kernels for the custom operators, stored inside the engine; None for the function bodies.
        graph: How the graph is changed; None for the defaults.
        progress: Receives TensorRT's phases.

    Raises:
        ArtifactError: The model is missing or damaged, or the engine cannot be written.
        ToolError: TensorRT-RTX is not installed or does not load.
        UnsupportedError: The target is not TensorRT-RTX's, or this TensorRT-RTX does not know it; or the graph cannot
            be changed as `graph` says.
        BuildError: TensorRT refuses the model; the message names the node.
    """
    _check_target(target)
    onnx_path = onnx_path / MODEL_FILE if onnx_path.is_dir() else onnx_path
    trt = import_tensorrt_rtx()
    with (
        BuilderSession(trt, directory / LOG_FILE, progress or SilentProgress(), onnx_path) as session,
        tempfile.TemporaryDirectory(dir=directory, prefix=".fused-") as work,
    ):
        graph = graph or GraphOptions()
        folder = Path(work) if graph.fusion else None
        model = prepare_model(trt, onnx_path, plugin_library, folder, int8_cache=graph.int8_cache)
        session.parse(model.serialized, model.path)
        capabilities = session.configure(target.compute_capabilities, plugin_library.path if plugin_library else None)
        profiles = decoder_profiles(model.sizes.capacity)
        session.add_profiles([profile_shapes(profile, model.sizes) for profile in profiles])
        _write_engine(session.build(), directory / ENGINE_FILE)
    return BuildResult(profiles, capabilities, str(trt.__version__), model.operators)


def build_beside(
    onnx_directory: Path,
    contents: Contents,
    target: Target,
    directory: Path,
    *,
    plugin_library: PluginLibrary | None = None,
    progress: Progress | None = None,
) -> dict[str, tuple[ProfileRecord, ...]]:
    """Builds the engines of the graphs beside a decoder, whose names follow from those of the graphs' files.

    Args:
        onnx_directory: Directory of the exported model.
        contents: What its manifest says.
        target: As of `build_engine`.
        directory: Gets the engines, and a log for every graph.
        plugin_library: As of `build_engine`.
        progress: As of `build_engine`.

    Returns:
        Profiles of each engine, by graph.

    Raises:
        Awq2trtError: As `build_engine` does.
    """
    made: dict[str, tuple[ProfileRecord, ...]] = {}
    if not contents.beside:
        return made
    trt, capacity = import_tensorrt_rtx(), contents.graphs[DECODER].io.capacity
    for name, graph in contents.beside.items():
        path = onnx_directory / graph.model
        model = load_model(path)
        _take_operators_(trt, model, plugin_library)
        library = plugin_library.path if plugin_library and operators_of(model) else None
        log = directory / log_of(graph.model)
        with BuilderSession(trt, log, progress or SilentProgress(), path) as session:
            session.parse(ir.to_proto(model).SerializeToString(), path)
            session.configure(target.compute_capabilities, library)
            made[name] = profiles_beside(name, capacity, contents.model.vision if contents.model else None)
            session.add_profiles([contract_shapes(profile, graph.io) for profile in made[name]])
            _write_engine(session.build(), directory / engine_of_graph(graph.model))
    return made


def log_of(model_file: str) -> str:
    """Name of what TensorRT says of a graph; of a decoder it is `LOG_FILE`."""
    return LOG_FILE if model_file == MODEL_FILE else f"{model_file.removesuffix('.onnx')}-{LOG_FILE}"


def import_tensorrt_rtx() -> Any:
    """Imports the module `tensorrt_rtx`.

    Raises:
        ToolError: It is not installed, or its libraries do not load.
    """
    if importlib.util.find_spec(_MODULE) is None:
        raise ToolError("TensorRT-RTX is not installed.", where="build", fix=_INSTALL)
    try:
        return importlib.import_module(_MODULE)
    except (ImportError, OSError) as error:
        raise ToolError(
            f"TensorRT-RTX cannot be loaded: {error}.", where="build", fix=f"{_INSTALL} --force-reinstall"
        ) from error


def _check_target(target: Target) -> None:
    if target.flavour is not Flavour.TENSORRT_RTX:
        raise UnsupportedError(
            f"{target.title} needs an engine built by {target.flavour.value} on the device itself.",
            where=f"--target {target.name}",
            fix="choose an RTX target; see `awq2trt targets`.",
        )


def prepare_model(
    trt: Any,
    onnx_path: Path,
    plugin_library: PluginLibrary | None,
    work: Path | None = None,
    *,
    int8_cache: bool = False,
) -> PreparedModel:
    """Prepares a model for the parser: with custom nodes for the plugins, or with the bodies of these nodes.

    Args:
        trt: The module `tensorrt_rtx`, into whose registry the library is loaded.
        onnx_path: `model.onnx`, or its directory.
        plugin_library: The same as in `build_engine`.
        work: An empty folder for the weights of a fused graph, needed until the engine is built; None to leave the
            graph as it was exported.
        int8_cache: Whether a fused graph keeps keys and values as codes.

    Raises:
        ArtifactError: The model is missing or damaged, or the weights cannot be written.
        UnsupportedError: The cache cannot be int8.
    """
    onnx_path = onnx_path / MODEL_FILE if onnx_path.is_dir() else onnx_path
    model, sizes = open_decoder(onnx_path)
    _take_operators_(trt, model, plugin_library)
    if plugin_library is None or work is None:
        return PreparedModel(ir.to_proto(model).SerializeToString(), onnx_path, sizes, operators_of(model))
    drop_functions_(model)
    fuse_(model)
    if int8_cache:
        quantize_cache_(model)
        sizes = read_sizes(model, onnx_path)
    try:
        save_model(model, work)
    except OSError as error:
        raise ArtifactError(
            f"cannot write the fused graph's weights: {error.strerror or error}.",
            where=str(work),
            fix="free disk space, choose another output directory, or build with --no-fusion.",
        ) from error
    fused = work / MODEL_FILE
    return PreparedModel(fused.read_bytes(), fused, sizes, operators_of(model))


def _take_operators_(trt: Any, model: ir.Model, plugin_library: PluginLibrary | None) -> None:
    """Leaves custom nodes to the plugins, which are loaded, or puts their bodies in their place."""
    if plugin_library is None:
        inline_bodies_(model)
    else:
        inline_bodies_(model, keep=has_kernels)
        load_into_registry(trt, plugin_library)


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
            f"cannot write the engine ({engine.nbytes} bytes): {error.strerror or error}.",
            where=str(path),
            fix="free disk space or choose another output directory.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
