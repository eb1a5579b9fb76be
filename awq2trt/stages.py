"""The stages as the command line runs them: read one artifact, do the work, publish the next.

Each stage takes a frozen request, and returns what the command prints. Nothing here computes: the work is in
`quantize`, `export`, `build`, `run` and `evaluate`, which know nothing of manifests. Heavy imports happen inside the
stages that need them, so that `--help` loads nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact import (
    MANIFEST_FILE,
    Artifact,
    CalibrationRecord,
    Contents,
    EngineRecord,
    FileRecord,
    Kind,
    ProfileRecord,
    QuantizationRecord,
    SourceRecord,
    can_resume,
    current_artifact,
    fingerprint_of,
    record_file,
)
from awq2trt.errors import BuildError, ToolError, UnsupportedError, UsageError
from awq2trt.golden import FORMAT_VERSION as GOLDEN_VERSION
from awq2trt.io_contract import MODEL_FILE
from awq2trt.opset import CODE_BITS
from awq2trt.progress import Progress
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.source import CONFIG_FILE, ModelSource, copy_tokenizer, open_source, read_config
from awq2trt.target import Target, find_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from awq2trt.check.bisect import Cut
    from awq2trt.check.chain import CheckResult
    from awq2trt.check.engine import EngineBuild
    from awq2trt.check.golden import GoldenResult
    from awq2trt.check.polygraphy_files import Command
    from awq2trt.checkpoint import QuantizedCheckpoint
    from awq2trt.evaluate import Perplexity
    from awq2trt.export import ExportResult
    from awq2trt.golden import Golden
    from awq2trt.inspection import Inspection
    from awq2trt.plugin_library import PluginLibrary
    from awq2trt.run import Sampling
    from awq2trt.tasks import Example, TaskScore

CHECKPOINT_DIRECTORY: Final = "checkpoint"
ONNX_DIRECTORY: Final = "onnx"
"""What `awq2trt build -o DIR` makes in DIR, beside a directory named after the target."""
CHECK_DIRECTORY: Final = "check"
"""What `awq2trt check DIR` adds."""

DEFAULT_DEVICE: Final = "cpu"
"""Where PyTorch computes unless the user says otherwise."""

_FP16_BYTES: Final = 2
_FP32_BYTES: Final = 4


# quantize


@dataclass(frozen=True)
class QuantizeRequest:
    """`awq2trt quantize`.

    Attributes:
        model: Directory, .gguf file, hub id or packaged model.
        output: The checkpoint's directory.
        options: How to quantize.
        resume: Go on with an interrupted run.
        overwrite: Replace what is in `output`, whatever it is.
        device: Where PyTorch computes. Not one of the options: it says where, not what.
    """

    model: str
    output: Path
    options: QuantizeOptions
    resume: bool = False
    overwrite: bool = False
    device: str = DEFAULT_DEVICE


def quantize_stage(request: QuantizeRequest, progress: Progress) -> Artifact:
    """Model -> quantized checkpoint."""
    _require_device(request.device)
    progress.note(f"reading {request.model}")
    source = open_source(request.model)
    _refuse_writing_over_source(source, request.output)
    return _quantize(source, source_record(source), request, progress)


def _require_device(name: str) -> None:
    """Refuses a device that is not there before any work. PyTorch need not be loaded to know that the CPU is."""
    if name != DEFAULT_DEVICE:
        from awq2trt.device import require_device

        require_device(name)


def _quantize(source: ModelSource, record: SourceRecord, request: QuantizeRequest, progress: Progress) -> Artifact:
    from awq2trt.device import computing_on
    from awq2trt.quantize.job import QuantizeJob

    with (
        computing_on(request.device) as device,
        Artifact.create(
            request.output,
            "checkpoint",
            quantize_fingerprint(record, request.options),
            resume=request.resume,
            overwrite=request.overwrite,
            expected_bytes=_quantize_bytes(source, request.options),
        ) as draft,
    ):
        if request.device != DEFAULT_DEVICE:
            progress.note(f"computing on {device}")
        job = QuantizeJob(source, request.options, files=draft.files, scratch=draft.scratch, progress=progress)
        result = job.run()
        calibration = None
        sha256 = result.tokens_sha256()
        if result.tokens is not None and sha256 is not None:
            calibration = CalibrationRecord(
                text=_portable_name(request.options.calib),
                sha256=sha256,
                samples=result.tokens.shape[0],
                seqlen=result.tokens.shape[1],
                seed=request.options.seed,
            )
        quantization = QuantizationRecord(
            method=request.options.method,
            scheme=request.options.scheme,
            calibration=calibration,
            effort=request.options.effort if "awq" in request.options.method else None,
        )
        return draft.publish(Contents(source=record, quantization=quantization))


def quantize_fingerprint(record: SourceRecord, options: QuantizeOptions) -> str:
    """Fingerprint of the checkpoint that these weights and options give."""
    calib = Path(options.calib).expanduser()
    text = record_file(calib) if calib.is_file() else None
    portable = options.model_copy(update={"calib": _portable_name(options.calib)})
    return fingerprint_of(kind="checkpoint", source=record, options=portable, calib=text)


def source_record(source: ModelSource) -> SourceRecord:
    """What the manifest says of a model; hashes its weight files."""
    return SourceRecord(
        model=_portable_name(source.name),
        family=source.spec.family,
        files={path.name: record_file(path) for path in source.files},
    )


def _portable_name(name: str) -> str:
    """A local path's last part; anything else as it is."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _refuse_writing_over_source(source: ModelSource, output: Path) -> None:
    if output.resolve() in {path.resolve().parent for path in source.files}:
        raise UsageError(
            "the output directory is the model's own.", where=str(output), fix="give another directory with -o."
        )


