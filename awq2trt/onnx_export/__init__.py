"""Quantized checkpoint -> ONNX decoder: `export_onnx` and what it returns."""

from __future__ import annotations

from awq2trt.onnx_export.model import ExportResult, export_onnx

__all__ = ["ExportResult", "export_onnx"]
