"""A saved model's checkpoint and ONNX model, as tests want them of a tiny one: quickly."""

from __future__ import annotations

from pathlib import Path

from awq2trt.artifact.manifest import Artifact
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import find_target


def export_saved(folder: Path, options: ExportOptions) -> Artifact:
    """Makes `checkpoint` and `onnx`, which it returns, of the model in `folder/model`. Rounds, so it needs no data."""
    rounding = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(folder / "model"), folder / "checkpoint", rounding), SilentProgress())
    return export_stage(ExportRequest(folder / "checkpoint", folder / "onnx", options), SilentProgress())


def lower_saved(folder: Path, capacity: int, *targets: str) -> None:
    """Builds the model in `folder/model` for targets, each below `folder` under its name."""
    onnx = export_saved(folder, ExportOptions(max_seq_len=capacity))
    spec = model_spec(str(folder / "checkpoint"))
    for target in targets:
        request = LowerRequest(find_target(target), folder / target, fusion=False)
        lower_stage(onnx, spec, request, SilentProgress())
