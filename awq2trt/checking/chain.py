"""The chain from the original model to what runs, each stage held to the one before, on real text.

    original -> folded -> quantized -> onnx -> runtime
                                    -> cuda
                                    -> engine

Each stage is compared in two ways. Its weights are computed again from the stage before (`weights`), so that a single
wrong scale is found. Its outputs, after every block and at the logits, are compared by polygraphy (`runners`), with a
limit that follows from number formats (`tolerance`). The first place beyond its limit, in the order of the stages and
of the blocks, is where to look: everything after it only inherits the error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from awq2trt.checking.engine_runner import EngineRunner
from awq2trt.checking.folding import FoldedSource
from awq2trt.checking.measures import Agreement, Difference, agreement, difference, merged, unlike
from awq2trt.checking.runners import (
    CPU,
    CUDA,
    SPARE_SLOTS,
    CachedOnnxRunner,
    RuntimeRunner,
    ScoringBackend,
    TorchRunner,
    block_output,
    block_update,
    calls_of,
    open_with_blocks,
)
from awq2trt.checking.tolerance import UNIT_ROUNDOFF, UNRELATED, block_limit, drift_limit, engine_limit, storage_limit
from awq2trt.checking.weights import Finding, code_finding, onnx_findings, rounded_finding
from awq2trt.checkpoint.checkpoint import BFLOAT16, QuantizedCheckpoint
from awq2trt.errors import CheckpointError, ToolError, UnsupportedError
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import ENGINE_FILE, LOGITS
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import CONFIG_FILE, Array, ModelSource
from awq2trt.progress import Progress
from awq2trt.runtime.ort.cpu import OrtBackend
from awq2trt.runtime.trt.engine import EngineBuild
from awq2trt.runtime.trt.session import EngineSession

ORIGINAL: Final = "original"
FOLDED: Final = "folded"
QUANTIZED: Final = "quantized"
ONNX: Final = "onnx"
ONNX_CUDA: Final = "onnx-cuda"
RUNTIME: Final = "runtime"
ON_GPU: Final = "cuda"
ENGINE: Final = "engine"

TITLES: Final[Mapping[str, str]] = {
    ORIGINAL: "original, PyTorch fp32",
    FOLDED: "scales folded, PyTorch fp32",
    QUANTIZED: "quantized, PyTorch fp32",
    ONNX: "ONNX as exported, ONNX Runtime CPU",
    ONNX_CUDA: "ONNX as exported, ONNX Runtime CUDA",
    RUNTIME: "ONNX as `run` runs it, ONNX Runtime CPU",
    ON_GPU: "model for CUDA as `run` runs it, every node on the GPU, ONNX Runtime CUDA",
    ENGINE: "model.engine on the GPU, one token at a time and the text at once",
}

AGAINST: Final[Mapping[str, tuple[str, ...]]] = {
    ORIGINAL: (),
    FOLDED: (ORIGINAL,),
    QUANTIZED: (FOLDED,),
    ONNX: (QUANTIZED,),
    ONNX_CUDA: (QUANTIZED,),
    RUNTIME: (QUANTIZED,),
    ON_GPU: (QUANTIZED,),
    ENGINE: (QUANTIZED,),
}
"""Stages in order, and what each is compared with."""

DECODE_CALLS: Final = 4


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Attributes:
        checkpoint: The quantized model.
        nearest: Its codes are the nearest to the folded weights, as they are where no method moved them for a better
        sum.
        original: What it was made of; None where it is not to be had.
        search: `quantization.npz`: the scales to fold again.
        onnx: Directory of the exported model; None to check the checkpoint alone.
        dtype: Of the exported model's activations.
        engine: What was built of it; None where there is none.
        open_engine: Loads that on this machine.
        open_on_gpu: Loads the model for CUDA on this machine's GPU; None where there is none.
        changed: Files that are not what was written, as their manifest's hashes tell.
        missing: Stage -> why it cannot be run.
    """

    checkpoint: QuantizedCheckpoint
    nearest: bool
    original: ModelSource | None
    search: Mapping[str, Array]
    onnx: Path | None
    dtype: str = "float16"
    engine: EngineBuild | None = None
    open_engine: Callable[[], EngineSession] | None = None
    open_on_gpu: Callable[[], ScoringBackend] | None = None
    changed: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def folded(self) -> FoldedSource | None:
        """The original, folded again; None where it or its scales are not to be had."""
        if self.original is None or FOLDED in self.missing:
            return None
        return FoldedSource(self.original, self.checkpoint, self.search)


