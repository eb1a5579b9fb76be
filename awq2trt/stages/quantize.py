"""`awq2trt quantize`: a model -> a quantized checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact.manifest import Artifact, fingerprint_of, record_file, record_files, recording
from awq2trt.artifact.publish import create_artifact, require_replaceable
from awq2trt.artifact.records import CalibrationRecord, Contents, FileRecord, QuantizationRecord, SourceRecord
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.images.pairs import is_image_text, read_pairs
from awq2trt.machine.memory import parse_size
from awq2trt.methods import METHODS
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE, QuantizeOptions
from awq2trt.scheme import QuantScheme
from awq2trt.stages.opening import portable_name, refuse_missing_device, refuse_writing_over_source, source_record
from awq2trt.stages.readiness import require_calibration, require_whole_model
from awq2trt.tracing import span
from awq2trt.version import __version__

if TYPE_CHECKING:
    from awq2trt.machine.ranks import Ranks
    from awq2trt.quantization.job import JobResult
    from awq2trt.quantization.memory_plan import MemoryPlan

_FP16_BYTES: Final = 2

_FP32_BYTES: Final = 4


@dataclass(frozen=True)
class QuantizeRequest:
    """`awq2trt quantize`.

    Attributes:
        model: Directory, .gguf file, hub id or packaged model.
        output: The checkpoint's directory.
        options: How to quantize.
        resume: Continue an interrupted run.
        overwrite: Replace whatever is in `output`.
        device: Where PyTorch computes. It is not one of the options, because it does not change the result's meaning.
        max_memory: Memory limit of every process, like `8G`, on the device where it computes; None for no limit.
    """

    model: str
    output: Path
    options: QuantizeOptions
    resume: bool = False
    overwrite: bool = False
    device: str = DEFAULT_DEVICE
    max_memory: str | None = None


def quantize_stage(request: QuantizeRequest, progress: Progress) -> Artifact:
    """Model -> quantized checkpoint."""
    refuse_missing_device(request.device)
    progress.note(f"reading {request.model}")
    source, record = _opened(request, progress)
    return quantize_source(source, record, request, progress)


def _opened(request: QuantizeRequest, progress: Progress) -> tuple[ModelSource, SourceRecord]:
    """Opens the model and hashes it, after refusing whatever can be refused before hours of work."""
    if request.max_memory is not None:
        parse_size(request.max_memory, "--max-memory")
    source = open_source(request.model)
    refuse_writing_over_source(source, request.output)
    require_replaceable(request.output, "checkpoint", overwrite=request.overwrite)
    require_calibration(source, request.options)
    with recording(source.files) as records, _rehearsed(request):
        require_whole_model(source, progress)
        return source, source_record(source, records())


@contextmanager
def _rehearsed(request: QuantizeRequest) -> Iterator[None]:
    """Lets a GPU compile its kernels in another thread; they are there when the context ends."""
    if request.device == DEFAULT_DEVICE:
        yield
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="rehearse") as worker:
        rehearsal = worker.submit(_rehearse, request)
        yield
        rehearsal.result()


def _rehearse(request: QuantizeRequest) -> None:
    from awq2trt.machine.device import computing_on
    from awq2trt.quantization.block import rehearse
    from awq2trt.quantization.method import method_of

    with computing_on(request.device), span("rehearse"):
        rehearse(method_of(request.options))


def quantize_on_ranks_stage(request: QuantizeRequest, progress: Progress) -> Artifact | None:
    """Model -> quantized checkpoint, by all processes that torchrun or `awq2trt.machine.launch` started.

    Returns:
        The checkpoint on the first rank, the only one that writes; None on the others.
    """
    from awq2trt.machine.device import own_device
    from awq2trt.machine.ranks import joined_ranks

    with joined_ranks(cuda=request.device != DEFAULT_DEVICE) as ranks:
        if ranks.count == 1:
            return quantize_stage(request, progress)
        request = replace(request, device=own_device(request.device, ranks.local))
        if not ranks.first:
            _assist(request, ranks)
            return None
        progress.note(f"reading {request.model}; {ranks.count} ranks")
        source, record = _opened(request, progress)
        ranks.require_same(_facts(record, request.options))
        return quantize_source(source, record, request, progress, ranks)


def _assist(request: QuantizeRequest, ranks: Ranks) -> None:
    """The work of the other ranks: they read the same model, and share the work on every block."""
    from awq2trt.machine.device import computing_on
    from awq2trt.quantization.job import assist

    source = open_source(request.model)
    with _rehearsed(request):
        record = source_record(source)
    ranks.require_same(_facts(record, request.options))
    with computing_on(request.device):
        plan = _planned(source, request, ranks, None)
        assist(source, request.options, ranks, spill=plan.statistics_on_disk)


def _facts(record: SourceRecord, options: QuantizeOptions) -> dict[str, object]:
    """What all ranks must have in common, or their sums would be over different things."""
    facts: dict[str, object] = {"version of awq2trt": __version__}
    facts |= {f"file {name}": file.sha256 for name, file in record.files.items()}
    facts |= {_flag(name): value for name, value in options.model_dump().items() if name not in ("calib", "init_from")}
    return facts


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def quantize_source(
    source: ModelSource,
    record: SourceRecord,
    request: QuantizeRequest,
    progress: Progress,
    ranks: Ranks | None = None,
) -> Artifact:
    """Quantizes an opened model; `record` is its entry in the manifest; `ranks` are those that share the work."""
    from awq2trt.machine.device import computing_on
    from awq2trt.machine.ranks import ALONE
    from awq2trt.quantization.job import QuantizeJob

    with (
        computing_on(request.device) as device,
        create_artifact(
            request.output,
            "checkpoint",
            quantize_fingerprint(source, record, request.options),
            resume=request.resume,
            overwrite=request.overwrite,
            expected_bytes=quantize_bytes(source, request.options),
        ) as draft,
    ):
        if request.device != DEFAULT_DEVICE:
            progress.note(f"computing on {device}")
        ranks = ranks or ALONE
        plan = _planned(source, request, ranks, progress)
        job = QuantizeJob.prepare(
            source,
            request.options,
            files=draft.files,
            scratch=draft.scratch,
            progress=progress,
            ranks=ranks,
        )
        result = replace(job, spill=plan.statistics_on_disk).run()
        quantization = _quantization_record(request.options, result, tied=source.spec.tie_embeddings)
        quantization = quantization.with_vision(result.vision_linears)
        with span("publish"):
            return draft.publish(Contents(source=record, quantization=quantization, model=source.model_spec.record()))


def _quantization_record(options: QuantizeOptions, result: JobResult, *, tied: bool) -> QuantizationRecord:
    """What the manifest says about how the model was quantized; `tied`: whether its head is its embedding."""
    calibration = None
    sha256 = result.tokens_sha256()
    if result.tokens is not None and sha256 is not None:
        calibration = CalibrationRecord(
            text=portable_name(options.calib),
            sha256=sha256,
            samples=result.tokens.shape[0],
            seqlen=result.tokens.shape[1],
            seed=options.seed,
        )
    record = QuantizationRecord(
        method=options.method,
        scheme=options.scheme,
        calibration=calibration,
        effort=_effort(options) if METHODS[options.method].searches_scales else None,
    )
    return record.with_ends(result.dtype, options.head_scheme, tied=tied)


def _planned(source: ModelSource, request: QuantizeRequest, ranks: Ranks, progress: Progress | None) -> MemoryPlan:
    """Plans the use of memory; with a limit, the plan is shown, and refused if nothing fits below it."""
    from awq2trt.machine.device import bound_memory, held_bytes
    from awq2trt.quantization.memory_plan import Job, plan_memory
    from awq2trt.quantization.method import method_of
    from awq2trt.text.windows import SELF

    options, method = request.options, method_of(request.options)
    calib = Path(options.calib).expanduser()
    sees = method.uses_text and is_image_text(calib)
    writes = method.uses_text and (options.calib == SELF or (sees and read_pairs(calib)[0].bare))
    limit = None if request.max_memory is None else parse_size(request.max_memory, "--max-memory")
    head = options.head_scheme is not None
    on_gpu = request.device != DEFAULT_DEVICE
    vision = source.vision if options.quantize_vision else None
    job = Job(source.spec, method, options.samples, options.seqlen, writes, head, sees, ranks.count, on_gpu, vision)
    plan = plan_memory(job, held_bytes(), limit)
    if limit is not None:
        bound_memory(limit)
        if progress is not None:
            progress.note(plan.describe())
    return plan


def _effort(options: QuantizeOptions) -> str:
    """The search as the manifest names it; `check` compares codes with weights only if they were not tuned."""
    from awq2trt.quantization.method import tunes

    return f"{options.effort}, tuned" if tunes(options) else options.effort


def quantize_fingerprint(source: ModelSource, record: SourceRecord, options: QuantizeOptions) -> str:
    """Fingerprint of the checkpoint that a model and options produce; `record` has the hashes of its weights."""
    side = {path.name: record_file(path) for path in source.side_files}
    calib = Path(options.calib).expanduser()
    text = record_file(calib) if calib.is_file() else None
    images = {}
    if is_image_text(calib):
        pairs = read_pairs(calib)
        images = {
            pair.where.removeprefix(str(calib.parent)): (pair.text, *map(record_file, pair.images)) for pair in pairs
        }
    begun = options.init_from and portable_name(options.init_from)
    copied = options.model_copy(update={"calib": portable_name(options.calib), "init_from": begun})
    # What is newer than the first artifacts counts only where it is given, so that those are still current.
    portable = copied.model_dump(mode="json", exclude=set() if options.quantize_vision else {"quantize_vision"})
    return fingerprint_of(
        kind="checkpoint",
        source=record,
        side=side,
        options=portable,
        calib=text,
        begun=_beginning_files(options),
        **({"images": images} if images else {}),
    )


def _beginning_files(options: QuantizeOptions) -> dict[str, FileRecord]:
    """Hashes of the checkpoint to begin with; empty without one."""
    if options.init_from is None:
        return {}
    begun = QuantizedCheckpoint.open(Path(options.init_from).expanduser())
    return record_files((*begun.files, *begun.side_files))


def checkpoint_bytes(source: ModelSource, options: QuantizeOptions) -> int:
    """Least bytes of disk that the checkpoint takes."""
    plain, coded = _vision_bytes(source, options)
    return _blocks_bytes(source, options) + _outer_bytes(source, options) + plain + coded


def quantize_bytes(source: ModelSource, options: QuantizeOptions) -> int:
    """Most bytes of disk that quantizing takes: the checkpoint twice (blocks, then merged), and two residual streams.

    An effort that learns also keeps the original model's streams, and tuning also keeps the tuned blocks.
    """
    from awq2trt.quantization.method import method_of

    spec = source.spec
    hidden = 0
    if METHODS[options.method].uses_text:
        hidden = _FP32_BYTES * options.samples * options.seqlen * spec.hidden_size
    method = method_of(options)
    streams, copies = 4 if method.needs_original else 2, 3 if method.tune else 2
    plain, coded = _vision_bytes(source, options)
    seen_with = plain + 2 * coded  # codes are stored before they are merged
    return copies * _blocks_bytes(source, options) + _outer_bytes(source, options) + seen_with + streams * hidden


def _blocks_bytes(source: ModelSource, options: QuantizeOptions) -> int:
    spec = source.spec
    return spec.num_layers * sum(_coded_bytes(spec.linear_shape(name), options.scheme) for name in spec.block.linears)


def _outer_bytes(source: ModelSource, options: QuantizeOptions) -> int:
    spec, head = source.spec, options.head_scheme
    plain = _FP16_BYTES * spec.vocab_size * spec.hidden_size
    outer = plain if head is None else 2 * _coded_bytes((spec.vocab_size, spec.hidden_size), head)
    return outer if spec.tie_embeddings else outer + plain


def _vision_bytes(source: ModelSource, options: QuantizeOptions) -> tuple[int, int]:
    """Bytes of what a model sees with: of what is stored as it is, and of the linears that are stored as codes."""
    if source.vision is None:
        return 0, 0
    sizes = {name: math.prod(shape) for name, shape in source.vision.shapes().items()}
    if not options.quantize_vision:
        return _FP16_BYTES * sum(sizes.values()), 0
    from awq2trt.quantization.vision import VisionLinears

    shapes = VisionLinears.of(source.vision).shapes
    coded = sum(_coded_bytes(shape, options.scheme) for shape in shapes.values())
    return _FP16_BYTES * sum(size for name, size in sizes.items() if name.removesuffix(".weight") not in shapes), coded


def _coded_bytes(shape: tuple[int, int], scheme: QuantScheme) -> int:
    """Bytes of a weight's codes, scales and zero points."""
    rows, columns = shape
    group_bytes = _FP16_BYTES + scheme.bits / 8
    return int(rows * (columns * scheme.bits / 8 + scheme.groups(columns) * group_bytes))
