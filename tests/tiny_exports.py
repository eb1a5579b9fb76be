"""A saved model's checkpoint and ONNX model, as tests want them of a tiny one: quickly."""

from __future__ import annotations

from pathlib import Path

from awq2trt.artifact.manifest import Artifact
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def export_saved(folder: Path, options: ExportOptions) -> Artifact:
    """Makes `checkpoint` and `onnx`, which it returns, of the model in `folder/model`. Rounds, so it needs no data."""
    rounding = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(folder / "model"), folder / "checkpoint", rounding), SilentProgress())
    return export_stage(ExportRequest(folder / "checkpoint", folder / "onnx", options), SilentProgress())