def _quantize_bytes(source: ModelSource, options: QuantizeOptions) -> int:
    """Disk that quantizing takes at most: the checkpoint twice (blocks, then merged), and two residual streams."""
    spec, scheme = source.spec, options.scheme
    block = 0
    for name in spec.block.linears:
        rows, columns = spec.linear_shape(name)
        group_bytes = _FP16_BYTES + scheme.bits / 8
        block += int(rows * (columns * scheme.bits / 8 + scheme.groups(columns) * group_bytes))
    outer = _FP16_BYTES * spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
    hidden = 0 if options.method == "rtn" else _FP32_BYTES * options.samples * options.seqlen * spec.hidden_size
    return 2 * spec.num_layers * block + outer + 2 * hidden


# export


@dataclass(frozen=True)
class ExportRequest:
    """`awq2trt export`.

    Attributes:
        checkpoint: Directory of a quantized checkpoint, ours or another tool's.
        output: Directory of the ONNX model.
        options: How to export.
        overwrite: Replace what is in `output`, whatever it is.
    """

    checkpoint: Path
    output: Path
    options: ExportOptions
    overwrite: bool = False


def export_stage(request: ExportRequest, progress: Progress) -> Artifact:
    """Quantized checkpoint -> ONNX model."""
    if request.checkpoint.resolve() == request.output.resolve():
        raise UsageError(
            "the output directory is the checkpoint's own.", where=str(request.output), fix="give another with -o."
        )
    made_by_us = (request.checkpoint / MANIFEST_FILE).is_file()
    return _export(Artifact.open(request.checkpoint, kind="checkpoint") if made_by_us else None, request, progress)


def _export(artifact: Artifact | None, request: ExportRequest, progress: Progress) -> Artifact:
    """Exports a checkpoint; `artifact` is None where another tool made it."""
    from awq2trt.checkpoint import QuantizedCheckpoint
    from awq2trt.export import ExportOptions as GraphOptions
    from awq2trt.export import export_onnx

    checkpoint = QuantizedCheckpoint(request.checkpoint)
    options = request.options
    with Artifact.create(
        request.output,
        "onnx",
        export_fingerprint(_checkpoint_files(checkpoint, artifact), options),
        overwrite=request.overwrite,
        expected_bytes=sum(path.stat().st_size for path in checkpoint.files),
    ) as draft:
        graph_options = GraphOptions(
            max_seq_len=options.max_seq_len, function_bodies=options.function_bodies, dtype=options.dtype
        )
        result = export_onnx(checkpoint, draft.files, options=graph_options, progress=progress)
        if checkpoint.scheme.bits < CODE_BITS:
            progress.note(
                f"{checkpoint.scheme.bits}-bit codes are exported as {CODE_BITS}-bit ones: the model computes the "
                "same and is no smaller than one quantized to 4 bits"
            )
        if artifact is None:
            _prove_import(checkpoint, draft.files / MODEL_FILE, progress)
        copy_tokenizer(request.checkpoint, draft.files)
        _write_golden(checkpoint, draft.files, result, progress)
        source, quantization = _origin(checkpoint, artifact)
        return draft.publish(Contents(source=source, quantization=quantization, io=result.contract))


