"""Gives the custom nodes of a model without functions their bodies again, in place, so that ONNX Runtime runs it."""

from __future__ import annotations

import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.inline import inline_bodies_
from awq2trt.onnx_export.bodies import BodyVariant, make_body


def inline_w4a16(model: ir.Model) -> None:
    """Replaces every `W4A16Linear` by its body's nodes; the model then has the opset of the bodies."""
    for node in model.graph:
        if node.domain == opset.DOMAIN:
            body = make_body(_variant(node))
            node.overload = body.overload
            model.functions[body.identifier()] = body
    inline_bodies_(model)
    model.graph.opset_imports[""] = opset.ONNX_OPSET
    model.ir_version = opset.ONNX_IR_VERSION


def _variant(node: ir.Node) -> BodyVariant:
    group = node.attributes[opset.ATTR_GROUP_SIZE].as_int()
    codes = node.inputs[1]
    assert codes is not None
    assert codes.shape is not None
    features = int(str(codes.shape[1]))
    return BodyVariant(
        group_length=group,
        ragged_features=features if features % group else None,
        has_zeros=bool(node.attributes[opset.ATTR_HAS_ZEROS].as_int()),
        has_bias=bool(node.attributes[opset.ATTR_HAS_BIAS].as_int()),
    )
