"""Keeps embeddings and the head in half precision in a model that computes in fp32.

In: an exported decoder that is being widened (`ort_lowering`). Out: the same model with the same results, since half
precision widens exactly. The rows that a call gathers from a table are cast. A head is widened one piece at a time,
just before the piece is multiplied: in fp32 it would take twice the memory of its file, and ONNX Runtime, which
rearranges a constant matrix for its kernels, would hold it twice if it is also the embedding.

SmolLM2-135M, INT4 g128, ONNX Runtime 1.32, 2 cores of an EPYC with AVX-512, called by `OrtBackend.forward`: the memory
that loading the model and 316 tokens add to a process (VmRSS) falls from 325 to 186 MB, and the file from 176 to 119
MB; the exported model has 114 MB. The CPU time of a token is the same (25.7 and 24.6 ms, median of 150, measured in
turns), and so is that of a prompt of 256 tokens (663 and 653 ms).
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt.graph.matching import take, tensor_of
from awq2trt.io_contract import CACHE_POSITION

MICROSOFT_DOMAIN: Final = "com.microsoft"

HALF: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

PIECE_BYTES: Final = 4 << 20
"""Bytes of a piece of the head in fp32. With 1, 2, 4 and 8 MiB, a token of SmolLM2-135M takes 26.5, 24.7, 24.6 and 28.3
ms of CPU time (as above): larger pieces have left the cache when they are multiplied."""

_FP32: Final = ir.DataType.FLOAT
_FP32_BYTES: Final = 4


def keep_half_(model: ir.Model) -> list[ir.Value]:
    """Casts what is read from embeddings and heads, so that they themselves can stay as they are.

    Returns:
        The matrices that stay.
    """
    matrices = model.graph.initializers.values()
    kept = [matrix for matrix in matrices if matrix.dtype in HALF and matrix.uses() and _stays(matrix)]
    for matrix in kept:
        for node, _ in list(matrix.uses()):
            if node.op_type == "Gather":
                _cast_rows_(model.graph, node, matrix)
            else:
                _cast_head_(model, node)
    return kept


def _gathers_rows(node: ir.Node, index: int) -> bool:
    return node.op_type == "Gather" and index == 0


def _stays(matrix: ir.Value) -> bool:
    """Whether a matrix is used only for gathering rows and, transposed [V, H], for products with x [..., H]."""
    others = [node for node, index in matrix.uses() if not _gathers_rows(node, index)]
    return all(
        node.op_type == "Transpose" and all(use.op_type == "MatMul" and at == 1 for use, at in node.outputs[0].uses())
        for node in others
    )


def _cast_rows_(graph: ir.Graph, gather: ir.Node, table: ir.Value) -> None:
    """Widens the rows that a node gathers."""
    rows = gather.outputs[0]
    cast = ir.node("Cast", [rows], {"to": _FP32.value}, name=f"{gather.name}.widened")
    wide = cast.outputs[0]
    wide.name, wide.shape, wide.dtype = f"{rows.name}.widened", rows.shape, _FP32
    if rows.is_graph_output():  # whose name stays
        wide.name, rows.name = rows.name, f"{rows.name}.half"
    ir.convenience.replace_all_uses_with(rows, wide, replace_graph_outputs=True)
    cast.replace_input_with(0, rows)
    graph.insert_after(gather, cast)
    rows.dtype = tensor_of(table).dtype


def _cast_head_(model: ir.Model, transpose: ir.Node) -> None:
    """Multiplies a head [V, H] in pieces, each of which is widened just before."""
    head, graph = take(transpose, 0), model.graph
    vocab, hidden = tensor_of(head).shape.numpy()
    rows = max(1, PIECE_BYTES // (_FP32_BYTES * hidden))
    for product, _ in list(transpose.outputs[0].uses()):
        tape, axis = Tape(), [0]
        zero = _unknown_zero(tape, model)
        products = []
        for start in range(0, vocab, rows):
            first = tape.op("Add", [zero, _integers(tape, [start])])
            piece = tape.op("Slice", [head, first, _integers(tape, [min(start + rows, vocab)]), _integers(tape, axis)])
            wide = tape.op("Cast", [piece], {"to": _FP32.value})  # [rows, H]
            operands = [take(product, 0), wide]
            products.append(tape.op("FusedMatMul", operands, {"transB": 1}, domain=MICROSOFT_DOMAIN))
        logits = tape.op("Concat", products, {"axis": -1}, name=product.name)  # [..., V]
        old = product.outputs[0]
        logits.name, logits.type, logits.shape = old.name, old.type, old.shape
        ir.convenience.replace_nodes_and_values(graph, product, [product], list(tape.nodes), [old], [logits])
    graph.remove(transpose, safe=True)


def _unknown_zero(tape: Tape, model: ir.Model) -> ir.Value:
    """0 [1], computed from an input; with constant bounds, ONNX Runtime would widen a piece when it loads the model."""
    position = next(value for value in model.graph.inputs if value.name == CACHE_POSITION)
    bounds = (_integers(tape, [number]) for number in (0, 1))
    return tape.op("Mul", [tape.op("Slice", [position, *bounds]), _integers(tape, [0])])


def _integers(tape: Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": values})