def _write_golden(checkpoint: QuantizedCheckpoint, directory: Path, result: ExportResult, progress: Progress) -> None:
    """What the model must say, from the checkpoint itself, beside the model that was made of it."""
    from awq2trt.check.golden import TEXT, make_golden
    from awq2trt.golden import write_golden
    from awq2trt.run import ChatTokenizer

    tokens = ChatTokenizer.load(directory).encode(TEXT, chat=False)
    golden = make_golden(checkpoint, tokens, result.contract.capacity, result.dtype, progress)
    write_golden(golden, directory)


def _prove_import(checkpoint: QuantizedCheckpoint, model: Path, progress: Progress) -> None:
    """Says how far another tool's weights are from those in the model, which should be nothing."""
    from awq2trt.export.proof import compare_weights
    from awq2trt.onnx_file import open_decoder

    proof = compare_weights(checkpoint, open_decoder(model)[0], progress)
    progress.note(f"largest dequantization difference: {proof.largest:g} ({proof.linears} linears)")
    if proof.largest:
        progress.note(
            f"it is in {proof.where}: the checkpoint's step sizes are of a type that the model's --dtype rounds; "
            "export with the type that they have to keep them"
        )


def export_fingerprint(checkpoint: dict[str, FileRecord], options: ExportOptions) -> str:
    """Fingerprint of the ONNX model that a checkpoint's files and options give."""
    files = {name: record.sha256 for name, record in checkpoint.items()}
    return fingerprint_of(kind="onnx", checkpoint=files, options=options, golden=GOLDEN_VERSION)


def _checkpoint_files(checkpoint: QuantizedCheckpoint, artifact: Artifact | None) -> dict[str, FileRecord]:
    if artifact is not None:
        return artifact.manifest.files
    return {path.name: record_file(path) for path in (*checkpoint.files, checkpoint.directory / CONFIG_FILE)}


def _origin(checkpoint: QuantizedCheckpoint, artifact: Artifact | None) -> tuple[SourceRecord, QuantizationRecord]:
    """Where a checkpoint comes from; of another tool's we know only itself."""
    if artifact is not None:
        return artifact.manifest.contents.source, artifact.manifest.contents.quantization
    return source_record(checkpoint), QuantizationRecord(method="awq", scheme=checkpoint.scheme)


# build


