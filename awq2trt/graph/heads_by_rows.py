"""A head that is not quantized, multiplied as it lies: x W^T by an operator that reads W [V, H] row by row.

In: a model for ONNX Runtime's CUDA provider, with `MatMul` of a transposed initializer. Out: the same model with
`com.microsoft::FusedMatMul`. ONNX Runtime would transpose the matrix on the CPU whenever it loads the model, which for
Llama-3-8B's head takes 10 s of a core (128,256 x 4,096 in fp16, ONNX Runtime 1.32), and a head that is also the
embedding would be on the GPU twice.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedMatMul
"""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from awq2trt.graph.half_tables import MICROSOFT_DOMAIN
from awq2trt.graph.matching import take

_MATRIX_AXES: Final = 2


def multiply_by_rows_(model: ir.Model) -> None:
    """Puts the transposition of constant matrices into the products that read them."""
    for node in list(model.graph):
        if _transposes_right_sides(node):
            for product in [use.node for use in node.outputs[0].uses()]:
                _multiply_by_rows_(model.graph, product, take(node, 0))
            model.graph.remove(node, safe=True)
            model.graph.opset_imports[MICROSOFT_DOMAIN] = 1


def _transposes_right_sides(node: ir.Node) -> bool:
    """Whether a node transposes a constant matrix for products in which it is on the right, and for nothing else."""
    if node.op_type != "Transpose" or node.domain:
        return False
    matrix, uses = take(node, 0), node.outputs[0].uses()
    is_matrix = matrix.const_value is not None and len(matrix.const_value.shape) == _MATRIX_AXES
    is_right = all(use.node.op_type == "MatMul" and not use.node.domain and use.idx == 1 for use in uses)
    return is_matrix and is_right and not node.outputs[0].is_graph_output()


def _multiply_by_rows_(graph: ir.Graph, product: ir.Node, matrix: ir.Value) -> None:
    by_rows = ir.node(
        "FusedMatMul", [take(product, 0), matrix], {"transB": 1}, domain=MICROSOFT_DOMAIN, name=product.name
    )
    old, new = product.outputs[0], by_rows.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, product, [product], [by_rows], [old], [new])
