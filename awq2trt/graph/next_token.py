"""Adds the output `next_token` to a decoder: the best token of the last position, found on the logits' device.

In: a model whose logits are [B, 1, V]. Out: the same model with one more output, int64 [B, 1], the index of the largest
score, or the first of equal ones. Greedy decoding then copies 8 bytes per token to the host instead of a row of logits,
and the output's memory can be the next call's `input_ids`.

If our library runs the model, one `BestToken` finds it. With ONNX Runtime's own operators the search has two steps, the
best of each piece of the row and the best of those: its CUDA provider sorts rows of up to 512 numbers in shared memory,
many rows at once, but searches a longer row in a single block of threads
(`onnxruntime/core/providers/cuda/math/topk_impl.cuh`). Its `ArgMax` would need cuDNN, which nothing else here needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import BATCH, LOGITS, NEXT_TOKEN, TensorContract

LONGEST_SORTED_ROW: Final = 512

CONTRACT: Final = TensorContract(NEXT_TOKEN, "int64", (BATCH, 1), "The token with the largest score.")

_LOWEST: Final = -65504.0
"""The number that fills up the last piece: the lowest of fp16, which cannot win against any token."""


def append_next_token_(model: ir.Model, vocab_size: int, *, in_library: bool) -> None:
    """Adds the output to a model.

    Args:
        model: A model that gives logits only of the last position; it is changed.
        vocab_size: V.
        in_library: By an operator of the plugin library.
    """
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    builder = _Builder(model.graph)
    token = builder.best_of_library(logits) if in_library else _best_by_sorting(builder, logits, vocab_size)
    token.name, token.shape, token.dtype = NEXT_TOKEN, ir.Shape(CONTRACT.shape), ir.DataType.INT64
    model.graph.extend(builder.tape.nodes)
    model.graph.outputs.append(token)


def _best_by_sorting(builder: _Builder, logits: ir.Value, vocab_size: int) -> ir.Value:
    """The token [B, 1], found with ONNX Runtime's operators."""
    scores = logits
    if logits.dtype is ir.DataType.BFLOAT16:  # the sorting kernels do not support bf16
        scores = builder.op("Cast", [logits], {"to": ir.DataType.FLOAT.value})
    piece, missing = _pieces(vocab_size)
    if missing:
        pads = builder.integers("pads", [0, 0, 0, 0, 0, missing])
        lowest = builder.constant("lowest", np.asarray(_LOWEST, _numpy_type(scores)))
        scores = builder.op("Pad", [scores, pads, lowest])
    pieces = (vocab_size + missing) // piece
    rows = builder.op("Reshape", [scores, builder.integers("split", [0, pieces, piece])])  # [B, pieces, piece]
    best, inner = builder.best_of(rows)  # [B, pieces, 1]
    _, outer = builder.best_of(builder.op("Reshape", [best, builder.integers("merge", [0, 1, pieces])]))  # [B, 1, 1]
    inner = builder.op("Reshape", [inner, builder.integers("row", [0, pieces])])  # [B, pieces]
    outer = builder.op("Reshape", [outer, builder.integers("column", [0, 1])])  # [B, 1]
    within = builder.op("GatherElements", [inner, outer], {"axis": 1})
    start = builder.op("Mul", [outer, builder.integers("piece", [piece])])
    return builder.op("Add", [start, within])


def drop_next_token_(model: ir.Model) -> None:
    """Removes the output and its nodes again, for a caller that needs logits of every position."""
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name != NEXT_TOKEN]
    for node in reversed(list(model.graph)):
        if (node.name or "").startswith(f"{NEXT_TOKEN}/"):
            model.graph.remove(node, safe=True)


def _pieces(vocab_size: int) -> tuple[int, int]:
    """Returns the length of a piece, and the number of scores missing in the last one."""
    shortest = max(1, math.ceil(vocab_size / LONGEST_SORTED_ROW))
    whole = [length for length in range(shortest, LONGEST_SORTED_ROW + 1) if vocab_size % length == 0]
    piece = whole[-1] if whole else LONGEST_SORTED_ROW
    return piece, -vocab_size % piece


class _Builder:
    """Adds nodes to a tape, with names under one prefix, and their constants to the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.tape = Tape()
        self._graph = graph

    def op(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, int | float | str] | None = None
    ) -> ir.Value:
        """Adds a node with one output."""
        return self.tape.op(op_type, inputs, attributes or {}, name=self._next_name())

    def best_of_library(self, logits: ir.Value) -> ir.Value:
        """The token [B, 1], found by the plugin library."""
        return self.tape.op(opset.BEST_TOKEN, [logits], domain=opset.DOMAIN, name=self._next_name())

    def best_of(self, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Finds the largest of each row and its index; the first of equal ones."""
        one = self.integers("one", [1])
        best, place = self.tape.op_multi_out("TopK", [rows, one], {"axis": -1}, num_outputs=2, name=self._next_name())
        return best, place

    def integers(self, name: str, values: Sequence[int]) -> ir.Value:
        """Adds a constant vector of int64."""
        return self.constant(name, np.asarray(values, np.int64))

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Adds a constant; the same name returns the same one."""
        full_name = f"{NEXT_TOKEN}/{name}"
        if full_name not in self._graph.initializers:
            self._graph.register_initializer(ir.Value(name=full_name, const_value=ir.Tensor(array, name=full_name)))
        return self._graph.initializers[full_name]

    def _next_name(self) -> str:
        return f"{NEXT_TOKEN}/{len(self.tape.nodes)}"


def _numpy_type(value: ir.Value) -> type[np.float16] | type[np.float32]:
    return np.float16 if value.dtype is ir.DataType.FLOAT16 else np.float32