@dataclass(frozen=True)
class Place:
    """A stage at one place.

    Attributes:
        name: Of the block, or `logits`.
        difference: From the stage before.
        error: The relative difference that is held to the limit: the largest of a position, or, where it is that of
            quantization, the mean.
        limit: Of it.
    """

    name: str
    difference: Difference
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Within the limit; NaN is not."""
        return self.error <= self.limit

    @property
    def share(self) -> float:
        """Part of the limit that the error takes: 1 is all of it."""
        return self.error / self.limit


@dataclass(frozen=True)
class StageResult:
    """A stage held to the one before.

    Attributes:
        stage: Its name.
        against: The stage before; None for the first.
        skipped: Why it was not run; None if it was.
        places: Blocks in order, then the logits.
        agreement: Of next-token distributions.
        findings: What is wrong with its weights.
        seconds: Wall time.
    """

    stage: str
    against: str | None = None
    skipped: str | None = None
    places: tuple[Place, ...] = ()
    agreement: Agreement | None = None
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Nothing found, nothing beyond its limit. A stage that was not run has not failed, nor has it passed."""
        return not self.findings and all(place.passed for place in self.places)


@dataclass(frozen=True)
class Failure:
    """Where the chain breaks first.

    Attributes:
        stage: Of it.
        place: Block, or tensor outside the blocks, or `logits`.
        message: What was measured there.
    """

    stage: str
    place: str
    message: str


@dataclass(frozen=True)
class CheckResult:
    """The whole chain.

    Attributes:
        stages: In order.
        tokens: Of the text.
        prefixes: Of the blocks.
        dtype: Of the exported model's activations.
        changed: As of the subject.
    """

    stages: tuple[StageResult, ...]
    tokens: tuple[int, ...]
    prefixes: tuple[str, ...]
    dtype: str = "float16"
    changed: tuple[str, ...] = ()

    def title(self, stage: str) -> str:
        """What a stage is, for people."""
        widened = self.dtype == BFLOAT16 and stage in (ONNX, ONNX_CUDA)
        return f"{TITLES[stage]}, which has no bf16 kernels: in fp32" if widened else TITLES[stage]

    @property
    def passed(self) -> bool:
        """Every stage that was run passed, at least one was compared with another, and no file was changed."""
        compared = [stage for stage in self.stages if stage.against and not stage.skipped]
        return bool(compared) and not self.changed and all(stage.passed for stage in self.stages)

    def first_failure(self) -> Failure | None:
        """The first stage that fails, and there the first block."""
        for stage in self.stages:
            failures = [*self._weight_failures(stage), *self._value_failures(stage)]
            if failures:
                return min(failures, key=lambda ranked: ranked[0])[1]
        return None

    def _weight_failures(self, stage: StageResult) -> Iterator[tuple[tuple[int, int], Failure]]:
        for finding in stage.findings:
            layer = self._layer(finding.place)
            place = self.prefixes[layer].rstrip(".") if layer >= 0 else finding.place
            yield (layer, 0), Failure(stage.stage, place, f"{finding.place}: {finding.message}")

    def _value_failures(self, stage: StageResult) -> Iterator[tuple[tuple[int, int], Failure]]:
        for index, place in enumerate(stage.places):
            if not place.passed:
                message = f"relative error {place.error:.2g}, at most {place.limit:.2g} expected."
                yield (index, 1), Failure(stage.stage, place.name, message)

    def _layer(self, name: str) -> int:
        """Block that a tensor belongs to; -1 for one that stands before them all, or concerns them all."""
        return next((index for index, prefix in enumerate(self.prefixes) if name.startswith(prefix)), -1)


class _Limit(NamedTuple):
    """What an output is held to: the largest relative difference of a position, or the mean one."""

    place: str
    value: float
    takes_mean: bool = False


@dataclass(frozen=True)
class _Match:
    """An output of two stages in one call; polygraphy takes it as true or false."""

    difference: Difference
    limit: _Limit

    def __bool__(self) -> bool:
        error = self.difference.mean_relative if self.limit.takes_mean else self.difference.max_relative
        return error <= self.limit.value


