"""Proof that an import lost nothing: the checkpoint's weights against those of the exported graph.

In: a checkpoint and the model made of it. Out: the largest difference between the weights that the tensors in the
checkpoint stand for, by the layout's definition, and those that the graph's codes stand for; both are float32. The
definitions are written here a second time, with shifts instead of the bit streams of `awq2trt.checkpoint.pack`, so that
a mistake there cannot go unnoticed. With step sizes rounded to the graph's type both must be equal, bit for bit.
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
from awq2trt.models.families import DecoderSpec
from awq2trt.progress import Progress
from awq2trt.scheme import QuantScheme

Array = NDArray[Any]

_AWQ_SHIFTS: Final = (0, 16, 4, 20, 8, 24, 12, 28)
"""The position of each of eight neighbouring columns in AutoAWQ's word."""


class Checkpoint(Protocol):
    """The part of `QuantizedCheckpoint` that the proof reads."""

    format: StoredFormat
    spec: DecoderSpec

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
    """How far the graph's weights are from the checkpoint's, which only the rounding of step sizes may cause.

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
    graph = _Graph.of(model, checkpoint)
    largest, where = 0.0, ""
    names = checkpoint.stored_names
    with progress.task("comparing weights", total=len(names)) as advance:
        for name in names:
            tensors = checkpoint.stored_tensors(name)
            group = _group_of_channel(checkpoint, name, tensors)  # [K]
            steps, scales = _definition(checkpoint, name, tensors, group)
            bias = tensors.get("bias", np.zeros(steps.shape[0], np.float32))
            biases, parts = checkpoint.split_rows(name, bias), checkpoint.split_rows(name, scales)
            for part, expected in checkpoint.split_rows(name, steps).items():
                got, scales = graph.weight(part), parts[part]
                rounded = scales.astype(graph.stored[f"{part}.scales"].numpy().dtype).astype(np.float32)
                _require_equal(part, "weight", got, expected * rounded[:, group])
                _require_equal(part, "bias", *graph.biases(part, biases[part]))
                difference = float(np.abs(got - expected * scales.astype(np.float32)[:, group]).max())
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


@dataclass(frozen=True)
class _Graph:
    """The exported graph's linears, their channels in the order of the checkpoint's.

    Act-order (a checkpoint whose groups follow the activations) may have sorted the inputs of a linear, which a
    `Gather` before it does, or the channels between gate, up and down, whose rows and columns then are in one order.

    Attributes:
        stored: Initializers by name.
        nodes: Quantized linears by name.
        rows: The output channel of each row, by the full name of the linear, for linears with sorted rows.
        columns: The input channel of each column in the same way.
    """

    stored: Mapping[str, ir.TensorProtocol]
    nodes: Mapping[str, ir.Node]
    rows: Mapping[str, Array]
    columns: Mapping[str, Array]

    @staticmethod
    def of(model: ir.Model, checkpoint: Checkpoint) -> _Graph:
        stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
        nodes = {str(node.name): node for node in model.graph if node.op_type in opset.LINEAR_OF_BITS.values()}
        columns = {name: order for name, node in nodes.items() if (order := _gathered(node)) is not None}
        rows: dict[str, Array] = {}
        spec = checkpoint.spec
        ordered = {*checkpoint.stored_names} if checkpoint.format.layout.group_of_channel else set()
        for layer in range(spec.num_layers):
            prefix, down = spec.prefix(layer), spec.prefix(layer) + spec.block.down_proj
            if down in ordered and down not in columns:
                group = _group_of_channel(checkpoint, down, checkpoint.stored_tensors(down))
                columns[down] = np.argsort(group, kind="stable")
                rows |= dict.fromkeys((prefix + name for name in spec.block.mlp_inputs), columns[down])
        return _Graph(stored, nodes, rows, columns)

    def weight(self, name: str) -> Array:
        """float32 [N, K] as FORMAT.md defines it: scales * (codes - zeros), a scale and a zero for a group."""
        length = self.nodes[name].attributes[opset.ATTR_GROUP_SIZE].as_int()
        codes = self.stored[f"{name}.codes"].numpy().astype(np.float32)
        if f"{name}.zeros" in self.stored:
            codes -= _spread(self.stored[f"{name}.zeros"].numpy(), length, codes.shape[1])
        found = codes * _spread(self.stored[f"{name}.scales"].numpy(), length, codes.shape[1])
        rows, columns = np.arange(found.shape[0]), np.arange(found.shape[1])
        weight = np.full_like(found, np.nan)  # a placeholder that is no channel
        weight[np.ix_(self.rows.get(name, rows), self.columns.get(name, columns))] = found
        return weight

    def biases(self, name: str, expected: Array) -> tuple[Array, Array]:
        """The exported bias, or zeros without one, and the checkpoint's bias in the same type."""
        stored = f"{name}.bias"
        found: Array = self.stored[stored].numpy() if stored in self.stored else np.zeros(expected.shape, np.float32)
        bias = np.full_like(found, np.nan)
        bias[self.rows.get(name, np.arange(len(found)))] = found
        return bias, expected.astype(found.dtype)


