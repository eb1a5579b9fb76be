"""Lowering for `cuda`: fused unless it is not wanted, and the manifest says which operators the file calls."""

from __future__ import annotations

from pathlib import Path

from tiny_builds import make_build, save_model

from awq2trt import opset
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import ONNX_DIRECTORY
from awq2trt.progress import SilentProgress
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.target import find_target


def test_fusion_is_on_unless_it_is_not_wanted(tmp_path: Path) -> None:
    build = make_build(save_model(tmp_path / "model"), tmp_path / "build", tmp_path / "text.txt")
    onnx, spec = Artifact.open(build / ONNX_DIRECTORY), model_spec(str(build / "checkpoint"))
    prints = set()
    for fusion, extra in ((True, {opset.GATED_ACTIVATION, opset.RESIDUAL_NORM}), (False, set())):
        request = LowerRequest(find_target("cuda"), tmp_path / f"fusion-{fusion}", fusion=fusion)
        made = lower_stage(onnx, spec, request, SilentProgress())
        assert made.manifest.contents.operators == dict.fromkeys({opset.W4A16_LINEAR, *extra}, opset.PLUGIN_VERSION)
        prints.add(made.manifest.fingerprint)
    assert len(prints) == 2
