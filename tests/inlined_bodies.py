"""Replaces the custom nodes of a model without functions by their bodies, so that any ONNX Runtime can run it."""

from __future__ import annotations

import onnx_ir as ir

from awq2trt import opset
from awq2trt.graph.inline import inline_bodies_
from awq2trt.onnx_export.fused_bodies import add_bodies_


def inline_custom_nodes_(model: ir.Model) -> None:
    """Replaces every node of ours by its body's nodes; the model, changed in place, gets the opset of the bodies."""
    add_bodies_(model)
    inline_bodies_(model)
    model.graph.opset_imports[""] = opset.ONNX_OPSET
    model.ir_version = opset.ONNX_IR_VERSION