@dataclass(frozen=True)
class WeightResult:
    """What the weights alone tell, whatever the text.

    Attributes:
        findings: Stage -> what is wrong with its weights.
        missing: Stage -> why it cannot be run.
    """

    findings: Mapping[str, Sequence[Finding]]
    missing: Mapping[str, str]


def run_chain(
    subject: Subject, tokens: Sequence[int], progress: Progress, *, weights: WeightResult | None = None
) -> CheckResult:
    """Runs every stage that can be run.

    Args:
        subject: What to check.
        tokens: A text.
        progress: Counts stages.
        weights: Of `compare_weights`, for several texts; None to compare them now.
    """
    spec = subject.checkpoint.spec
    weights = weights or compare_weights(subject, progress)
    findings = dict(weights.findings)
    runners, missing = _runners(subject, tokens, weights.missing)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), progress.task("running the stages", total=len(runners)) as advance:
        outputs, seconds = {}, {}
        for stage, runner in runners.items():
            started = time.monotonic()
            try:
                # One runner at a time, since only one model fits in memory.
                outputs[stage] = Comparator.run([runner], data_loader=calls_of(tokens, DECODE_CALLS))[0][1]
            except ToolError as error:
                if stage != ENGINE:
                    raise
                findings[ENGINE] = [Finding(ENGINE_FILE, error.what)]
            seconds[stage] = time.monotonic() - started
            advance(1)
        stages = [
            _stage_result(subject, stage, outputs, tokens)
            if stage in outputs
            else StageResult(stage, skipped=None if stage in seconds else missing.get(stage, "not asked for"))
            for stage in AGAINST
        ]
    stages = [
        replace(stage, findings=tuple(findings.get(stage.stage, ())), seconds=seconds.get(stage.stage, 0.0))
        for stage in stages
    ]
    prefixes = tuple(spec.prefix(layer) for layer in range(spec.num_layers))
    return CheckResult(tuple(stages), tuple(tokens), prefixes, subject.dtype, subject.changed)


def compare_weights(subject: Subject, progress: Progress) -> WeightResult:
    """Computes every stored tensor again from the stage before.

    Args:
        subject: What to check.
        progress: Counts blocks.
    """
    findings: dict[str, list[Finding]] = {FOLDED: [], QUANTIZED: [], ONNX: []}
    missing = dict(subject.missing)
    layers = subject.checkpoint.spec.num_layers
    damaged = "not run: the checkpoint is damaged"
    with progress.task("comparing weights", total=layers + 2) as advance:
        for layer in range(-1, layers):
            try:
                folded, quantized = _outer_findings(subject) if layer < 0 else _block_findings(subject, layer)
                findings[FOLDED] += folded
                findings[QUANTIZED] += quantized
            except CheckpointError as error:
                tensor = _tensor_of(error)
                findings[_owner(tensor, subject.checkpoint.spec)].append(Finding(tensor, error.what))
                missing |= dict.fromkeys((FOLDED, QUANTIZED, ONNX, ONNX_CUDA, RUNTIME, ON_GPU, ENGINE), damaged)
            advance(1)
        if subject.onnx and damaged not in missing.values():
            findings[ONNX] += onnx_findings(open_decoder(subject.onnx)[0], subject.checkpoint)
        advance(1)
    return WeightResult(findings, missing)


def _outer_findings(subject: Subject) -> tuple[list[Finding], list[Finding]]:
    """Of embedding, final norm and head, and of the description; nothing in them is quantized."""
    checkpoint, original = subject.checkpoint, subject.original
    tensors = checkpoint.outer()
    if original is None:
        return [], []
    found = [rounded_finding(name, original.tensor(name), value) for name, value in tensors.items()]
    ours, theirs = asdict(checkpoint.spec), asdict(original.spec)
    changed = [key for key in theirs if ours[key] != theirs[key]]
    if changed:
        found.append(Finding(CONFIG_FILE, f"it describes another model than the original's: {', '.join(changed)}."))
    return [finding for finding in found if finding], []


