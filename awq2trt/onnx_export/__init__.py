"""Quantized checkpoint -> ONNX decoder: `export_onnx` and what it takes and returns."""

from __future__ import annotations

from awq2trt.onnx_export.model import ExportOptions, ExportResult, export_onnx

__all__ = ["ExportOptions", "ExportResult", "export_onnx"]
