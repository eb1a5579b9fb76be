"""Formats what commands print: turns results into lines of text or JSON, and computes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from awq2trt.evaluation.results import (
    CAPTION,
    CHOICE,
    CaptionedImages,
    CaptionPerplexity,
    CaptionScore,
    TaskExamples,
    TextWindows,
)
from awq2trt.evaluation.tasks import TaskScore
from awq2trt.target import MINIMUM_CAPABILITY, TARGETS, Flavour, Target

if TYPE_CHECKING:
    from awq2trt.artifact.manifest import Artifact
    from awq2trt.artifact.records import Contents, WeightRecord
    from awq2trt.checking.outcome import CheckOutcome, GoldenOutcome
    from awq2trt.checking.results import Place, StageResult
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.results import EvalRequest, EvalResult
    from awq2trt.report.inspection import Inspection


def target_lines() -> Iterator[str]:
    """The table of targets."""
    yield f"{'target':15} {'compute capability':19} {'memory':>8} {'GB/s':>7}  {'makes':7} description"
    for target in TARGETS.values():
        memory = f"{target.memory_bytes >> 30} GB" if target.memory_bytes else "-"
        bandwidth = f"{target.bandwidth_bytes_per_s / 1e9:g}" if target.bandwidth_bytes_per_s else "-"
        makes = {Flavour.TENSORRT: "kit", Flavour.TENSORRT_RTX: "engine", Flavour.ONNXRUNTIME: "model"}[target.flavour]
        capability = f"{_capability(target):19} {memory:>8} {bandwidth:>7}"
        yield f"{target.name:15} {capability}  {makes:7} {target.title}, {_runs(target)}"


def _capability(target: Target) -> str:
    if target.is_lowered:
        return f"{MINIMUM_CAPABILITY[0]}.{MINIMUM_CAPABILITY[1]} or later" if target.cuda else "-"
    return ", ".join(target.capability_names) or "of this machine"


_RUNTIMES: Final = {
    Flavour.TENSORRT: "TensorRT",
    Flavour.TENSORRT_RTX: "TensorRT-RTX",
    Flavour.ONNXRUNTIME: "ONNX Runtime",
}


def _runs(target: Target) -> str:
    return f"{_RUNTIMES[target.flavour]} {target.minimum_version[0]}.{target.minimum_version[1]} or later"


def eval_title(request: EvalRequest) -> str:
    """Describes the rows that follow, and heads their columns."""
    on, columns = request.on, f"{'executor':12}  {'scheme':14}  model"
    if isinstance(on, TaskExamples):
        measured = f"{on.task}, zero-shot, prompts and scoring of lm-evaluation-harness, {on.data.name}."
        numbers = f"{_task_columns()}  {'seconds':>7}"
    elif isinstance(on, CaptionedImages):
        return f"{_of_images(on)}  {columns}"
    else:
        measured = (
            f"Perplexity on the first {on.windows} windows of {on.seqlen} tokens of {on.text}, "
            "no BOS unless the model needs it."
        )
        numbers = f"{'perplexity':>10}  {'windows':>11}  {'seconds':>7}"
    return f"{measured}\n{numbers}  {columns}"


def _of_images(on: CaptionedImages) -> str:
    """What is measured on pictures, and the columns of its numbers."""
    first = "" if on.limit is None else f"the first {on.limit} of "
    where = f"{first}{on.images}, no BOS unless the model needs it."
    if on.task == CAPTION:
        return f"CIDEr-D of captions, written greedily, on {where}\n{'CIDEr-D':>10}  {'captions':>8}  {'seconds':>7}"
    if on.task == CHOICE:
        numbers = _task_columns()
        return f"Accuracy in choosing the likeliest answer to questions on images, {where}\n{numbers}  {'seconds':>7}"
    numbers = f"{'perplexity':>10}  {'captions':>8}  {'tokens':>7}"
    return f"Perplexity of captions given their images, {where}\n{numbers}  {'seconds':>7}"


def _task_columns() -> str:
    return f"{'acc':>8}  {'acc_norm':>8}  {'perplexity':>10}  {'examples':>8}"


def eval_row(result: EvalResult) -> str:
    """Formats what was measured of one model."""
    measured = result.measured
    if isinstance(measured, TaskScore):
        numbers = _task_numbers(measured)
    elif isinstance(measured, CaptionPerplexity):
        numbers = f"{measured.value:10.3f}  {len(measured.caption_nll):8}  {measured.tokens:7}"
    elif isinstance(measured, CaptionScore):
        numbers = f"{measured.cider:10.3f}  {len(measured.captions):8}"
    else:
        numbers = _perplexity_numbers(measured)
    return f"{numbers}  {result.seconds:7.1f}  {result.executor:12}  {result.scheme or 'original':14}  {result.model}"


def _perplexity_numbers(perplexity: Perplexity) -> str:
    windows = f"{perplexity.windows} x {perplexity.seqlen}"
    return f"{perplexity.value:10.3f}  {windows:>11}"


def _task_numbers(score: TaskScore) -> str:
    normalised = "" if score.accuracy_normalised is None else f"{score.accuracy_normalised:.2%}"
    perplexity = "" if score.perplexity is None else f"{score.perplexity:.3f}"
    return f"{score.accuracy:8.2%}  {normalised:>8}  {perplexity:>10}  {score.examples:8}"


def results_json(request: EvalRequest, results: Sequence[EvalResult]) -> str:
    """Formats the results of `eval` as JSON, for programs and for `inspect --html`."""
    asked = asdict(request)
    on = asked.pop("on")
    measured = "perplexity" if isinstance(request.on, TextWindows) or request.on.task is None else "score"
    found = [asdict(result) for result in results]
    values = {
        "request": asked | on,
        "results": [{measured if key == "measured" else key: value for key, value in one.items()} for one in found],
    }
    return json.dumps(values, indent=1, default=str) + "\n"


def linear_lines(inspection: Inspection) -> Iterator[str]:
    """Formats a checkpoint's linears, and their sums."""
    width = max(len(row.name) for row in inspection.linears)
    columns = f"{'bits':>4} {'group':>5} {'alpha':>5} {'clipped':>7} {'rounded':>8} {'error':>8} {'kB':>10}"
    yield f"{'linear':{width}} {columns}"
    for row in inspection.linears:
        shares = f"{_share(row.clipped_share):>7} {_share(row.error_rounded):>8} {_share(row.error):>8}"
        alpha = "" if row.alpha is None else f"{row.alpha:.2f}"
        numbers = f"{row.bits:4} {row.group_length:5} {alpha:>5} {shares} {row.size_bytes / 1e3:10,.1f}"
        yield f"{row.name:{width}} {numbers}"
    for purpose, size in inspection.sizes.items():
        yield f"{purpose:20} {size / 1e6:10,.2f} MB {size / inspection.size_bytes:6.1%}"
    yield f"{'all weights':20} {inspection.size_bytes / 1e6:10,.2f} MB"
    yield f"{'quantized linears':20} {inspection.bits_per_weight:10.3f} bits a weight, including scales and zero points"