def _block_findings(subject: Subject, layer: int) -> tuple[list[Finding], list[Finding]]:
    """Of one block: its norms and biases held to the folded ones, its codes to the folded weights."""
    checkpoint, spec = subject.checkpoint, subject.checkpoint.spec
    prefix = spec.prefix(layer)
    linears = {name: checkpoint.linear(prefix + name) for name in spec.block.linears}
    checkpoint.block(layer)  # every number is one
    folded = subject.folded()
    if folded is None:
        return [], []
    weights = {name: value.numpy() for name, value in folded.folded_block(layer).items()}
    plain: list[Finding | None] = []
    for name, value in weights.items():
        owner, _, kind = name.rpartition(".")
        if owner not in linears:
            plain.append(rounded_finding(prefix + name, value, checkpoint.tensor(prefix + name)))
        elif kind == "bias":
            bias = linears[owner].bias
            lost = Finding(prefix + name, "the original has a bias, the checkpoint has none.")
            plain.append(lost if bias is None else rounded_finding(prefix + name, value, bias))
    roundoff = UNIT_ROUNDOFF[BFLOAT16] if checkpoint.config.get("torch_dtype") == BFLOAT16 else 0.0
    codes = [
        code_finding(prefix + name, weights[f"{name}.weight"], linear, nearest=subject.nearest, scale_roundoff=roundoff)
        for name, linear in linears.items()
    ]
    return [finding for finding in plain if finding], [finding for finding in codes if finding]


def _owner(tensor: str, spec: DecoderSpec) -> str:
    """The stage that a damaged tensor of the checkpoint belongs to: codes to quantizing, all else to folding."""
    quantized = ("", ".codes", ".qweight", ".scales", ".zeros", ".qzeros")
    return (
        QUANTIZED
        if tensor.endswith(tuple(name + kind for name in spec.block.linears for kind in quantized))
        else FOLDED
    )


def _tensor_of(error: CheckpointError) -> str:
    """The tensor that an error is about, without the directory before it."""
    return (error.where or "checkpoint").rpartition(": ")[2]


def _runners(
    subject: Subject, tokens: Sequence[int], known: Mapping[str, str]
) -> tuple[dict[str, BaseRunner], dict[str, str]]:
    """A runner of every stage that can be run, and why others cannot: what is `known`, and what turns up here."""
    missing = dict(known)
    makers: dict[str, Callable[[], BaseRunner]] = {QUANTIZED: lambda: _quantized_runner(subject, tokens)}
    folded = subject.folded()
    if folded is not None and subject.original is not None:
        original = subject.original
        makers = {
            ORIGINAL: lambda: TorchRunner(original, tokens, ORIGINAL),
            FOLDED: lambda: TorchRunner(folded, tokens, FOLDED, teacher=folded),
            **makers,
        }
    if subject.onnx is not None:
        onnx = subject.onnx
        makers[ONNX] = lambda: _onnx_runner(subject, onnx, tokens, ONNX, CPU)
        if CUDA in onnxruntime.get_available_providers():
            makers[ONNX_CUDA] = lambda: _onnx_runner(subject, onnx, tokens, ONNX_CUDA, CUDA)
        else:
            missing.setdefault(ONNX_CUDA, "not run: ONNX Runtime has no CUDA provider here")
        makers[RUNTIME] = lambda: RuntimeRunner(lambda: OrtBackend.load(onnx, all_logits=True), RUNTIME)
    if subject.open_on_gpu is not None:
        open_on_gpu = subject.open_on_gpu
        makers[ON_GPU] = lambda: RuntimeRunner(open_on_gpu, ON_GPU)
    if subject.engine is not None and subject.open_engine is not None:
        engine, open_engine = subject.engine, subject.open_engine
        makers[ENGINE] = lambda: EngineRunner(open_engine, engine, ENGINE)
    runners = {}
    for stage, make in makers.items():
        try:
            if stage not in missing:
                runners[stage] = make()
        except UnsupportedError as error:
            missing[stage] = f"not run: {error.what.rstrip('.')}"
    return runners, missing


def _quantized_runner(subject: Subject, tokens: Sequence[int]) -> BaseRunner:
    return TorchRunner(subject.checkpoint, tokens, QUANTIZED, teacher=subject.folded())


def _onnx_runner(subject: Subject, onnx: Path, tokens: Sequence[int], stage: str, provider: str) -> BaseRunner:
    """ONNX Runtime on the file as it is, its blocks' outputs exposed.

    Raises:
        UnsupportedError: ONNX Runtime cannot run such a file.
    """
    model, sizes = open_with_blocks(onnx, subject.checkpoint.spec)
    if not model.functions:
        raise UnsupportedError("the model has no function bodies, which ONNX Runtime would run.")
    return CachedOnnxRunner(model, sizes, onnx, length=len(tokens) + SPARE_SLOTS, name=stage, provider=provider)


