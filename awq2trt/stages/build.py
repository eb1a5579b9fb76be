"""`awq2trt build`: all stages from a model to an engine, a kit or a lowered model; what is current is kept.

In: a model and options. Out, below one directory: an artifact of each stage, handed over as it is done.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.artifact.golden import loosen_golden_
from awq2trt.artifact.manifest import Artifact, fingerprint_of, record_file
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY, ONNX_DIRECTORY
from awq2trt.artifact.publish import can_resume, create_artifact
from awq2trt.artifact.records import EngineRecord, Profiles
from awq2trt.errors import BuildError, ToolError, UnsupportedError, UsageError
from awq2trt.io_contract import DECODER
from awq2trt.models.sources.opening import open_source
from awq2trt.models.spec import ModelSpec
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE, Recipe
from awq2trt.stages.export import ExportRequest, export_checkpoint, export_fingerprint
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.stages.opening import (
    cache_error,
    current_or_none,
    exported_contents,
    file_hashes,
    refuse_missing_device,
    refuse_writing_over_source,
    source_record,
)
from awq2trt.stages.quantize import (
    QuantizeRequest,
    checkpoint_bytes,
    quantize_bytes,
    quantize_fingerprint,
    quantize_source,
)
from awq2trt.stages.readiness import (
    require_calibration,
    require_exportable,
    require_int8_attention,
    require_outputs,
    require_target,
    require_whole_model,
)
from awq2trt.target import Target, find_target

if TYPE_CHECKING:
    from awq2trt.engine.builder import BuildResult
    from awq2trt.machine.plugin_library import PluginLibrary


@dataclass(frozen=True)
class BuildRequest:
    """`awq2trt build`.

    Attributes:
        model: Directory, .gguf file, hub id or packaged model.
        output: Directory below which every stage gets its own.
        options: Options of all stages.
        overwrite: Replace what is in those directories, whatever it is.
        force: Make a kit although the prediction says that the model does not fit.
        tar: Also pack a kit into one file.
        ssh: USER@HOST of the Jetson that shall finish a kit.
        device: Where PyTorch quantizes.
    """

    model: str
    output: Path
    options: Recipe
    overwrite: bool = False
    force: bool = False
    tar: bool = False
    ssh: str | None = None
    device: str = DEFAULT_DEVICE


def build_stage(request: BuildRequest, progress: Progress) -> Iterator[Artifact]:
    """Model -> checkpoint -> ONNX -> engine, kit or lowered model, each as it is done; what is current is kept.

    An interrupted run is resumed where it has the same inputs and options. A kit is finished where that can be done.

    Raises:
        UnsupportedError: Engines for the target are not built here, or the model does not fit it.
    """
    from awq2trt.stages import kit as kit_stage

    request = replace(request, options=request.options.for_device())
    target = _wanted_target(request)
    refuse_missing_device(request.device)
    kit = kit_stage.KitRequest(
        target=target,
        output=request.output / target.name,
        options=request.options,
        overwrite=request.overwrite,
        force=request.force,
        tar=request.tar,
        ssh=request.ssh,
    )
    require_target(target, request.options.build, ssh=request.ssh)
    if target.is_kit:
        kit_stage.require_fit(request.model, kit, progress)
    checkpoint = _current_checkpoint(request, target, progress)
    yield checkpoint
    onnx = _current_onnx(request, checkpoint, progress)
    yield onnx
    spec = kit_stage.model_spec(str(checkpoint.directory))
    if target.is_lowered:
        lowering = LowerRequest(
            target,
            kit.output,
            plugin=request.options.build.plugin is not False,
            fusion=request.options.build.fusion,
            int8_cache=request.options.build.cache == "int8",
            overwrite=request.overwrite,
        )
        yield lower_stage(onnx, spec, lowering, progress)
        return
    if not target.is_kit:
        yield _current_engine(request, target, onnx, spec, progress)
        return
    made = kit_stage.make_kit(onnx, spec, kit, progress)
    yield made
    kit_stage.deliver(made, kit, progress)


def _wanted_target(request: BuildRequest) -> Target:
    """The target, known before hours of work whether it can be built for."""
    name = request.options.build.target
    if name is None:
        raise UsageError(
            "no target given.", where="--target", fix="`awq2trt targets` lists them; rtx suits most cards."
        )
    target = find_target(name)
    if target.is_kit:
        if request.options.build.plugin is False:
            raise UsageError(
                "a kit's engine always uses our kernels.", where="--no-plugin", fix="leave --no-plugin out."
            )
        return target
    if request.tar or request.ssh is not None:
        raise UsageError(
            f"only a kit for an Orin needs to be finished, not a build for {target.title}.",
            where="--tar" if request.tar else "--ssh",
            fix="leave it out, or choose an Orin target.",
        )
    if target.compute_capabilities and platform.machine() != target.cpu:
        raise UnsupportedError(
            f"an engine for {target.title} needs {target.cpu}; TensorRT-RTX builds for the CPU it runs on, here "
            f"{platform.machine()}.",
            where=f"--target {target.name}",
            fix=f"run the same command on any {target.cpu} Linux, with or without a GPU.",
        )
    return target


def _current_checkpoint(request: BuildRequest, target: Target, progress: Progress) -> Artifact:
    """The checkpoint, and before it all that later stages would refuse."""
    progress.note(f"reading {request.model}")
    source = open_source(request.model)
    output, options = request.output / CHECKPOINT_DIRECTORY, request.options.quantize
    refuse_writing_over_source(source, output)
    require_calibration(source, options)
    require_exportable(source, request.options.export)
    require_int8_attention(source.spec, target, request.options)
    # In the end, checkpoint, ONNX model and what is built of it lie there together, each at least as large.
    expected_bytes = max(quantize_bytes(source, options), 3 * checkpoint_bytes(source, options))
    require_outputs(request.output, target, overwrite=request.overwrite, expected_bytes=expected_bytes)
    record = source_record(source)
    fingerprint = quantize_fingerprint(source, record, options)
    current = current_or_none(output, "checkpoint", fingerprint, progress)
    if current is not None:
        return current
    require_whole_model(source, progress)
    resume = can_resume(output, fingerprint) and not request.overwrite
    quantize = QuantizeRequest(
        request.model, output, options, resume=resume, overwrite=request.overwrite, device=request.device
    )
    return quantize_source(source, record, quantize, progress)


def _current_onnx(request: BuildRequest, checkpoint: Artifact, progress: Progress) -> Artifact:
    output = request.output / ONNX_DIRECTORY
    options = request.options.export
    current = current_or_none(output, "onnx", export_fingerprint(checkpoint.manifest.files, options), progress)
    if current is not None:
        return current
    export = ExportRequest(checkpoint.directory, output, options, overwrite=request.overwrite)
    return export_checkpoint(checkpoint, export, progress)


def _engine_fingerprint(request: BuildRequest, target: Target, onnx: Artifact, library: PluginLibrary | None) -> str:
    """Fingerprint of an engine: it covers everything that the engine depends on."""
    from awq2trt.engine.builder import import_tensorrt_rtx

    return fingerprint_of(
        kind="engine",
        onnx=file_hashes(onnx.manifest.files),
        target=target.name,
        gpu=list(_gpu_of(target)),
        tensorrt=str(import_tensorrt_rtx().__version__),
        plugin=record_file(library.path) if library else None,
        fusion=request.options.build.fusion,
        cache=request.options.build.cache,
    )


def _current_engine(
    request: BuildRequest, target: Target, onnx: Artifact, spec: ModelSpec, progress: Progress
) -> Artifact:
    """Returns the engine of an exported model; it is built only if it is not current."""
    from awq2trt.engine.builder import GraphOptions, build_beside, build_engine
    from awq2trt.graph.int8_cache import int8_contract

    output, int8_cache = request.output / target.name, request.options.build.cache == "int8"
    library = _plugin_library(request.options.build.plugin, progress)
    fingerprint = _engine_fingerprint(request, target, onnx, library)
    current = current_or_none(output, "engine", fingerprint, progress)
    if current is not None:
        return current
    expected_bytes = 2 * sum(record.size_bytes for record in onnx.manifest.files.values())
    with create_artifact(
        output, "engine", fingerprint, overwrite=request.overwrite, expected_bytes=expected_bytes
    ) as draft:
        contents, graph = exported_contents(onnx, spec), GraphOptions(request.options.build.fusion, int8_cache)
        with _kept_logs(draft.files, request.output / target.name):
            given = (onnx.directory, target, draft.files)
            result = build_engine(*given, plugin_library=library, graph=graph, progress=progress)
            beside = build_beside(
                onnx.directory, contents, target, draft.files, plugin_library=library, progress=progress
            )
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        if int8_cache:
            loosen_golden_(draft.files, cache_error(spec))
        record = _engine_record(target, result, library, beside)
        changed = {"engine": record, "operators": {**contents.operators, **result.operators}}
        decoder = contents.graphs[DECODER].io
        contents = contents.model_copy(update=changed)
        return draft.publish(contents.with_engines(int8_contract(decoder) if int8_cache else decoder))


def _engine_record(
    target: Target, result: BuildResult, library: PluginLibrary | None, beside: Profiles
) -> EngineRecord:
    """What the manifest says about engines that were just built, of the decoder and of the graphs beside it."""
    return EngineRecord(
        target=target.name,
        compute_capabilities=result.compute_capabilities,
        flavour=target.flavour.value,
        tensorrt_version=result.tensorrt_version,
        plugin_version=library.version if library else None,
        profiles={DECODER: result.profiles, **beside},
        gpu=_gpu_of(target)[0],
    )


def _gpu_of(target: Target) -> tuple[str | None, str | None]:
    """Name and compute capability of the GPU here, if it is what the target stands for; else nothing."""
    from awq2trt.runtime.trt.engine import this_machine

    if target.compute_capabilities:
        return None, None
    machine = this_machine()
    return machine.gpu, machine.capability


def _plugin_library(wanted: bool | None, progress: Progress) -> PluginLibrary | None:
    """The library to build with; None for TensorRT's own kernels.

    Raises:
        ToolError: It is asked for, by flag or by path, and is not there.
    """
    from awq2trt.machine.plugin_library import PATH_VARIABLE, find_plugin_library

    if wanted is False:
        return None
    try:
        return find_plugin_library()
    except ToolError as error:
        if wanted or os.environ.get(PATH_VARIABLE):
            raise
        progress.note(f"no plugin library, so the engine will use TensorRT's own kernels; to have ours: {error.fix}")
        return None


@contextmanager
def _kept_logs(work: Path, kept_as: Path) -> Iterator[None]:
    """Saves TensorRT's last log from the work directory, which a failure removes, and reports where it is."""
    from awq2trt.engine.builder import LOG_FILE

    try:
        yield
    except BuildError as error:
        logs = sorted(work.glob(f"*{LOG_FILE}"), key=lambda path: path.stat().st_mtime_ns)
        if not logs:
            raise
        kept = kept_as.with_name(f"{kept_as.name}-{logs[-1].name}")
        kept.write_bytes(logs[-1].read_bytes())
        raise BuildError(error.what, where=error.where, fix=f"{kept} holds all that TensorRT said.") from error
