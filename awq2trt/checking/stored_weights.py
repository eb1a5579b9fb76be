"""Computes every stored tensor of a build again from the stage before.

In: a `Subject`. Out: what is wrong, stage by stage, and which stages cannot be run because files are damaged. `weights`
compares two tensors; this module decides which ones are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from awq2trt.checking.beside import beside_findings
from awq2trt.checking.results import ENGINE, FOLDED, ON_GPU, ONNX, ONNX_CUDA, QUANTIZED, RUNTIME
from awq2trt.checking.subject import Subject
from awq2trt.checking.tolerance import UNIT_ROUNDOFF
from awq2trt.checking.weights import Codes, Finding, code_finding, onnx_findings, rounded_finding
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts.layout import BIAS
from awq2trt.errors import CheckpointError
from awq2trt.graph.read import open_decoder
from awq2trt.models.sources.base import CONFIG_FILE, Array, ModelSource
from awq2trt.progress import Progress
from awq2trt.scheme import BFLOAT16, QuantizedLinear

_HEAD_ROWS: Final = 8192
"""Rows of a head that are compared at once: 8,192 x 4,096 float64 are 256 MiB."""


@dataclass(frozen=True)
class WeightResult:
    """What the weights alone show, for any text.

    Attributes:
        findings: What is wrong with the weights of each stage.
        missing: Why a stage cannot be run.
    """

    findings: Mapping[str, Sequence[Finding]]
    missing: Mapping[str, str]


def check_weights(subject: Subject, progress: Progress) -> WeightResult:
    """Computes every stored tensor again from the stage before.

    Args:
        subject: What to check.
        progress: Counts the blocks.
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
                findings[_owner(tensor, subject.checkpoint)].append(Finding(tensor, error.what))
                missing |= dict.fromkeys((FOLDED, QUANTIZED, ONNX, ONNX_CUDA, RUNTIME, ON_GPU, ENGINE), damaged)
            advance(1)
        if subject.onnx and damaged not in missing.values():
            findings[ONNX] += beside_findings(subject.onnx, subject.checkpoint)
            findings[ONNX] += onnx_findings(open_decoder(subject.onnx)[0], subject.checkpoint)
        advance(1)
    return WeightResult(findings, missing)


def _outer_findings(subject: Subject) -> tuple[list[Finding], list[Finding]]:
    """Findings about embedding, final norm and head, about what a model sees with, and about the description."""
    checkpoint, original = subject.checkpoint, subject.original
    seen_with = {name: checkpoint.linear(name) for name in checkpoint.vision_linears}
    tensors = checkpoint.outer() | checkpoint.vision_tensors(seen_with)
    if original is None:
        return [], []
    codes = list[Finding]()
    if checkpoint.head_scheme is not None:
        weight = f"{checkpoint.spec.stored_head}.weight"
        del tensors[weight]
        codes += _head_findings(checkpoint, original.tensor(weight))
    found = [rounded_finding(name, original.tensor(name), value) for name, value in tensors.items()]
    for name, linear in seen_with.items():
        codes += _vision_findings(subject, original, name, linear)
    ours, theirs = asdict(checkpoint.spec), asdict(original.spec)
    changed = [key for key in theirs if ours[key] != theirs[key]]
    if changed:
        found.append(
            Finding(
                CONFIG_FILE, f"it describes another model than the original, in these fields: {', '.join(changed)}."
            )
        )
    return [finding for finding in found if finding], codes


def _vision_findings(subject: Subject, original: ModelSource, name: str, linear: QuantizedLinear) -> Iterator[Finding]:
    """Findings about one of the linears that a model sees with; nothing was folded into it."""
    magnitude = subject.search.get(f"{name}.magnitude")
    chosen = Codes(subject.nearest, _roundoff(subject.checkpoint), magnitude)
    finding = code_finding(name, original.tensor(f"{name}.weight").astype(np.float32), linear, chosen)
    if finding:
        yield finding
    if linear.bias is not None:
        bias = rounded_finding(f"{name}.bias", original.tensor(f"{name}.bias"), linear.bias)
        if bias:
            yield bias


def _head_findings(checkpoint: QuantizedCheckpoint, weight: Array) -> list[Finding]:
    """Findings about a quantized head's codes: the first piece of rows that is wrong."""
    name = checkpoint.spec.stored_head
    linear = checkpoint.linear(name)
    for start in range(0, linear.out_features, _HEAD_ROWS):
        end = start + _HEAD_ROWS
        rows = weight[start:end].astype(np.float32)
        place = f"{name}, rows from {start}"
        finding = code_finding(place, rows, linear.rows(start, end), Codes(True, _roundoff(checkpoint)))
        if finding:
            return [finding]
    return []


def _roundoff(checkpoint: QuantizedCheckpoint) -> float:
    """How far, relatively, a scale may have changed after the codes were chosen."""
    return UNIT_ROUNDOFF[BFLOAT16] if checkpoint.config.get("torch_dtype") == BFLOAT16 else 0.0


def _block_findings(subject: Subject, layer: int) -> tuple[list[Finding], list[Finding]]:
    """Findings about one block: compares norms and biases with the folded ones, and codes with the folded weights."""
    checkpoint, spec = subject.checkpoint, subject.checkpoint.spec
    prefix = spec.prefix(layer)
    linears = {name: checkpoint.linear(prefix + name) for name in spec.block.linears}
    checkpoint.block(layer)  # a dummy that any codes match
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
            lost = Finding(prefix + name, "the original has a bias, but the checkpoint has none.")
            plain.append(lost if bias is None else rounded_finding(prefix + name, value, bias))
    roundoff, magnitudes = _roundoff(checkpoint), _magnitudes(subject, layer)
    codes = [
        code_finding(
            prefix + name, weights[f"{name}.weight"], linear, Codes(subject.nearest, roundoff, magnitudes.get(name))
        )
        for name, linear in linears.items()
    ]
    return [finding for finding in plain if finding], [finding for finding in codes if finding]


def _magnitudes(subject: Subject, layer: int) -> dict[str, Array]:
    """Mean magnitude of what each linear of a block reads after folding, [K] each, if the search has left it."""
    spec, found = subject.checkpoint.spec, dict[str, Array]()
    for group in spec.scale_groups():
        searched = spec.prefix(layer) + group.balance_layers[0]
        magnitude, scales = (subject.search.get(f"{searched}.{kind}") for kind in ("magnitude", "scales"))
        if magnitude is not None and scales is not None:
            found.update(dict.fromkeys(group.balance_layers, magnitude / scales))
    return found


def _owner(tensor: str, checkpoint: QuantizedCheckpoint) -> str:
    """The stage to which a damaged tensor of the checkpoint belongs: quantizing for codes, folding for all others.

    A linear is named as in the checkpoint or, if it is fused, by its parts; tensors are named as in its layout.
    """
    spec = checkpoint.spec
    linears = (*spec.block.linears, *spec.stored_linears(), spec.stored_head)
    owner, _, kind = tensor.rpartition(".")
    is_code = kind in checkpoint.format.layout.tensor_names and kind != BIAS
    of_linear = owner.endswith(linears) or owner in checkpoint.vision_linears
    return QUANTIZED if tensor.endswith(linears) or (is_code and of_linear) else FOLDED


def _tensor_of(error: CheckpointError) -> str:
    """The tensor that an error is about, without the directory before it."""
    return (error.where or "checkpoint").rpartition(": ")[2]
