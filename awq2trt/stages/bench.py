"""`awq2trt bench`: how fast a model answers, beside other software measured in the same run.

In: a directory that `build` or `export` wrote, or the name of a published size, whose weights are drawn at random. Out:
a `BenchReport`. Only one executor is in the GPU's memory at a time.
"""

from __future__ import annotations

import datetime
import gc
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from awq2trt.artifact.opening import open_model
from awq2trt.errors import UsageError
from awq2trt.progress import Progress
from awq2trt.scheme import QuantScheme
from awq2trt.target import CUDA_TARGET
from awq2trt.version import __version__

if TYPE_CHECKING:
    from awq2trt.artifact.manifest import Artifact
    from awq2trt.evaluation.decode_bench import BenchReport, BenchRow, KernelTime
    from awq2trt.machine.gpu import CudaMemory
    from awq2trt.runtime.ort.loading import CudaPlan

HF: Final = "hf"
MATMULNBITS: Final = "matmulnbits"
OPPONENTS: Final = (HF, MATMULNBITS)

_CAPACITY_STEP: Final = 256
"""The capacity of a cache that is made for the measurement is a multiple of this."""


@dataclass(frozen=True)
class BenchRequest:
    """`awq2trt bench`.

    Attributes:
        directory: Directory of a model; None with `shape`.
        shape: A published size; None with `directory`.
        layers: Number of blocks of the shape; None for all.
        prompt: Tokens in the prompt.
        tokens: Tokens to generate.
        context: Positions in the cache; None for as many as the model has, or as a shape's prompt and answer need.
        batch: Conversations at once.
        against: Names from `OPPONENTS`.
        device: `cuda`, `cuda:N` or `cpu`; None for the fastest available.
        profile: Whether to show where a token's time goes.
        head: The head of a shape, like `--head` of `quantize`; None for fp16.
        ends: Positions at which conversations end whose last tokens are timed, too.
        command: What the user typed, for the report.
    """

    directory: Path | None = None
    shape: str | None = None
    layers: int | None = None
    prompt: int = 4
    tokens: int = 200
    context: int | None = None
    batch: int = 1
    against: tuple[str, ...] = ()
    device: str | None = None
    profile: bool = False
    head: str | None = None
    ends: tuple[int, ...] = ()
    command: Sequence[str] = ()


@dataclass(frozen=True)
class _Subject:
    """The model that is measured.

    Attributes:
        name: Its name in reports.
        directory: Directory of the exported or lowered model.
        artifact: The directory as an artifact; None for a shape.
        config: config.json of the original model; None if it cannot be found.
        capacity: Positions in the cache that tokens are timed with.
        longest: The most positions that the file allows.
        windows: For each layer, how many positions a token sees; None for all before it. Empty if unknown.
    """

    name: str
    directory: Path
    artifact: Artifact | None
    config: dict[str, Any] | None
    capacity: int
    longest: int
    windows: tuple[int | None, ...]


def bench_stage(request: BenchRequest, progress: Progress) -> BenchReport:
    """Measures a model.

    Raises:
        ToolError: This machine lacks something that the device needs.
        UsageError: The options make no sense, or there is no such device or shape.
    """
    _refuse_options(request)
    on_cpu = request.device == "cpu" or (request.device is None and _runs_on_cpu(request))
    if on_cpu and (request.against or request.profile or request.batch != 1 or request.shape):
        raise UsageError(
            "shapes, opponents, batches and profiles can only be measured on a GPU.",
            where="bench",
            fix="measure the directory without these flags, or use a machine with an NVIDIA GPU.",
        )
    if request.shape is not None:
        _require_gpu(request)
    with _subject(request, progress) as subject:
        return _bench_on_cpu(subject, request) if on_cpu else _bench_on_cuda(subject, request, progress)