@dataclass(frozen=True)
class BuildRequest:
    """`awq2trt build`.

    Attributes:
        model: Directory, .gguf file, hub id or packaged model.
        output: Directory below which every stage gets its own.
        options: Of all stages.
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
    """Model -> checkpoint -> ONNX -> engine or kit, each as it is done; what is current is not made again.

    An interrupted run is resumed where it has the same inputs and options. A kit is finished where that can be done.

    Raises:
        UnsupportedError: Engines for the target are not built here, or the model does not fit it.
    """
    from awq2trt.kit import stage

    target = _wanted_target(request)
    _require_device(request.device)
    kit = stage.KitRequest(
        target=target,
        output=request.output / target.name,
        options=request.options,
        overwrite=request.overwrite,
        force=request.force,
        tar=request.tar,
        ssh=request.ssh,
    )
    if target.is_kit:
        stage.require_fit(request.model, kit, progress)
    checkpoint = _current_checkpoint(request, progress)
    yield checkpoint
    onnx = _current_onnx(request, checkpoint, progress)
    yield onnx
    if not target.is_kit:
        yield _current_engine(request, target, onnx, progress)
        return
    made = stage.make_kit(onnx, stage.model_spec(str(checkpoint.directory)), kit, progress)
    yield made
    stage.deliver(made, kit, progress)


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
            raise UsageError("a kit's engine has our kernels.", where="--no-plugin", fix="leave --no-plugin out.")
        return target
    if request.tar or request.ssh is not None:
        raise UsageError(
            f"{target.title} takes an engine, which needs no finishing.",
            where="--tar" if request.tar else "--ssh",
            fix="leave it out, or choose an Orin target.",
        )
    if target.compute_capabilities and platform.machine() != target.cpu:
        raise UnsupportedError(
            f"an engine for {target.title} is for {target.cpu}; TensorRT-RTX builds for the CPU it runs on, here "
            f"{platform.machine()}.",
            where=f"--target {target.name}",
            fix=f"run the same command on any {target.cpu} Linux, with or without a GPU.",
        )
    return target


def _current_checkpoint(request: BuildRequest, progress: Progress) -> Artifact:
    progress.note(f"reading {request.model}")
    source = open_source(request.model)
    output = request.output / CHECKPOINT_DIRECTORY
    _refuse_writing_over_source(source, output)
    record = source_record(source)
    options = request.options.quantize
    fingerprint = quantize_fingerprint(record, options)
    current = _skipped(output, "checkpoint", fingerprint, progress)
    if current is not None:
        return current
    resume = can_resume(output, fingerprint)
    quantize = QuantizeRequest(
        request.model, output, options, resume=resume, overwrite=request.overwrite, device=request.device
    )
    return _quantize(source, record, quantize, progress)


def _current_onnx(request: BuildRequest, checkpoint: Artifact, progress: Progress) -> Artifact:
    output = request.output / ONNX_DIRECTORY
    options = request.options.export
    current = _skipped(output, "onnx", export_fingerprint(checkpoint.manifest.files, options), progress)
    if current is not None:
        return current
    export = ExportRequest(checkpoint.directory, output, options, overwrite=request.overwrite)
    return _export(checkpoint, export, progress)


def _current_engine(request: BuildRequest, target: Target, onnx: Artifact, progress: Progress) -> Artifact:
    from awq2trt.build import LOG_FILE, BuildOptions, build_engine, import_tensorrt_rtx

    output = request.output / target.name
    library = _plugin_library(request.options.build.plugin, progress)
    fingerprint = fingerprint_of(
        kind="engine",
        onnx={name: record.sha256 for name, record in onnx.manifest.files.items()},
        target=target.name,
        tensorrt=str(import_tensorrt_rtx().__version__),
        plugin=record_file(library.path) if library else None,
    )
    current = _skipped(output, "engine", fingerprint, progress)
    if current is not None:
        return current
    with Artifact.create(
        output,
        "engine",
        fingerprint,
        overwrite=request.overwrite,
        expected_bytes=2 * sum(record.size_bytes for record in onnx.manifest.files.values()),
    ) as draft:
        with _kept_log(draft.files / LOG_FILE, request.output / f"{target.name}-{LOG_FILE}"):
            result = build_engine(onnx.directory, target, draft.files, options=BuildOptions(library), progress=progress)
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        record = EngineRecord(
            target=target.name,
            compute_capabilities=result.compute_capabilities,
            flavour=target.flavour.value,
            tensorrt_version=result.tensorrt_version,
            plugin_version=library.version if library else None,
            profiles=tuple(
                ProfileRecord(name=p.name, shortest=p.shortest, typical=p.typical, longest=p.longest)
                for p in result.profiles
            ),
        )
        return draft.publish(onnx.manifest.contents.model_copy(update={"engine": record}))


def _plugin_library(wanted: bool | None, progress: Progress) -> PluginLibrary | None:
    """The library to build with; None for TensorRT's own kernels.

    Raises:
        ToolError: It is asked for, by flag or by path, and is not there.
    """
    from awq2trt.plugin_library import PATH_VARIABLE, find_plugin_library

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
def _kept_log(log: Path, kept: Path) -> Iterator[None]:
    """Saves TensorRT's log from the work directory, which a failure removes, and says where it is."""
    try:
        yield
    except BuildError as error:
        if not log.is_file():
            raise
        kept.write_bytes(log.read_bytes())
        raise BuildError(error.what, where=error.where, fix=f"{kept} holds all that TensorRT said.") from error