def inspection_json(artifact: Artifact, inspection: Inspection | None) -> str:
    """Formats the manifest and what is known about every linear as JSON."""
    linears = inspection.to_json() if inspection else None
    return json.dumps({"manifest": artifact.manifest.model_dump(mode="json"), "inspection": linears}, indent=1)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def golden_lines(outcome: GoldenOutcome) -> Iterator[str]:
    """Formats the comparison with golden outputs, by executor and call, and the verdict."""
    executors = {outcome.executor: outcome.results, "the engine": outcome.engine}
    yield f"{'call':10} {'relative error':>14}  best token"
    for name, results in executors.items():
        if results and outcome.engine:
            yield f"in {name}:"
        for result in results:
            best = {True: "as expected", False: "another", None: "-"}[result.top1]
            yield f"{result.name:10} {result.error:14.2e}  {best:12} {'' if result.passed else 'FAILED'}".rstrip()
    if outcome.engine_skipped:
        yield f"the engine was not run: {outcome.engine_skipped}"
    failed = [f"{call.name} in {name}" for name, calls in executors.items() for call in calls if not call.passed]
    run = [name for name, results in executors.items() if results]
    yield f"failed: {', '.join(failed)}" if failed else f"golden outputs: passed in {' and '.join(run)}"


def check_lines(outcome: CheckOutcome) -> Iterator[str]:
    """Formats a check: each stage's worst block and logits, commands that repeat it, and the verdict."""
    result = outcome.result
    yield f"{len(result.tokens)} tokens. Errors are relative, of the worst position; their limits are in brackets."
    yield f"{'stage':10} {'against':10} {'worst block':>32} {'logits':>18} {_NUMBERS}"
    for stage in result.stages:
        yield f"{stage.stage:10} {stage.skipped or _stage_numbers(stage)}".rstrip()
        for finding in stage.findings[:_FINDINGS_SHOWN]:
            yield f"  FAILED {finding.place}: {finding.message}"
        if len(stage.findings) > _FINDINGS_SHOWN:
            yield f"  FAILED and {len(stage.findings) - _FINDINGS_SHOWN} more tensors"
    for stage in result.stages:
        if not stage.skipped:
            yield f"{stage.stage:10} is {result.title(stage.stage)}, {stage.seconds:.1f} s"
    for command in outcome.commands:
        yield f"by hand, with {command.needs}:\n  {command.text}"
    for name in result.changed:
        yield f"FAILED {name} was changed since it was written"
    if outcome.cut is not None:
        cut = outcome.cut
        yield f"first wrong node: {cut.node} ({cut.op_type}), relative error {cut.error:.2g}"
        yield f"  {cut.nodes} nodes and their inputs are in {cut.folder}"
    failure = result.first_failure()
    if failure is not None:
        yield f"failed first at stage {failure.stage}, {failure.place}: {failure.message}"
    elif result.passed:
        yield f"passed: {', '.join(stage.stage for stage in result.stages if not stage.skipped)}"
    else:
        yield "failed" if result.changed else "failed: there was nothing to compare"


