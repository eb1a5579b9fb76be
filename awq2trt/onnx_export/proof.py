"""Proof that an import lost nothing: the checkpoint's weights against those of the exported graph.

In: a checkpoint and the model made of it. Out: the largest difference between the weight that the layout's definition
gives for the tensors in the checkpoint, and the weight that the graph's codes stand for; both float32. The
definitions are written down here once more, with shifts instead of the streams of bits of `awq2trt.checkpoint.pack`,
so that a mistake there cannot hide itself. With step sizes rounded to the graph's type both must be equal, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checkpoint.layouts import StoredFormat
from awq2trt.errors import ArtifactError
from awq2trt.progress import Progress
from awq2trt.scheme import QuantScheme

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

    def stored_scheme(self, name: str) -> QuantScheme:
        """How they are quantized."""

    def split_rows(self, name: str, value: Array) -> dict[str, Array]:
        """[N, ...] of a linear in the file -> rows of each linear in the graph, by full name."""


@dataclass(frozen=True)
class ImportProof:
    """How far the graph's weights are from the checkpoint's, all of it by rounding of step sizes.

    Attributes:
        largest: Largest difference of two weights.
        where: The linear it is in; empty if it is 0.
        linears: How many were compared.
    """

    largest: float
    where: str
    linears: int


def prove_import(checkpoint: Checkpoint, model: ir.Model, progress: Progress) -> ImportProof:
    """Compares every quantized linear of a checkpoint with the exported graph, one in memory at a time.

    Raises:
        ArtifactError: A weight or a bias differs by more than the rounding to the graph's type explains.
    """
    stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    lengths = {
        node.name: node.attributes[opset.ATTR_GROUP_SIZE].as_int()
        for node in model.graph
        if node.op_type in opset.LINEAR_OF_BITS.values()
    }
    largest, where = 0.0, ""
    names = checkpoint.stored_names
    with progress.task("comparing weights", total=len(names)) as advance:
        for name in names:
            tensors = checkpoint.stored_tensors(name)
            steps, scales = _definition(checkpoint, name, tensors)
            bias = tensors.get("bias", np.zeros(steps.shape[0], np.float32))
            biases = checkpoint.split_rows(name, bias)
            parts = checkpoint.split_rows(name, scales)
            for part, expected in checkpoint.split_rows(name, steps).items():
                got, length = _exported_weight(stored, part, lengths[part]), lengths[part]
                rounded = parts[part].astype(stored[f"{part}.scales"].numpy().dtype)
                _require_equal(part, "weight", got, expected * _spread(rounded, length, expected.shape[1]))
                _require_equal(part, "bias", *_biases(stored, part, biases[part]))
                difference = float(np.abs(got - expected * _spread(parts[part], length, expected.shape[1])).max())
                if difference > largest:
                    largest, where = difference, part
            advance(1)
    return ImportProof(largest, where, len(names))


def _require_equal(linear: str, what: str, got: Array, expected: Array) -> None:
    difference = np.abs(got.astype(np.float32) - expected.astype(np.float32))
    if difference.max(initial=0.0) == 0:
        return
    place = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), difference.shape)
    raise ArtifactError(
        f"the exported {what} is not the checkpoint's: expected {float(expected[place]):g}, got {float(got[place]):g} "
        f"at {[int(index) for index in place]}.",
        where=linear,
        fix="nothing was written; export again, and report it with the checkpoint's config.json if it happens again.",
    )


def _biases(stored: Mapping[str, ir.TensorProtocol], linear: str, expected: Array) -> tuple[Array, Array]:
    """The exported bias, zeros where there is none, and the checkpoint's in the same type."""
    name = f"{linear}.bias"
    got: Array = stored[name].numpy() if name in stored else np.zeros(expected.shape, np.float32)
    return got, expected.astype(got.dtype)


