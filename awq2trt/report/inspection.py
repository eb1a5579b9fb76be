"""Inspects a quantized checkpoint linear by linear: bits, alpha, clips, error, size. It needs only NumPy.

In: a checkpoint that `quantize` wrote, with `quantization.json` and `quantization.npz` if its method wrote them. Out:
an `Inspection`, which the command line prints and `html` draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from awq2trt.artifact.arrays import read_arrays
from awq2trt.artifact.manifest import Artifact
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import REPORT_FILE, SEARCH_FILE
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import read_json, reading

SALIENT_SHARE: Final = 0.01
"""The share of channels that the AWQ paper calls salient: the 1 % with the largest activations (section 3.1)."""

_DTYPE_BITS: Final = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8}


@dataclass(frozen=True)
class LinearRow:
    """One linear.

    Attributes:
        name: Its full name.
        block: Number of its block.
        alpha: Exponent of its input's scales; None if none were searched.
        clipped_share: Share of its groups whose range was clipped; None if unknown.
        error_rounded: Relative output error of plain rounding on the calibration text; None if unknown.
        error: The same error of the stored linear.
        size_bytes: Size of all its tensors.
    """

    name: str
    block: int
    bits: int
    group_length: int
    alpha: float | None
    clipped_share: float | None
    error_rounded: float | None
    error: float | None
    size_bytes: int


@dataclass(frozen=True)
class InputChannels:
    """The channels of an input that linears share, as the original model has them.

    Attributes:
        name: The first linear that reads it.
        activation: Mean |x| by channel on the calibration text, fp32 [K].
        weight: Mean |w| of that linear by input channel, with the scales removed again, fp32 [K].
        scales: s by channel, fp32 [K].
    """

    name: str
    activation: NDArray[np.float32]
    weight: NDArray[np.float32]
    scales: NDArray[np.float32]

    @property
    def salient(self) -> NDArray[np.int64]:
        """Indices of the salient channels; at least one."""
        count = max(1, round(SALIENT_SHARE * self.activation.size))
        return np.argsort(-self.activation)[:count]


@dataclass(frozen=True)
class Inspection:
    """What is known about a checkpoint.

    Attributes:
        model: The model that it was made from.
        method: The method that quantized it.
        scheme: The scheme, as `QuantScheme.describe` names it.
        linears: The linears in the order in which they run.
        sizes: Bytes by purpose.
        bits_per_weight: Bits per weight of the blocks' quantized linears, including scales and zero points.
    """

    model: str
    method: str
    scheme: str
    linears: tuple[LinearRow, ...]
    sizes: dict[str, int]
    bits_per_weight: float

    @property
    def size_bytes(self) -> int:
        """Size of all weights."""
        return sum(self.sizes.values())

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**asdict(self), "linears": [asdict(row) for row in self.linears], "size_bytes": self.size_bytes}


def inspect_checkpoint(artifact: Artifact) -> Inspection:
    """Reads what a checkpoint's files say about it.

    Raises:
        ArtifactError: A file is damaged.
    """
    checkpoint = QuantizedCheckpoint.open(artifact.directory)
    spec, quantization = checkpoint.spec, artifact.manifest.contents.quantization
    reports = _reports(artifact)
    bytes_of = _tensor_bytes(checkpoint.files)
    rows, weights = [], 0
    for layer in range(spec.num_layers):
        for relative in spec.block.linears:
            name = spec.prefix(layer) + relative
            report = reports.get(name, {})
            rows_count, columns = spec.linear_shape(relative)
            weights += rows_count * columns
            rows.append(
                LinearRow(
                    name=name,
                    block=layer,
                    bits=checkpoint.scheme.bits,
                    group_length=checkpoint.scheme.group_of(columns),
                    alpha=report.get("alpha"),
                    clipped_share=report.get("clipped_share"),
                    error_rounded=report.get("error_rounded"),
                    error=report.get("error"),
                    size_bytes=sum(size for tensor, size in bytes_of.items() if tensor.rpartition(".")[0] == name),
                )
            )
    linear_bytes = sum(row.size_bytes for row in rows)
    return Inspection(
        model=artifact.manifest.contents.source.model,
        method=quantization.method,
        scheme=checkpoint.scheme.describe(),
        linears=tuple(rows),
        sizes=_sizes(bytes_of, checkpoint),
        bits_per_weight=linear_bytes * 8 / weights,
    )


def input_channels(artifact: Artifact, block: int) -> tuple[InputChannels, ...]:
    """The inputs of a block's linears, channel by channel; empty if the method stored no statistics.

    Raises:
        ArtifactError: A file is damaged.
    """
    path = artifact.directory / SEARCH_FILE
    if SEARCH_FILE not in artifact.manifest.files:
        return ()
    search = read_arrays(path, fix=_AGAIN)
    checkpoint = QuantizedCheckpoint.open(artifact.directory)
    prefix = checkpoint.spec.prefix(block)
    inputs = []
    for key, activation in search.items():
        name, _, kind = key.rpartition(".")
        if kind == "magnitude" and name.startswith(prefix):
            scales = search.get(f"{name}.scales", np.ones_like(activation))
            weight = np.abs(checkpoint.linear(name).dequantize()).mean(axis=0) / scales
            inputs.append(InputChannels(name, activation, weight, scales))
    return tuple(inputs)


def worst_block(inspection: Inspection) -> int:
    """The block whose linears have the largest mean error; the middle block if no errors are known."""
    blocks: dict[int, list[float]] = {}
    for row in inspection.linears:
        if row.error is not None:
            blocks.setdefault(row.block, []).append(row.error)
    if not blocks:
        return inspection.linears[len(inspection.linears) // 2].block
    return max(blocks, key=lambda block: sum(blocks[block]) / len(blocks[block]))


_AGAIN: Final = "quantize the model again."


def _reports(artifact: Artifact) -> dict[str, dict[str, Any]]:
    if REPORT_FILE not in artifact.manifest.files:
        return {}
    path = artifact.directory / REPORT_FILE
    with reading("a report of `quantize`", path, fix=_AGAIN, error=ArtifactError):
        value = read_json(path, fix=_AGAIN, error=ArtifactError)
        return {name: dict(report) for name, report in value.items()}


def _tensor_bytes(files: Iterable[Path]) -> dict[str, int]:
    """Bytes of every tensor, from the files' headers."""
    found = {}
    for path in files:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                found[name] = math.prod(part.get_shape()) * _DTYPE_BITS[part.get_dtype()] // 8
    return found


def _sizes(bytes_of: Mapping[str, int], checkpoint: QuantizedCheckpoint) -> dict[str, int]:
    """Bytes by purpose."""
    spec = checkpoint.spec
    purposes = {
        "codes": ("codes", "qweight", "weight_packed"),
        "scales": ("scales", "weight_scale"),
        "zero points": ("zeros", "qzeros", "weight_zero_point"),
    }
    kinds = {kind: purpose for purpose, names in purposes.items() for kind in names}
    linears = {spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.block.linears}
    vision = {} if checkpoint.vision is None else checkpoint.vision.shapes()
    coded = set(checkpoint.vision_linears)
    sizes: dict[str, int] = {}
    for name, size in bytes_of.items():
        owner, _, kind = name.rpartition(".")
        if owner in coded:
            purpose = "codes of what it sees with"  # with their scales, zero points and biases
        elif name in vision:
            purpose = "what it sees with"
        elif owner in linears:
            purpose = kinds.get(kind, "biases")
        elif owner == spec.embedding:
            purpose = "embedding and head" if spec.tie_embeddings else "embedding"
        elif owner == spec.head:
            purpose = "head"
        else:
            purpose = "norms"
        sizes[purpose] = sizes.get(purpose, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