def _refuse_options(request: BenchRequest) -> None:
    """Raises UsageError where it is not clear what to measure, or an option would be left out."""
    if (request.directory is None) == (request.shape is None):
        what = "nothing to measure." if request.shape is None else "expected a directory or a shape, not both."
        fix = "awq2trt bench DIR, or --shape NAME, or awq2trt bench --kernels"
        raise UsageError(what, where="bench", fix=fix)
    for flag, value in {"--layers": request.layers, "--head": request.head}.items():
        if value is not None and request.shape is None:
            raise UsageError(f"{flag} is for a shape.", where=flag, fix="leave it out, or name a shape with --shape.")
    unknown = [name for name in request.against if name not in OPPONENTS]
    if unknown:
        raise UsageError(f"unknown opponent {unknown[0]!r}.", where="--against", fix=f"one of: {', '.join(OPPONENTS)}.")


def _require_gpu(request: BenchRequest) -> None:
    """Refuses a machine without the GPU, before a shape's weights are drawn and written."""
    from awq2trt.machine.gpu import require_gpu

    require_gpu(request.device or CUDA_TARGET)


def _runs_on_cpu(request: BenchRequest) -> bool:
    from awq2trt.runtime.ort.loading import CPU, choose_device

    return request.directory is not None and choose_device(open_model(request.directory)) == CPU


@contextmanager
def _subject(request: BenchRequest, progress: Progress) -> Iterator[_Subject]:
    """Yields the model on disk; that of a shape exists only inside the block."""
    if request.directory is not None:
        artifact = open_model(request.directory)
        contents = artifact.manifest.contents
        config = _original_config(contents.source.model) if HF in request.against else None
        name = f"{contents.source.model}, {contents.quantization.scheme.describe()}"
        longest = contents.decoder.capacity if contents.decoder else 0
        capacity = request.context or longest
        if not request.prompt + request.tokens <= capacity <= longest:
            raise UsageError(
                f"{request.prompt} + {request.tokens} tokens need a cache of {capacity}; this model's has {longest}.",
                where="--context",
                fix="measure fewer --tokens, or export again with a larger --max-seq-len.",
            )
        _require_ends(request, longest, "export again with a larger --max-seq-len, or measure fewer --tokens.")
        windows = contents.model.decoder.window_of_layer if contents.model else ()
        yield _Subject(name, artifact.directory, artifact, config, capacity, longest, windows)
        return
    from awq2trt.evaluation.decode_bench import FIRST_TOKEN_LENGTHS
    from awq2trt.evaluation.random_model import RandomModel
    from awq2trt.models.published_shapes import shape_config
    from awq2trt.onnx_export import export_onnx
    from awq2trt.recipe import ExportOptions, Recipe, apply_flags

    config = shape_config(str(request.shape), request.layers)
    capacity = request.context or _whole_steps(request.prompt + request.tokens)
    quantizing = apply_flags(Recipe(), {"quantize": {"head": request.head}}).quantize
    model = RandomModel(config, QuantScheme(), quantizing.head_scheme)
    longest = max(capacity, min(max(*FIRST_TOKEN_LENGTHS, *request.ends), model.spec.max_positions))
    _require_ends(request, longest, "measure fewer; the shape has no more positions.")
    with tempfile.TemporaryDirectory(prefix="awq2trt-bench-") as folder:
        options = ExportOptions(max_seq_len=longest, function_bodies=False)
        export_onnx(model, Path(folder), options=options, progress=progress)
        layers = f", {request.layers} layers" if request.layers else ""
        head = f", head {model.head_scheme.describe()}" if model.head_scheme else ""
        name = f"{request.shape}{layers}, random weights, {model.scheme.describe()}{head}"
        windows = tuple(layer.sliding_window for layer in model.spec.layers)
        yield _Subject(name, Path(folder), None, config, capacity, longest, windows)


def _require_ends(request: BenchRequest, longest: int, fix: str) -> None:
    """Raises UsageError if no conversation of this model can end at one of the positions."""
    for end in request.ends:
        if not request.tokens < end <= longest:
            raise UsageError(
                f"{request.tokens} tokens cannot end at position {end}, expected more than {request.tokens} and at "
                f"most {longest}.",
                where="--end",
                fix=fix,
            )