def _skipped(directory: Path, kind: Kind, fingerprint: str, progress: Progress) -> Artifact | None:
    current = current_artifact(directory, kind, fingerprint)
    if current is not None:
        progress.note(f"{directory} is current")
    return current


# run


@dataclass(frozen=True)
class RunRequest:
    """`awq2trt run`.

    Attributes:
        directory: ONNX model or engine.
        prompt: What the user says.
        sampling: How tokens are chosen.
        backend: `ort`.
        system: System message.
        raw: Continue the prompt as plain text, without the chat template.
        max_new_tokens: None for as many as the cache holds.
        stop: Strings that end the answer.
    """

    directory: Path
    prompt: str
    sampling: Sampling
    backend: str = "ort"
    system: str | None = None
    raw: bool = False
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


BACKENDS: Final = ("ort",)


def run_stage(request: RunRequest) -> Iterator[str]:
    """Pieces of the answer as they come.

    Raises:
        ArtifactError: The directory holds no whole model.
        UsageError: The prompt is empty or does not fit, or the backend is unknown.
    """
    from awq2trt.run import ChatTokenizer, OrtBackend, Sampler, generate, stream_text

    if request.backend not in BACKENDS:
        raise UsageError(
            f"unknown backend {request.backend!r}, expected one of: {', '.join(BACKENDS)}.",
            where="--backend",
            fix="--backend ort runs everywhere.",
        )
    artifact = open_model(request.directory)
    tokenizer = ChatTokenizer.load(artifact.directory)
    prompt = tokenizer.encode(request.prompt, chat=not request.raw, system=request.system)
    tokens = generate(
        OrtBackend.load(artifact.directory),
        prompt,
        Sampler(request.sampling),
        stop_tokens=tokenizer.stop_tokens,
        max_new_tokens=request.max_new_tokens,
    )
    yield from stream_text(tokens, tokenizer.decode, request.stop)


def open_model(directory: Path) -> Artifact:
    """Opens an ONNX model or an engine directory, which holds one too.

    Raises:
        ArtifactError: It is not whole.
        UsageError: It is the directory above several, or a checkpoint.
    """
    below = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST_FILE}"))
    if below and not (directory / MANIFEST_FILE).is_file():
        models = [name for name in below if name != CHECKPOINT_DIRECTORY]
        raise UsageError(
            f"expected a model's directory, got one that holds {', '.join(below)}.",
            where=str(directory),
            fix=f"name {directory / (models or below)[-1]}.",
        )
    artifact = Artifact.open(directory)
    if artifact.manifest.kind == "checkpoint":
        raise UsageError(
            "expected an ONNX model or an engine, got a checkpoint.",
            where=str(directory),
            fix=f"export it first: awq2trt export {directory} -o DIR",
        )
    return artifact


# check


@dataclass(frozen=True)
class CheckRequest:
    """`awq2trt check`.

    Attributes:
        directory: What `build` wrote, or a checkpoint, ONNX model or engine in it.
        model: The original; None for the one that the manifest names.
        checkpoint: Of an ONNX model; None for the one beside it.
        text: A .txt or .jsonl file, or a data set's name; None for a text of our own.
        tokens: How much of it.
        output: Where the files go with which polygraphy does the same; None for `check` beside the checkpoint.
        bisect: Cut a failing block of the exported model down to the nodes that fail.
    """

    directory: Path
    model: str | None = None
    checkpoint: Path | None = None
    text: str | None = None
    tokens: int = 192
    output: Path | None = None
    bisect: bool = False


@dataclass(frozen=True)
class CheckOutcome:
    """What `awq2trt check` found.

    Attributes:
        result: Stage by stage.
        commands: That do the same with polygraphy.
        cut: The nodes that fail, if they were asked for and there are any.
    """

    result: CheckResult
    commands: tuple[Command, ...]
    cut: Cut | None = None