_NUMBERS: Final = (
    f"{'max abs':>8} {'mean abs':>8} {'mean rel':>8} {'1 - cos':>8} {'mean KL':>8} {'top-1':>7} {'perplexity':>10}"
)
"""Headings of the columns about logits."""


def _stage_numbers(stage: StageResult) -> str:
    """Formats the differences of a stage from the one before."""
    if stage.against is None or not stage.places:
        return ""
    blocks, logits = stage.places[:-1], stage.places[-1]  # a graph beside the decoder counts as a block
    # NaN is the worst result, but comparing numbers does not find it.
    worst = max(blocks, key=lambda place: (math.isnan(place.error), place.error / place.limit), default=None)
    block = f"{worst.name} {_error(worst)}" if worst else ""
    difference, agreed = logits.difference, stage.agreement
    numbers = f"{difference.max_abs:8.1e} {difference.mean_abs:8.1e} {difference.mean_relative:8.1e}"
    shares = f"{agreed.mean_kl:8.1e} {agreed.top1:7.2%} {agreed.perplexity:10.3f}" if agreed else ""
    return f"{stage.against:10} {block:>32} {_error(logits):>18} {numbers} {1 - difference.cosine:8.1e} {shares}"


def _error(place: Place) -> str:
    return f"{place.error:.1e} ({place.limit:.1e}){'' if place.passed else ' FAILED'}"


_FINDINGS_SHOWN: Final = 5
"""Number of findings that are shown: damage is usually everywhere at once, and a few tensors show what it is."""


def artifact_lines(artifact: Artifact) -> Iterator[str]:
    """Describes what an artifact is, comes from and holds."""
    manifest = artifact.manifest
    for name, value in _facts(manifest.contents):
        yield f"{name:14} {value}"
    yield f"{'made by':14} awq2trt {manifest.tool_version}"
    total_bytes = sum(record.size_bytes for record in manifest.files.values())
    yield f"{'kind':14} {manifest.kind}, {len(manifest.files)} files, {total_bytes / 1e6:,.1f} MB, every hash verified"
    for name, record in manifest.files.items():
        yield f"  {record.sha256[:12]} {record.size_bytes / 1e6:>12,.2f} MB  {name}"


def _stored(weight: WeightRecord) -> str:
    return weight.scheme.describe() if weight.scheme else weight.dtype


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    yield "model", f"{contents.source.model} ({contents.source.family})"
    quantization = contents.quantization
    yield "quantization", f"{quantization.method}, {quantization.scheme.describe()}"
    calibration = quantization.calibration
    if calibration is not None:
        yield "calibration", f"{calibration.text}, {calibration.samples} x {calibration.seqlen} tokens"
    if quantization.head is not None:
        yield "head", _stored(quantization.head)
    vision = contents.model.vision if contents.model else None
    if vision is not None:
        count = vision.tokens_per_image
        tokens = "of any size, with tokens to match" if count is None else f"{count} tokens each"
        yield "images", f"as {vision.family} sees them, {tokens}"
    decoder = contents.decoder
    if decoder is not None and decoder.cache is not None:
        yield "cache", f"{decoder.capacity} positions, {decoder.cache.dtype}"
        yield "operators", ", ".join(f"{name} {version}" for name, version in contents.operators.items())
    engine = contents.engine
    if engine is not None:
        capabilities = ", ".join(engine.compute_capabilities)
        kernels = f"plugin library {engine.plugin_version} inside" if engine.plugin_version else "TensorRT's kernels"
        yield "engine", f"{engine.target} ({capabilities}), {engine.flavour} {engine.tensorrt_version}, {kernels}"
    kit = contents.kit
    if kit is not None:
        brings = "plugin library" if kit.plugin_cuda else "sources of the plugin library"
        yield (
            "kit",
            f"{kit.target} (compute capability {kit.compute_capability}), JetPack {kit.jetpack}, {brings} inside",
        )
        memory = f"{kit.build_bytes / 2**30:.1f} GiB to build, {kit.run_bytes / 2**30:.1f} GiB to run"
        yield "predicted", f"{memory}, {kit.disk_bytes / 2**30:.1f} GiB of disk"