def _original_config(name: str) -> dict[str, Any]:
    """Returns config.json of the model that was quantized."""
    from awq2trt.models.sources.opening import open_source

    return dict(open_source(name).config)


def _bench_on_cpu(subject: _Subject, request: BenchRequest) -> BenchReport:
    from awq2trt.evaluation.decode_bench import (
        FIRST_TOKEN_LENGTHS,
        BenchRow,
        LaterTokens,
        measure_first_token_ms,
        measure_token_ms,
    )
    from awq2trt.runtime.ort.loading import DeviceOptions, open_backend

    if subject.artifact is None:
        raise UsageError("shapes can only be measured on a GPU.", where="--shape")
    backend = open_backend(subject.artifact, DeviceOptions("cpu")).backend
    later = [LaterTokens(end, measure_token_ms(backend, end - request.tokens, request.tokens)) for end in request.ends]
    row = BenchRow(
        "ONNX Runtime, CPU",
        token_ms=measure_token_ms(backend, request.prompt, request.tokens),
        first_token_ms=measure_first_token_ms(backend, FIRST_TOKEN_LENGTHS),
        later=tuple(later),
    )
    return _report(subject, request, "CPU", (row,))


def _bench_on_cuda(subject: _Subject, request: BenchRequest, progress: Progress) -> BenchReport:
    from awq2trt.evaluation.decode_bench import profile_kernels
    from awq2trt.evaluation.transformers_bench import bench_transformers
    from awq2trt.machine.gpu import open_cuda

    device = request.device or "cuda"
    memory = open_cuda(device)
    bandwidth = memory.measure_bandwidth()
    rows = []
    kernels: tuple[KernelTime, ...] = ()
    with tempfile.TemporaryDirectory(prefix="awq2trt-bench-") as scratch:
        contenders = _contenders(subject, request, Path(scratch), progress)
        for contender in contenders:
            progress.note(f"measuring {contender.name}")
            rows.append(_measure(subject, request, contender, memory, bandwidth))
        if request.profile:
            with _loaded(contenders[0], memory) as backend:
                kernels = profile_kernels(backend, request.prompt, min(request.tokens, 50))
    if HF in request.against and subject.config is not None:
        progress.note("measuring Hugging Face transformers")
        rows += bench_transformers(subject.config, request.prompt, request.tokens, f"cuda:{memory.gpu.index}")
    report = _report(subject, request, memory.gpu.name, tuple(rows))
    return replace(report, bandwidth_bytes_per_s=bandwidth, kernels=kernels)


@dataclass(frozen=True)
class _Contender:
    """One way to run the model.

    Attributes:
        name: Its name in reports.
        directory: Directory of the file that is run.
        plan: How the file is loaded.
    """

    name: str
    directory: Path
    plan: CudaPlan


def _contenders(subject: _Subject, request: BenchRequest, scratch: Path, progress: Progress) -> list[_Contender]:
    """The ways to run the model, ours first; an exported model is lowered for each of them in `scratch`."""
    from awq2trt.graph.provider_file import Lowering, write_lowered
    from awq2trt.machine.plugin_library import find_operators, find_plugin_library
    from awq2trt.runtime.ort.loading import CudaPlan

    record = subject.artifact.manifest.contents.lowered if subject.artifact else None
    capacity = subject.capacity if subject.capacity != subject.longest else None
    sees, contenders = subject.artifact, []
    if record is None:
        library = find_plugin_library().path
        write_lowered(subject.directory, Lowering.CUDA_FUSED, scratch, progress)
        plan = CudaPlan(None, library, capacity=capacity, batch=request.batch, sees=sees)
        contenders.append(_Contender("awq2trt's kernels", scratch, plan))
    elif record.plugin_version is not None:
        plan = CudaPlan(None, find_operators(record.plugin_version), capacity=capacity, batch=request.batch, sees=sees)
        contenders.append(_Contender("awq2trt's kernels", subject.directory, plan))
    if not contenders or MATMULNBITS in request.against:
        plan = CudaPlan(
            Lowering.CUDA_ORT if contenders else None, None, capacity=capacity, batch=request.batch, sees=sees
        )
        contenders.append(_Contender("MatMulNBits", subject.directory, plan))
    return contenders