def _exported_weight(stored: Mapping[str, ir.TensorProtocol], name: str, length: int) -> Array:
    """float32 [N, K] as FORMAT.md defines it: scales * (codes - zeros), a scale and a zero for `length` channels."""
    codes = stored[f"{name}.codes"].numpy().astype(np.float32)
    scales = stored[f"{name}.scales"].numpy()
    if f"{name}.zeros" in stored:
        zeros = stored[f"{name}.zeros"].numpy().astype(np.float32)
        codes -= _spread(zeros, length, codes.shape[1])
    return np.asarray(codes * _spread(scales, length, codes.shape[1]))


def _spread(groups: Array, length: int, columns: int) -> Array:
    """[N, K/G] of any type -> float32 [N, K]."""
    return np.repeat(groups.astype(np.float32), length, axis=1)[:, :columns]


@dataclass(frozen=True)
class _Stored:
    """A linear as the file has it."""

    tensors: Mapping[str, Array]
    bits: int
    rows: int
    columns: int
    groups: int
    has_zeros: bool

    @property
    def middle(self) -> int:
        """The code that means 0 where there are no zero points."""
        return 1 << (self.bits - 1)


def _definition(checkpoint: Checkpoint, name: str, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    """What a layout defines: codes less their zero points, float32 [N, K], and step sizes [N, groups] as stored."""
    (rows, columns), scheme = checkpoint.stored_shape(name), checkpoint.stored_scheme(name)
    groups, length = scheme.groups(columns), scheme.group_of(columns)
    stored = _Stored(tensors, scheme.bits, rows, columns, groups, scheme.zero_point)
    codes, zeros, scales = DEFINITIONS[checkpoint.format.layout.name](stored)
    return codes.astype(np.float32) - _spread(np.broadcast_to(zeros, (rows, groups)), length, columns), scales


def _awq_gemm(stored: _Stored) -> tuple[Array, Array, Array]:
    tensors = stored.tensors
    return _awq_columns(tensors["qweight"]).T, _awq_columns(tensors["qzeros"]).T, tensors["scales"].T


def _gptq(stored: _Stored, offset: int) -> tuple[Array, Array, Array]:
    tensors = stored.tensors
    codes = _stream(tensors["qweight"].T, stored.bits, stored.columns)
    zeros = _stream(tensors["qzeros"], stored.bits, stored.rows).T + offset
    return codes, zeros if stored.has_zeros else np.asarray([[stored.middle]]), tensors["scales"].T


def _pack_quantized(stored: _Stored) -> tuple[Array, Array, Array]:
    tensors, middle = stored.tensors, stored.middle
    codes = _stream(tensors["weight_packed"], stored.bits, stored.columns) - middle
    zeros = np.asarray([[0]])
    if stored.has_zeros:
        zeros = _stream(tensors["weight_zero_point"].T, stored.bits, stored.rows).T - middle
    return codes, zeros, tensors["weight_scale"]


def _natural(stored: _Stored) -> tuple[Array, Array, Array]:
    tensors, rows = stored.tensors, stored.rows
    codes = _natural_codes(tensors["codes"], stored.bits, rows * stored.columns).reshape(rows, -1)
    zeros = np.asarray([[stored.middle]])
    if stored.has_zeros:
        zeros = _natural_codes(tensors["zeros"], stored.bits, rows * stored.groups).reshape(rows, -1)
    return codes, zeros, tensors["scales"]


DEFINITIONS: Final[Mapping[str, Callable[[_Stored], tuple[Array, Array, Array]]]] = {
    "gemm": _awq_gemm,
    "gptq": partial(_gptq, offset=1),
    "gptq_v2": partial(_gptq, offset=0),
    "pack-quantized": _pack_quantized,
    "awq2trt": _natural,
}
"""By the layout's name: a linear's codes [N, K], zero points that broadcast to [N, groups], and scales [N, groups]."""


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


def _natural_codes(packed: Array, bits: int, count: int) -> Array:
    """Our own bytes: INT4 is stored less 8, as ONNX has it; other codes as they are."""
    if bits == 8:
        return packed.astype(np.int64)
    if bits == 4:
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int64)
        return np.where(nibbles > 7, nibbles - 8, nibbles + 8)
    codes: Array = _stream(packed.view("<i4").reshape(1, -1), bits, count)[0]
    return codes