def _stage_result(subject: Subject, stage: str, outputs: Mapping[str, list[Any]], tokens: Sequence[int]) -> StageResult:
    """Compares a stage that was run with the one before it, if that was run, too."""
    against = next((name for name in AGAINST[stage] if name in outputs), None)
    if against is None:
        return StageResult(stage)
    limits = _limits(subject, stage, len(tokens))
    parts: dict[str, list[_Match]] = {name: [] for name in limits}

    def compare(reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, _Match]:
        matches = {name: _match(reference, candidate, name, limit) for name, limit in limits.items()}
        for name, match in matches.items():
            parts[name].append(match)
        return matches

    results = RunResults()
    for name in (against, stage):
        results.append((name, outputs[name]))
    Comparator.compare_accuracy(results, compare_func=compare)
    places = []
    for name, limit in limits.items():
        whole = merged([match.difference for match in parts[name]])
        error = whole.mean_relative if limit.takes_mean else whole.max_relative
        places.append(Place(limit.place, whole, error, limit.value))
    reference, candidate = (_logits(outputs[name]) for name in (against, stage))
    agreed = None
    if reference is not None and candidate is not None and reference.shape == candidate.shape:
        agreed = agreement(reference, candidate, tokens)
    return StageResult(stage, against, places=tuple(places), agreement=agreed)


def _match(reference: Mapping[str, Any], candidate: Mapping[str, Any], name: str, limit: _Limit) -> _Match:
    """One output in one call; one that is missing or of another shape is as far off as can be."""
    if name not in candidate or np.shape(candidate[name]) != np.shape(reference[name]):
        positions = reference[name].shape[1]
        return _Match(unlike(positions), limit)
    return _Match(difference(reference[name], candidate[name], centered=name == LOGITS), limit)


def _limits(subject: Subject, stage: str, positions: int) -> dict[str, _Limit]:
    """What each output of a stage is held to."""
    spec, scheme = subject.checkpoint.spec, subject.checkpoint.scheme
    layers = range(spec.num_layers)
    if stage == QUANTIZED:
        limit = block_limit(scheme, spec.hidden_size)
        blocks = {block_update(layer): _Limit(_place(spec, layer), limit, takes_mean=True) for layer in layers}
        return {**blocks, LOGITS: _Limit(LOGITS, UNRELATED, takes_mean=True)}
    if stage == FOLDED:
        limits = [storage_limit("float16", layer + 1) for layer in range(spec.num_layers + 1)]
    elif stage == RUNTIME:
        limits = [storage_limit(subject.dtype, spec.num_layers + 1)]
    elif stage in (ONNX, ONNX_CUDA) and subject.dtype == BFLOAT16:  # widened: only storage rounds
        limits = [storage_limit(subject.dtype, layer + 1) for layer in range(spec.num_layers + 1)]
    elif stage == ENGINE:
        limits = [engine_limit(subject.dtype, spec.num_layers + 1, _sums_of_tensorrt(subject, positions))]
    else:
        limits = [drift_limit(subject.dtype, layer + 1) for layer in range(spec.num_layers + 1)]
    named = {LOGITS: _Limit(LOGITS, limits[-1])}
    if stage in (RUNTIME, ON_GPU, ENGINE):
        return named
    return {block_output(layer): _Limit(_place(spec, layer), limits[layer]) for layer in layers} | named


def _sums_of_tensorrt(subject: Subject, positions: int) -> list[int]:
    """Lengths of the sums in a block that TensorRT's own kernels make; those of our kernels are fp32."""
    spec = subject.checkpoint.spec
    attention = [spec.head_dim, positions]
    if subject.engine is not None and subject.engine.has_plugin:
        return attention
    return attention + [spec.linear_shape(name)[1] for name in spec.block.linears]


def _place(spec: DecoderSpec, layer: int) -> str:
    return spec.prefix(layer).rstrip(".")


def _logits(results: list[Any]) -> NDArray[Any] | None:
    """Logits of all calls, [S, V]; None if a call gave none."""
    if any(LOGITS not in result for result in results):
        return None
    return np.concatenate([result[LOGITS][0] for result in results])