def _measure(
    subject: _Subject, request: BenchRequest, contender: _Contender, memory: CudaMemory, bandwidth: float
) -> BenchRow:
    from awq2trt.evaluation.decode_bench import (
        FIRST_TOKEN_LENGTHS,
        BenchRow,
        LaterTokens,
        measure_first_token_ms,
        measure_token_ms,
    )

    def floor_ms(end: int) -> float:
        return 1e3 * _read_bytes(subject, end - request.tokens / 2) / bandwidth

    before, _ = memory.read_info()
    with _loaded(contender, memory) as backend:
        token_ms = measure_token_ms(backend, request.prompt, request.tokens)
        first = measure_first_token_ms(backend, FIRST_TOKEN_LENGTHS)
        used = before - memory.read_info()[0]
    longer = [length for length in FIRST_TOKEN_LENGTHS if subject.capacity < length <= subject.longest]
    if longer:
        whole = replace(contender, plan=replace(contender.plan, capacity=None))
        with _loaded(whole, memory) as backend:
            first |= measure_first_token_ms(backend, longer)
    later = []
    for end in request.ends:
        room = min(subject.longest, _whole_steps(end))  # attention is launched for the full capacity of the cache
        far = replace(contender, plan=replace(contender.plan, capacity=room if room != subject.longest else None))
        with _loaded(far, memory) as backend:
            later.append(
                LaterTokens(end, measure_token_ms(backend, end - request.tokens, request.tokens), floor_ms(end))
            )
    return BenchRow(
        contender.name,
        token_ms=token_ms,
        first_token_ms=first,
        memory_bytes=used,
        floor_ms=floor_ms(request.prompt + request.tokens),
        later=tuple(later),
    )


@contextmanager
def _loaded(contender: _Contender, memory: CudaMemory) -> Iterator[Any]:
    """Yields the model on the GPU; it is freed when the block ends."""
    from awq2trt.runtime.ort.loading import load_on_cuda

    backend = load_on_cuda(contender.directory, contender.plan, memory)
    try:
        yield backend
    finally:
        backend.close()
        del backend
        gc.collect()  # frees the session and its weights


def _read_bytes(subject: _Subject, positions: float) -> float:
    """Bytes that are read for a token that sees this many positions: weights, keys and values."""
    from awq2trt.graph.ort_lowering import weights_read_bytes
    from awq2trt.graph.read import open_decoder

    model, sizes = open_decoder(subject.directory, capacity=subject.longest)
    windows = subject.windows or (None,) * sizes.num_layers
    seen = sum(positions if window is None else min(positions, window) for window in windows)
    return weights_read_bytes(model) + 2 * seen * sizes.num_kv_heads * sizes.head_dim * sizes.dtype.itemsize


def _whole_steps(positions: int) -> int:
    """Rounds the capacity of a cache up to a multiple of `_CAPACITY_STEP`."""
    return _CAPACITY_STEP * -(-positions // _CAPACITY_STEP)


def _report(subject: _Subject, request: BenchRequest, device: str, rows: tuple[BenchRow, ...]) -> BenchReport:
    import onnxruntime

    from awq2trt.evaluation.decode_bench import BenchReport

    versions = {"awq2trt": __version__, "ONNX Runtime": str(onnxruntime.__version__)}
    if HF in request.against:
        import torch
        import transformers

        versions |= {"PyTorch": str(torch.__version__), "transformers": str(transformers.__version__)}
    return BenchReport(
        model=subject.name,
        device=device,
        versions=versions,
        date=datetime.date.today().isoformat(),
        command=shlex.join(request.command),
        prompt=request.prompt,
        tokens=request.tokens,
        capacity=subject.capacity,
        batch=request.batch,
        bandwidth_bytes_per_s=None,
        rows=rows,
    )
