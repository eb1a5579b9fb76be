"""The chain from the original model to the running one: compares each stage with the one before, on real text.

    original -> folded -> quantized -> onnx -> runtime
                                    -> cuda
                                    -> engine

Each stage is compared in two ways. Its weights are computed again from the stage before (`stored_weights`), so that a
single wrong scale is found. Its outputs after every block, and its logits, are compared by polygraphy (`runners`), with
limits that follow from number formats (`tolerance`). The place to look at is the first one beyond its limit, in the
order of stages and blocks: everything after it only inherits the error.

In: a `Subject` and the tokens of a text. Out: a `CheckResult`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from awq2trt.checking.beside import vision_limit
from awq2trt.checking.engine_runner import EngineRunner
from awq2trt.checking.measures import Difference, difference, merged, unlike
from awq2trt.checking.results import (
    AGAINST,
    ENGINE,
    FOLDED,
    ON_GPU,
    ONNX,
    ONNX_CUDA,
    ORIGINAL,
    QUANTIZED,
    RUNTIME,
    CheckResult,
    Place,
    StageResult,
)
from awq2trt.checking.runners import (
    CPU,
    CUDA,
    SPARE_SLOTS,
    CachedOnnxRunner,
    GraphExecution,
    RuntimeRunner,
    TorchRunner,
    block_output,
    block_update,
    calls_of,
    open_with_blocks,
)
from awq2trt.checking.stored_weights import WeightResult, check_weights
from awq2trt.checking.subject import Subject
from awq2trt.checking.tolerance import UNRELATED, block_limit, cache_limit, drift_limit, engine_limit, storage_limit
from awq2trt.checking.weights import Finding
from awq2trt.errors import ToolError, UnsupportedError
from awq2trt.evaluation.agreement import agreement
from awq2trt.io_contract import EMBEDDING, ENGINE_FILE, LOGITS, VISION
from awq2trt.models.families import DecoderSpec
from awq2trt.progress import Progress
from awq2trt.runtime.ort.backend import OrtBackend
from awq2trt.scheme import BFLOAT16


class _Limit(NamedTuple):
    """The limit of an output: for the largest relative difference of a position, or for the mean one."""

    place: str
    value: float
    takes_mean: bool = False


@dataclass(frozen=True)
class _Match:
    """The comparison of an output of two stages in one call; polygraphy uses it as true or false."""

    difference: Difference
    limit: _Limit

    def __bool__(self) -> bool:
        error = self.difference.mean_relative if self.limit.takes_mean else self.difference.max_relative
        return error <= self.limit.value


def run_chain(
    subject: Subject, tokens: Sequence[int], progress: Progress, *, weights: WeightResult | None = None
) -> CheckResult:
    """Runs every stage that can be run.

    Args:
        subject: What to check.
        tokens: A text.
        progress: Counts the stages.
        weights: Result of `check_weights`, to reuse it for several texts; None to compare the weights now.
    """
    spec = subject.checkpoint.spec
    weights = weights or check_weights(subject, progress)
    findings = dict(weights.findings)
    runners, missing = _runners(subject, tokens, weights.missing)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), progress.task("running the stages", total=len(runners)) as advance:
        outputs, seconds = {}, {}
        for stage, runner in runners.items():
            started = time.monotonic()
            try:
                # Only one runner exists at a time, since only one model fits in memory.
                outputs[stage] = Comparator.run([runner], data_loader=calls_of(tokens))[0][1]
            except ToolError as error:
                if stage != ENGINE:
                    raise
                findings[ENGINE] = [Finding(ENGINE_FILE, error.what)]
            seconds[stage] = time.monotonic() - started
            advance(1)
        stages = [
            _stage_result(subject, stage, outputs, tokens)
            if stage in outputs
            else StageResult(stage, skipped=None if stage in seconds else missing.get(stage, "not wanted"))
            for stage in AGAINST
        ]
    stages = [
        replace(stage, findings=tuple(findings.get(stage.stage, ())), seconds=seconds.get(stage.stage, 0.0))
        for stage in stages
    ]
    prefixes = tuple(spec.prefix(layer) for layer in range(spec.num_layers))
    return CheckResult(tuple(stages), tuple(tokens), prefixes, subject.dtype, subject.changed)


def _runners(
    subject: Subject, tokens: Sequence[int], known: Mapping[str, str]
) -> tuple[dict[str, BaseRunner], dict[str, str]]:
    """Makes a runner for every stage that can be run, and says why the others cannot be run."""
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
        open_on_cpu = subject.open_on_cpu or (lambda: OrtBackend.load(onnx, all_logits=True))
        makers[RUNTIME] = lambda: RuntimeRunner(open_on_cpu, RUNTIME, subject.checkpoint.vision)
    if subject.open_on_gpu is not None:
        open_on_gpu = subject.open_on_gpu
        makers[ON_GPU] = lambda: RuntimeRunner(open_on_gpu, ON_GPU, subject.checkpoint.vision)
    if subject.engine is not None and subject.open_engine is not None:
        engine, open_engine = subject.engine, subject.open_engine
        makers[ENGINE] = lambda: EngineRunner(
            open_engine, engine, ENGINE, subject.open_embedder, subject.checkpoint.vision
        )
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
    """Runs the file unchanged in ONNX Runtime, with the outputs of its blocks exposed.

    Raises:
        UnsupportedError: ONNX Runtime cannot run this file.
    """
    model, sizes = open_with_blocks(onnx, subject.checkpoint.spec)
    if not model.functions:
        raise UnsupportedError("the model has no function bodies, which ONNX Runtime needs.")
    execution = GraphExecution.of(subject.checkpoint, len(tokens) + SPARE_SLOTS, provider)
    return CachedOnnxRunner(model, sizes, onnx, execution, name=stage)


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
    """Compares one output in one call; a missing output, or one of another shape, counts as completely wrong."""
    if name not in candidate or np.shape(candidate[name]) != np.shape(reference[name]):
        positions = reference[name].shape[1]
        return _Match(unlike(positions), limit)
    return _Match(difference(reference[name], candidate[name], centered=name == LOGITS), limit)


def _limits(subject: Subject, stage: str, positions: int) -> dict[str, _Limit]:
    """The limits of a stage's outputs."""
    spec, scheme = subject.checkpoint.spec, subject.checkpoint.scheme
    layers = range(spec.num_layers)
    if stage == QUANTIZED:
        limit = block_limit(scheme, spec.hidden_size)
        blocks = {block_update(layer): _Limit(_place(spec, layer), limit, takes_mean=True) for layer in layers}
        ends = (LOGITS, VISION) if subject.checkpoint.vision_linears else (LOGITS,)
        return {**blocks, **{name: _Limit(name, UNRELATED, takes_mean=True) for name in ends}}
    if stage == FOLDED:
        limits = [storage_limit("float16", layer + 1) for layer in range(spec.num_layers + 1)]
    elif stage == RUNTIME:
        limits = [storage_limit(subject.dtype, spec.num_layers + 1)]
    elif (
        stage in (ONNX, ONNX_CUDA) and subject.dtype == BFLOAT16
    ):  # widened to fp32: only the stored weights are rounded
        limits = [storage_limit(subject.dtype, layer + 1) for layer in range(spec.num_layers + 1)]
    elif stage == ENGINE:
        limits = [engine_limit(subject.dtype, spec.num_layers + 1, _sums_of_tensorrt(subject, positions))]
    else:
        limits = [drift_limit(subject.dtype, layer + 1) for layer in range(spec.num_layers + 1)]
    if stage in subject.coded:
        limits = [math.hypot(limits[-1], cache_limit(spec.head_dim, spec.num_layers + 1))]
    named = {LOGITS: _Limit(LOGITS, limits[-1])}
    vision = subject.checkpoint.vision
    seen = {VISION: _Limit(VISION, vision_limit(vision))} if vision else {}
    if stage in (RUNTIME, ON_GPU, ENGINE):
        return seen | named
    embedded = {EMBEDDING: _Limit(EMBEDDING, drift_limit(subject.dtype, 1))} if vision and stage != FOLDED else {}
    blocks = {block_output(layer): _Limit(_place(spec, layer), limits[layer]) for layer in layers}
    return (seen if stage != FOLDED else {}) | embedded | blocks | named


def _sums_of_tensorrt(subject: Subject, positions: int) -> list[int]:
    """Lengths of the sums that TensorRT's own kernels make in a block; our kernels sum in fp32."""
    spec = subject.checkpoint.spec
    attention = [spec.head_dim, positions]
    if subject.engine is not None and subject.engine.has_plugin:
        return attention
    return attention + [spec.linear_shape(name)[1] for name in spec.block.linears]


def _place(spec: DecoderSpec, layer: int) -> str:
    return spec.prefix(layer).rstrip(".")


def _logits(results: list[Any]) -> NDArray[Any] | None:
    """Joins the logits of all calls, [S, V]; None if a call has none."""
    if any(LOGITS not in result for result in results):
        return None
    return np.concatenate([result[LOGITS][0] for result in results])