def check_stage(request: CheckRequest, progress: Progress) -> CheckOutcome:
    """Holds every stage of a build to the one before it, on a text.

    Raises:
        ToolError: polygraphy is not installed.
        UsageError: The text has no tokens, or something that belongs to the build is not there.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise ToolError("polygraphy is not installed.", where="check", fix="pip install 'awq2trt[check]'")
    from awq2trt.check.engine import choose_flavour

    choose_flavour(request.directory)  # before polygraphy is imported
    from awq2trt.calibrate import CHARACTERS_PER_TOKEN, encode, load_tokenizer, read_text
    from awq2trt.check.bisect import bisect
    from awq2trt.check.chain import QUANTIZED, run_chain
    from awq2trt.check.polygraphy_files import write_folder
    from awq2trt.check.subject import find_subject
    from awq2trt.check.text import DEFAULT_TEXT
    from awq2trt.onnx_file import open_decoder

    subject = find_subject(request.directory, model=request.model, checkpoint=request.checkpoint)
    text = DEFAULT_TEXT
    if request.text is not None:
        text = read_text(request.text, characters=request.tokens * CHARACTERS_PER_TOKEN)
    capacity = open_decoder(subject.onnx)[1].capacity if subject.onnx else request.tokens
    tokens = encode(load_tokenizer(subject.checkpoint.directory), text[: request.tokens * CHARACTERS_PER_TOKEN])
    if not tokens:
        raise UsageError("the text has no tokens.", where=str(request.text or "check"), fix="name another with --text.")
    tokens = tokens[: min(request.tokens, capacity)]
    output = request.output or subject.checkpoint.directory.parent / CHECK_DIRECTORY
    result = run_chain(subject, tokens, progress)
    # A checkpoint too damaged to run gives no expected outputs, so there is nothing to repeat with polygraphy.
    runs = not any(stage.stage == QUANTIZED and stage.skipped for stage in result.stages)
    commands = write_folder(subject, tokens, output) if runs else ()
    cut = bisect(subject, result, output / "bisect") if request.bisect else None
    return CheckOutcome(result, commands, cut)


@dataclass(frozen=True)
class GoldenOutcome:
    """What `awq2trt check --golden` found.

    Attributes:
        results: Of ONNX Runtime on the CPU, call by call.
        engine: Of the engine, where there is one and this machine can run it.
        engine_skipped: Why the engine was not run; None if it was, or there is none.
    """

    results: tuple[GoldenResult, ...]
    engine: tuple[GoldenResult, ...] = ()
    engine_skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Every call of everything that was run."""
        return all(result.passed for result in (*self.results, *self.engine))


def golden_stage(directory: Path) -> GoldenOutcome:
    """Runs a model's golden inputs in ONNX Runtime, and in its engine, and compares with its golden outputs.

    Raises:
        ArtifactError: The directory holds no whole model, or one without golden outputs.
        ToolError: TensorRT refuses the engine.
    """
    from awq2trt.check.engine import engine_of
    from awq2trt.check.golden import compare_golden
    from awq2trt.golden import read_golden
    from awq2trt.run import OrtBackend

    artifact = open_model(directory)
    golden = read_golden(artifact.directory)
    results = tuple(compare_golden(OrtBackend.load(artifact.directory), golden))
    engine = engine_of(artifact)
    if engine is None:
        return GoldenOutcome(results)
    reason = _why_no_engine(engine)
    return GoldenOutcome(results, () if reason else _engine_golden(engine, golden), reason)


def _why_no_engine(engine: EngineBuild) -> str | None:
    """Why this machine cannot run an engine; None if it can."""
    from awq2trt.check.engine import choose_flavour, this_machine, why_not_here

    reason = why_not_here(engine, this_machine())
    if reason is None and importlib.util.find_spec("polygraphy") is None:
        reason = "polygraphy is not installed: pip install 'awq2trt[check]'"
    if reason is not None:
        return reason
    choose_flavour(engine.path.parent)  # before polygraphy is imported
    from awq2trt.check.engine_runner import unmet_needs

    return unmet_needs(engine.flavour)


def _engine_golden(engine: EngineBuild, golden: Golden) -> tuple[GoldenResult, ...]:
    """The golden calls in an engine that this machine can run."""
    from awq2trt.check.engine_runner import EngineBackend, TrtSession
    from awq2trt.check.golden import compare_golden

    with closing(TrtSession.open(engine)) as session:
        return tuple(compare_golden(EngineBackend(session, engine.contract, engine.profiles), golden))


