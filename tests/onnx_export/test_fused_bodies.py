"""Bodies of the fused operators, in ONNX Runtime without our library, against float64 oracles of FORMAT.md."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from fused_oracles import EVERYTHING, NUMPY_TYPES, Array, Attention, Node, activated, norm_case

from awq2trt import opset
from awq2trt.onnx_export.fused_bodies import add_bodies_

TOLERANCE = {"float32": 1e-5, "float16": 1e-2}
"""Tolerance relative to the largest number: every operator of a body rounds, and scores are a few units."""


def _through_body(node: Node) -> dict[str, Array]:
    """Outputs of a model with one node and its body, in an ONNX Runtime without our operators."""
    model = ir.from_proto(onnx.load_from_string(node.serialized()))
    model.graph.opset_imports[""], model.ir_version = opset.ONNX_OPSET, opset.ONNX_IR_VERSION
    add_bodies_(model)
    assert {function.name for function in model.functions.values()} == {node.op}
    serialized = ir.to_proto(model).SerializeToString()
    return node.run(onnxruntime.SessionOptions(), model=serialized)


def _assert_near(found: Array, expected: Array, dtype: str) -> None:
    assert found.shape == expected.shape
    largest = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize("int8_cache", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Attention(), id="plain"),
        pytest.param(Attention(options={"rotary_dim": 64}, position=(8,)), id="rotary-to-the-last-slot"),
        pytest.param(Attention(options={"rotary_dim": 16}, position=(2,)), id="partial"),
        pytest.param(Attention(options={"rotary_dim": 24, "interleaved": 1}, position=(2,)), id="interleaved"),
        pytest.param(Attention(options={"has_norms": 1}), id="norms"),
        pytest.param(Attention(options={"has_alibi": 1}, position=(5,)), id="alibi"),
        pytest.param(Attention(options={"window": 2}, position=(4,)), id="window"),
        pytest.param(Attention(options={"softcap": 2.0, "scale": 0.5}), id="softcap"),
        pytest.param(Attention(options={"softcap": 2.0, "has_alibi": 1}, position=(3,)), id="softcap-alibi"),
        pytest.param(Attention(options={"clip": 0.5}), id="clip"),
        pytest.param(Attention(position=(7, 0, 3), tokens=1, heads=6, kv_heads=1, head_dim=80), id="batch"),
        pytest.param(Attention(head_dim=24, heads=3, kv_heads=3), id="a-head-size-without-kernels"),
        pytest.param(
            Attention(position=(6, 1), tokens=5, heads=3, kv_heads=3, head_dim=96, options=EVERYTHING), id="everything"
        ),
    ],
)
def test_attention(case: Attention, dtype: str, *, int8_cache: bool) -> None:
    case = replace(case, dtype=dtype, int8_cache=int8_cache)
    found = _through_body(case.node())
    for name, expected in case.expected().items():
        if found[name].dtype == np.int8:
            # Keys that were rounded once more by a rotation in fp16 may have the next code.
            assert np.abs(found[name] - expected).max() <= 1 + 2 * (dtype == "float16")
        else:
            _assert_near(found[name], expected, dtype)


def test_codes_of_a_body_are_exactly_those_of_the_definition() -> None:
    case = Attention(dtype="float16", int8_cache=True, tokens=8)  # nothing happens to keys and values before
    found, expected = _through_body(case.node()), case.expected()
    for name in ("present_key", "present_value", "present_key_scale", "present_value_scale"):
        np.testing.assert_array_equal(found[name].astype(np.float64), expected[name])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("kind", ["rms", "layer", "layer-bias"])
def test_norm(dtype: str, kind: str, *, residual: bool) -> None:
    node, expected = norm_case(dtype, kind, (2, 3, 40), residual=residual)
    found = _through_body(node)
    if residual:
        np.testing.assert_array_equal(found["sum"], expected["sum"])
    _assert_near(found["y"], expected["y"], dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("activation", opset.ACTIVATION_CODES.values())
def test_activation(dtype: str, activation: int) -> None:
    x = (4 * np.random.default_rng(activation).standard_normal((2, 3, 48))).astype(NUMPY_TYPES[dtype])
    found = _through_body(Node(opset.GATED_ACTIVATION, {"activation": activation}, {"x": x}, ("y",)))
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    _assert_near(found["y"], activated(activation, gate) * up, dtype)


def test_equal_nodes_share_a_body_and_bodies_without_a_node_go() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([1, 32]))
    kinds = (0, 1, 0)
    nodes = [ir.node(opset.GATED_ACTIVATION, [x], {"activation": kind}, domain=opset.DOMAIN) for kind in kinds]
    graph = ir.Graph([x], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": opset.ONNX_OPSET})
    model = ir.Model(graph, ir_version=opset.ONNX_IR_VERSION)
    add_bodies_(model)
    assert nodes[0].overload == nodes[2].overload != nodes[1].overload
    assert len(model.functions) == 2
    graph.outputs.pop(1)
    graph.remove(nodes[1], safe=True)
    add_bodies_(model)
    assert len(model.functions) == 1
