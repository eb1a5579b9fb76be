"""Proof that an import lost nothing: the checkpoint's weights against those of the exported graph.

In: a checkpoint and the model made of it. Out: the largest difference between the weight that the layout's definition
gives for the tensors in the checkpoint, and the weight that the graph's INT4 initializers stand for; both float32. The
definitions are written down here once more, with shifts instead of the streams of bits of `awq2trt.checkpoint.pack`,
so that a mistake there cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint.layouts import GEMM, GPTQ, GPTQ_V2, NATURAL, PACKED, StoredFormat
from awq2trt.progress import Progress

Array = NDArray[Any]

_AWQ_SHIFTS: Final = (0, 16, 4, 20, 8, 24, 12, 28)
"""Where each of eight neighbouring columns lies in AutoAWQ's word."""


class Checkpoint(Protocol):
    """What the proof reads: `QuantizedCheckpoint` has it."""

    format: StoredFormat

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The quantized linears as they are in the file."""

    def stored_tensors(self, name: str) -> dict[str, Array]:
        """Their tensors."""

    def stored_shape(self, name: str) -> tuple[int, int]:
        """Their N, K."""

    def split_rows(self, name: str, value: Array) -> dict[str, Array]:
        """[N, ...] of a linear in the file -> rows of each linear in the graph, by full name."""


@dataclass(frozen=True)
class ImportProof:
    """How far the graph's weights are from the checkpoint's.

    Attributes:
        largest: Largest difference of two weights.
        where: The linear it is in; empty if it is 0.
        linears: How many were compared.
    """

    largest: float
    where: str
    linears: int


def prove_import(checkpoint: Checkpoint, model: ir.Model, progress: Progress) -> ImportProof:
    """Compares every quantized linear of a checkpoint with the exported graph, one in memory at a time."""
    stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    lengths = {
        node.name: node.attributes[opset.ATTR_GROUP_SIZE].as_int()
        for node in model.graph
        if node.op_type == opset.W4A16_LINEAR
    }
    largest, where = 0.0, ""
    names = checkpoint.stored_names
    with progress.task("comparing weights", total=len(names)) as advance:
        for name in names:
            shape = checkpoint.stored_shape(name)
            weight = defined_weight(checkpoint.format, checkpoint.stored_tensors(name), shape)
            for part, expected in checkpoint.split_rows(name, weight).items():
                difference = float(np.abs(_exported_weight(stored, part, lengths[part]) - expected).max())
                if not difference <= largest:  # NaN is a difference
                    largest, where = difference, part
            advance(1)
    return ImportProof(largest, where, len(names))


def _exported_weight(stored: Mapping[str, ir.TensorProtocol], name: str, length: int) -> Array:
    """float32 [N, K] as FORMAT.md defines it: scales * (codes - zeros), a scale and a zero for `length` channels."""
    codes = stored[f"{name}.codes"].numpy().astype(np.float32)
    scales = stored[f"{name}.scales"].numpy().astype(np.float32)
    if f"{name}.zeros" in stored:
        zeros = stored[f"{name}.zeros"].numpy().astype(np.float32)
        codes -= _spread(zeros, length, codes.shape[1])
    return np.asarray(codes * _spread(scales, length, codes.shape[1]))


def _spread(groups: Array, length: int, columns: int) -> Array:
    return np.repeat(groups, length, axis=1)[:, :columns]


def defined_weight(stored: StoredFormat, tensors: Mapping[str, Array], shape: tuple[int, int]) -> Array:
    """The weight float32 [N, K] that a layout defines for a linear's tensors."""
    rows, columns = shape
    scheme, layout = stored.scheme, stored.layout
    groups, length = scheme.groups(columns), scheme.group_of(columns)
    middle = scheme.symmetric_zero
    if layout == GEMM:
        codes, zeros = _awq_columns(tensors["qweight"]).T, _awq_columns(tensors["qzeros"]).T
        scales = tensors["scales"].T
    elif layout in (GPTQ, GPTQ_V2):
        codes = _stream(tensors["qweight"].T, scheme.bits, columns)
        zeros = _stream(tensors["qzeros"], scheme.bits, rows).T + (1 if layout == GPTQ else 0)
        scales = tensors["scales"].T
    elif layout == PACKED:
        codes = _stream(tensors["weight_packed"], scheme.bits, columns) - middle
        scales = tensors["weight_scale"]
        zeros = np.zeros(scales.shape, np.int64)
        if scheme.zero_point:
            zeros = _stream(tensors["weight_zero_point"].T, scheme.bits, rows).T - middle
    else:
        assert layout == NATURAL
        codes = _natural(tensors["codes"], scheme.bits, rows * columns).reshape(shape)
        scales = tensors["scales"]
        zeros = np.full(scales.shape, middle)
        if scheme.zero_point:
            zeros = _natural(tensors["zeros"], scheme.bits, rows * groups).reshape(rows, groups)
    steps = codes.astype(np.float32) - _spread(zeros.astype(np.float32), length, columns)
    return np.asarray(steps * _spread(scales.astype(np.float32), length, columns))


def _awq_columns(words: Array) -> Array:
    """[rows, N/8] -> [rows, N]."""
    columns = [(words >> shift) & 15 for shift in _AWQ_SHIFTS]
    return np.stack(columns, axis=2).reshape(words.shape[0], -1)


def _stream(words: Array, bits: int, count: int) -> Array:
    """[rows, words] -> [rows, count]; code i begins at bit i * bits of its row."""
    wide = words.astype(np.int64) & 0xFFFFFFFF
    wide = np.pad(wide, ((0, 0), (0, 1)))
    starts = np.arange(count) * bits
    first, offset = starts // 32, starts % 32
    both = wide[:, first] | (wide[:, first + 1] << 32)
    codes: Array = (both >> offset) & ((1 << bits) - 1)
    return codes


def _natural(packed: Array, bits: int, count: int) -> Array:
    """Our own bytes: INT4 is stored less 8, as ONNX has it; narrower codes as they are."""
    if bits == 4:
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int64)
        return np.where(nibbles > 7, nibbles - 8, nibbles + 8)
    codes: Array = _stream(packed.view("<i4").reshape(1, -1), bits, count)[0]
    return codes