# eval


@dataclass(frozen=True)
class EvalRequest:
    """`awq2trt eval`.

    Attributes:
        models: Original models, quantized checkpoints, ONNX models, in any number.
        text: A .txt or .jsonl file, or a data set's name.
        windows: How many windows of the text, from its start.
        seqlen: Tokens in a window.
        device: Where PyTorch computes; ONNX Runtime does on the CPU.
    """

    models: tuple[str, ...]
    text: str
    windows: int
    seqlen: int
    device: str = DEFAULT_DEVICE


@dataclass(frozen=True)
class EvalResult:
    """Perplexity of one model.

    Attributes:
        model: As the user named it.
        executor: What ran it: `PyTorch` or `ONNX Runtime`.
        scheme: How it is quantized; None for an original.
        perplexity: With the windows it was measured on.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    perplexity: Perplexity
    seconds: float


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Perplexity of every model on the same text, each as it is done; a device that is not there is refused at once."""
    _require_device(request.device)
    return (_evaluate(model, request, progress) for model in request.models)


def _evaluate(model: str, request: EvalRequest, progress: Progress) -> EvalResult:
    started = time.monotonic()
    onnx = is_exported(model)
    evaluate = _evaluate_onnx if onnx else _evaluate_torch
    scheme, perplexity = evaluate(model, request, progress)
    executor = "ONNX Runtime" if onnx else "PyTorch"
    return EvalResult(model, executor, scheme, perplexity, time.monotonic() - started)


@dataclass(frozen=True)
class TaskRequest:
    """`awq2trt eval --task`.

    Attributes:
        models: Original models, quantized checkpoints, ONNX models, in any number.
        task: A name in `tasks.TASKS`.
        data: Its JSONL file.
        limit: Examples, from the start of the file; None for all.
        device: Where PyTorch computes; ONNX Runtime does on the CPU.
    """

    models: tuple[str, ...]
    task: str
    data: Path
    limit: int | None = None
    device: str = DEFAULT_DEVICE


@dataclass(frozen=True)
class TaskResult:
    """A task's score of one model.

    Attributes:
        model: As the user named it.
        executor: What ran it: `PyTorch` or `ONNX Runtime`.
        scheme: How it is quantized; None for an original.
        score: With every example's outcome.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    score: TaskScore
    seconds: float


def task_stage(request: TaskRequest, progress: Progress) -> Iterator[TaskResult]:
    """A task's score of every model, each as it is done; its file is read, and the device looked for, at once."""
    from awq2trt.tasks import read_task

    _require_device(request.device)
    examples = read_task(request.task, request.data, request.limit)
    return (_score(model, examples, request, progress) for model in request.models)


def _score(model: str, examples: list[Example], request: TaskRequest, progress: Progress) -> TaskResult:
    from awq2trt.calibrate import bos_of
    from awq2trt.device import computing_on
    from awq2trt.likelihood import backend_scores, tokenize, torch_scores
    from awq2trt.run import OrtBackend
    from awq2trt.tasks import score_task

    started = time.monotonic()
    continuations = [continuation for example in examples for continuation in example.continuations]
    if is_exported(model):
        artifact = Artifact.open(Path(model))
        tokenizer = tokenizer_of(artifact.directory)
        backend = OrtBackend.load(artifact.directory, all_logits=True)
        bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
        requests = [tokenize(tokenizer, continuation, bos) for continuation in continuations]
        scores = backend_scores(backend, requests, progress, f"{request.task}, {_portable_name(model)}")
        executor, scheme = "ONNX Runtime", artifact.manifest.contents.quantization.scheme.describe()
    else:
        source, found = open_any(model)
        tokenizer = tokenizer_of(source)
        bos = bos_of(tokenizer, source.spec.family)
        requests = [tokenize(tokenizer, continuation, bos) for continuation in continuations]
        with computing_on(request.device):
            scores = torch_scores(source, requests, progress, f"{request.task}, {_portable_name(model)}")
        executor, scheme = "PyTorch", found or ""
    score = score_task(request.task, examples, scores)
    return TaskResult(model, executor, scheme or None, score, time.monotonic() - started)