def _gathered(node: ir.Node) -> Array | None:
    """The channels that a `Gather` before a linear picks; None without such a node."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != "Gather" or producer.inputs[1] is None:
        return None
    picked = producer.inputs[1].const_value
    return None if picked is None else np.asarray(picked.numpy())


def _group_of_channel(checkpoint: Checkpoint, name: str, tensors: Mapping[str, Array]) -> Array:
    """The group of each input channel, [K], as the file says or by the groups' length."""
    columns, kind = checkpoint.stored_shape(name)[1], checkpoint.format.layout.group_of_channel
    if kind is not None and kind in tensors:
        return tensors[kind].astype(np.int64)
    return np.arange(columns) // checkpoint.stored_scheme(name).group_of(columns)


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
        """The code that means 0 if there are no zero points."""
        return 1 << (self.bits - 1)


def _definition(checkpoint: Checkpoint, name: str, tensors: Mapping[str, Array], group: Array) -> tuple[Array, Array]:
    """What a layout defines: codes less their zero points, float32 [N, K], and step sizes [N, groups] as stored."""
    (rows, columns), scheme = checkpoint.stored_shape(name), checkpoint.stored_scheme(name)
    groups = scheme.groups(columns)
    stored = _Stored(tensors, scheme.bits, rows, columns, groups, scheme.zero_point)
    codes, zeros, scales = DEFINITIONS[checkpoint.format.layout.name](stored)
    return codes.astype(np.float32) - np.broadcast_to(zeros, (rows, groups)).astype(np.float32)[:, group], scales


def _awq_gemm(stored: _Stored) -> tuple[Array, Array, Array]:
    tensors = stored.tensors
    return _awq_columns(tensors["qweight"]).T, _awq_columns(tensors["qzeros"]).T, tensors["scales"].T


def _gemv(stored: _Stored) -> tuple[Array, Array, Array]:
    tensors, groups = stored.tensors, stored.groups
    codes = _stream(tensors["qweight"], stored.bits, stored.columns)
    return codes, _stream(tensors["qzeros"], stored.bits, groups), tensors["scales"][:, :groups]


def _gemv_fast(stored: _Stored) -> tuple[Array, Array, Array]:
    """A code's place among the 256 of a tile; four to a word, as `pack_intweight` shuffles them."""
    tensors, groups = stored.tensors, stored.groups
    row, column = np.arange(stored.rows)[:, None], np.arange(stored.columns)[None, :]
    eight, pair, parity = column % 32 // 8, column % 8 // 2, column % 2
    place = row % 4 * 64 + column % 64 // 32 * 32 + pair * 8 + parity * 4 + eight  # in a tile of 4 rows, 64 columns
    words = tensors["qweight"].astype(np.int64)[row // 4, column // 64 * 64 + place // 4]
    scales = tensors["scales"].T[:, :groups]
    wide = np.where(scales == 0, 1, scales.astype(np.float64))
    return words >> place % 4 * 4 & 15, np.rint(-tensors["scaled_zeros"].T[:, :groups] / wide), scales


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
    "gemv": _gemv,
    "gemv_fast": _gemv_fast,
    "auto_round:auto_gptq": partial(_gptq, offset=1),
    "auto_round:gptqmodel": partial(_gptq, offset=0),
    "auto_round:auto_awq": _awq_gemm,
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
