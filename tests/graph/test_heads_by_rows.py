"""Products with a constant matrix that is transposed: the same numbers from the matrix as it lies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt.graph.heads_by_rows import multiply_by_rows_

HEAD = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float16)  # [V, H]


def _model(*, left: bool = False, shown: bool = False, products: int = 1) -> ir.Model:
    """x times the transposed head; `left`: the other way round; `shown`: the transposed head is an output, too."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([1, "n", 7 if left else 4]))
    head = ir.Value(name="head", const_value=ir.Tensor(HEAD, name="head"))
    head.shape, head.dtype = ir.Shape(HEAD.shape), ir.DataType.FLOAT16
    tape = Tape()
    turned = tape.op("Transpose", [head], {"perm": [1, 0]})
    turned.name, turned.dtype, turned.shape = "turned", ir.DataType.FLOAT16, ir.Shape([4, 7])
    outputs = []
    for number in range(products):
        scores = tape.op("MatMul", [turned, tape.op("Transpose", [x], {"perm": [0, 2, 1]})] if left else [x, turned])
        scores.name, scores.dtype = f"scores{number}", ir.DataType.FLOAT16
        scores.shape = ir.Shape([1, 4, "n"] if left else [1, "n", 7])
        outputs.append(scores)
    outputs += [turned] if shown else []
    graph = ir.Graph([x], outputs, nodes=tape.nodes, initializers=[head], opset_imports={"": 24}, name="test")
    return ir.Model(graph, ir_version=11)


def _run(model: ir.Model, x: NDArray[np.float16]) -> list[NDArray[np.float16]]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return [np.asarray(value) for value in session.run(None, {"x": x})]


@pytest.mark.parametrize("products", [1, 2])
def test_scores_are_the_same_without_a_transposed_copy(products: int) -> None:
    x = np.random.default_rng(1).normal(size=(1, 3, 4)).astype(np.float16)
    model = _model(products=products)
    multiply_by_rows_(model)
    assert [(node.domain, node.op_type) for node in model.graph] == [("com.microsoft", "FusedMatMul")] * products
    expected = x.astype(np.float32) @ HEAD.T.astype(np.float32)
    for scores in _run(model, x):
        np.testing.assert_allclose(scores, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("variant", [{"left": True}, {"shown": True}])
def test_other_transpositions_stay(variant: dict[str, bool]) -> None:
    model = _model(**variant)
    before = [node.op_type for node in model.graph]
    multiply_by_rows_(model)
    assert [node.op_type for node in model.graph] == before