def is_exported(model: str) -> bool:
    """Whether this is an ONNX model or an engine, which holds one."""
    manifest = Path(model) / MANIFEST_FILE
    return manifest.is_file() and Artifact.open(Path(model), verify="size").manifest.kind != "checkpoint"


def tokenizer_of(model: Path | ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, or that a model brings along."""
    from awq2trt.calibrate import load_tokenizer

    if isinstance(model, Path):
        return load_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        model.save_tokenizer(Path(directory))
        return load_tokenizer(Path(directory))


def _evaluate_torch(model: str, request: EvalRequest, progress: Progress) -> tuple[str | None, Perplexity]:
    from awq2trt.calibrate import bos_of, encode, read_text
    from awq2trt.device import computing_on
    from awq2trt.evaluate import first_windows, perplexity, torch_logits

    source, scheme = open_any(model)
    tokenizer = tokenizer_of(source)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, source.spec.family)
    with computing_on(request.device):
        windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
        logits = torch_logits(source, windows, progress, f"running {_portable_name(model)}")
        return scheme, perplexity(windows, logits, progress, "perplexity")


def _evaluate_onnx(model: str, request: EvalRequest, progress: Progress) -> tuple[str | None, Perplexity]:
    import torch

    from awq2trt.calibrate import bos_of, encode, load_tokenizer, read_text
    from awq2trt.evaluate import first_windows, perplexity
    from awq2trt.run import OrtBackend

    artifact = Artifact.open(Path(model))
    tokenizer = load_tokenizer(artifact.directory)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
    windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
    backend = OrtBackend.load(artifact.directory, all_logits=True)

    def logits(window: torch.Tensor) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(rows) for rows in backend.logits(window.tolist()))

    measured = perplexity(windows, logits, progress, f"running {_portable_name(model)} in ONNX Runtime")
    return artifact.manifest.contents.quantization.scheme.describe(), measured


def open_any(model: str) -> tuple[ModelSource, str | None]:
    """An original model, or a quantized checkpoint and its scheme."""
    from awq2trt.checkpoint import QuantizedCheckpoint

    path = Path(model).expanduser()
    if path.is_dir() and "quantization_config" in read_config(path):
        if (path / MANIFEST_FILE).is_file():
            Artifact.open(path, kind="checkpoint")
        checkpoint = QuantizedCheckpoint(path)
        return checkpoint, checkpoint.scheme.describe()
    return open_source(model), None


def _characters(request: EvalRequest) -> int:
    """How much of a data set to read."""
    from awq2trt.calibrate import CHARACTERS_PER_TOKEN

    return request.windows * request.seqlen * CHARACTERS_PER_TOKEN


# inspect


def inspect_stage(directory: Path) -> tuple[Artifact, Inspection | None]:
    """What a directory holds, every hash verified; of a checkpoint also what it is made of."""
    from awq2trt.inspection import inspect_checkpoint

    artifact = Artifact.open(directory)
    return artifact, inspect_checkpoint(artifact) if artifact.manifest.kind == "checkpoint" else None


def report_stage(directory: Path, output: Path, results: Path | None = None) -> Path:
    """Writes a checkpoint's report as one HTML page.

    Args:
        directory: A checkpoint, or what `build` wrote.
        output: The page.
        results: What `eval --json` wrote; its perplexities become bars.

    Raises:
        UsageError: `results` is not such a file.
    """
    from awq2trt.html_report import read_perplexities, render_page
    from awq2trt.inspection import input_channels, inspect_checkpoint, worst_block

    inside = directory / CHECKPOINT_DIRECTORY
    built = not (directory / MANIFEST_FILE).is_file() and (inside / MANIFEST_FILE).is_file()
    artifact = Artifact.open(inside if built else directory, kind="checkpoint")
    inspection = inspect_checkpoint(artifact)
    channels = input_channels(artifact, worst_block(inspection))
    perplexities = read_perplexities(results) if results else []
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_page(inspection, channels, perplexities), encoding="utf-8")
    return output
