"""The output `next_token`: the first of the largest scores, for vocabularies of any size."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.graph.next_token import LONGEST_SORTED_ROW, append_next_token_, drop_next_token_
from awq2trt.io_contract import LOGITS, NEXT_TOKEN

SIZES = [1, 7, 120, 512, 513, 997, 50257, 32000, 128256, 151936]


def _model(vocab_size: int, dtype: ir.DataType = ir.DataType.FLOAT16) -> ir.Model:
    """A graph that returns its input as logits."""
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(["batch", 1, vocab_size]))
    tape = Tape()
    logits = tape.op("Identity", [x])
    logits.name, logits.dtype, logits.shape = LOGITS, dtype, x.shape
    graph = ir.Graph([x], [logits], nodes=tape.nodes, opset_imports={"": 24}, name="test")
    return ir.Model(graph, ir_version=11)


def _next(model: ir.Model, scores: NDArray[np.float16]) -> list[int]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (token,) = session.run([NEXT_TOKEN], {"x": scores})
    assert token.dtype == np.int64
    assert token.shape == (len(scores), 1)
    return [int(value) for value in token[:, 0]]


@pytest.mark.parametrize("vocab_size", SIZES)
def test_it_is_the_largest_score(vocab_size: int) -> None:
    model = _model(vocab_size)
    append_next_token_(model, vocab_size, in_library=False)
    random = np.random.default_rng(vocab_size)
    scores = random.normal(size=(3, 1, vocab_size)).astype(np.float16)
    scores[1, 0, -1] = 100  # in the last piece, which may be shorter
    scores[2] = -60000  # lower than all but what fills that piece
    scores[2, 0, vocab_size // 2] = -59000
    assert _next(model, scores) == [int(value) for value in scores.argmax(axis=2)[:, 0]]


@pytest.mark.parametrize("vocab_size", SIZES)
def test_of_equal_scores_it_is_the_first(vocab_size: int) -> None:
    model = _model(vocab_size)
    append_next_token_(model, vocab_size, in_library=False)
    assert _next(model, np.zeros((1, 1, vocab_size), np.float16)) == [0]
    scores = np.zeros((1, 1, vocab_size), np.float16)
    scores[0, 0, vocab_size // 3 :] = 1
    assert _next(model, scores) == [vocab_size // 3]


@pytest.mark.parametrize("vocab_size", SIZES)
def test_no_row_is_longer_than_what_is_sorted_at_once(vocab_size: int) -> None:
    model = _model(vocab_size)
    append_next_token_(model, vocab_size, in_library=False)
    rows = [node for node in model.graph if node.op_type == "Reshape"]
    split = rows[0].inputs[1]
    assert split is not None
    assert split.const_value is not None
    _, pieces, piece = split.const_value.numpy().tolist()
    assert piece <= LONGEST_SORTED_ROW
    assert 0 <= pieces * piece - vocab_size < piece


def test_the_library_takes_one_node() -> None:
    model = _model(50257, ir.DataType.BFLOAT16)
    append_next_token_(model, 50257, in_library=True)
    (node,) = [node for node in model.graph if node.op_type != "Identity"]
    assert (node.domain, node.op_type) == (opset.DOMAIN, opset.BEST_TOKEN)
    assert [value.name for value in node.inputs if value is not None] == [LOGITS]
    assert [value.name for value in node.outputs] == [NEXT_TOKEN]


@pytest.mark.parametrize("in_library", [False, True])
def test_it_can_be_taken_away(*, in_library: bool) -> None:
    model = _model(120)
    append_next_token_(model, 120, in_library=in_library)
    drop_next_token_(model)
    assert [value.name for value in model.graph.outputs] == [LOGITS]
    assert [node.op_type for node in model.graph] == ["Identity"]
