"""Lowering for `cuda`: fused unless the user says no, and the manifest names the operators that the file calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_builds import make_build, save_model
from tiny_llava import export_llava

from awq2trt import opset
from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import ONNX_DIRECTORY
from awq2trt.io_contract import SCALED_LAYOUT
from awq2trt.progress import SilentProgress
from awq2trt.runtime import OrtBackend
from awq2trt.runtime.golden import compare_golden
from awq2trt.runtime.ort.loading import DeviceOptions, open_backend
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.target import find_target


def test_fusion_is_on_unless_it_is_not_wanted(tmp_path: Path) -> None:
    build = make_build(save_model(tmp_path / "model"), tmp_path / "build", tmp_path / "text.txt")
    onnx, spec = Artifact.open(build / ONNX_DIRECTORY), model_spec(str(build / "checkpoint"))
    prints = set()
    for fusion, extra in ((True, {opset.FUSED_LINEAR, opset.RESIDUAL_NORM}), (False, set())):
        request = LowerRequest(find_target("cuda"), tmp_path / f"fusion-{fusion}", fusion=fusion)
        made = lower_stage(onnx, spec, request, SilentProgress())
        assert made.manifest.contents.operators == dict.fromkeys(
            {opset.W4A16_LINEAR, opset.BEST_TOKEN, *extra}, opset.PLUGIN_VERSION
        )
        prints.add(made.manifest.fingerprint)
    assert len(prints) == 2


def test_an_int8_cache_is_in_the_contract_and_in_the_tolerance_of_golden_outputs(tmp_path: Path) -> None:
    build = make_build(save_model(tmp_path / "model"), tmp_path / "build", tmp_path / "text.txt")
    onnx, spec = Artifact.open(build / ONNX_DIRECTORY), model_spec(str(build / "checkpoint"))
    plain, coded = (
        lower_stage(
            onnx, spec, LowerRequest(find_target("cpu"), tmp_path / name, int8_cache=name == "int8"), SilentProgress()
        )
        for name in ("plain", "int8")
    )
    assert plain.manifest.fingerprint != coded.manifest.fingerprint
    decoder = coded.manifest.contents.decoder
    assert decoder is not None
    assert decoder.cache is not None
    assert (decoder.cache.dtype, decoder.cache.layout) == ("int8", SCALED_LAYOUT)
    tolerances = [read_golden(artifact.directory).relative_tolerance for artifact in (plain, coded)]
    assert tolerances[0] < tolerances[1]
    backend = OrtBackend.load_lowered(coded.directory, decoder.capacity)
    assert all(result.passed for result in compare_golden(backend, read_golden(coded.directory)))


@pytest.mark.parametrize(("target", "dtype"), [("cpu", "float32"), ("cuda", "float16")])
def test_every_graph_of_a_model_that_sees_is_lowered(target: str, dtype: str, tmp_path: Path) -> None:
    onnx = export_llava(tmp_path)
    request = LowerRequest(find_target(target), tmp_path / target)
    made = lower_stage(onnx, model_spec(str(tmp_path / "checkpoint")), request, SilentProgress())
    graphs, record = made.manifest.contents.graphs, made.manifest.contents.lowered
    assert record is not None
    assert set(graphs) == set(record.profiles) == {"decoder", "vision", "embedding"}
    assert graphs["decoder"].io.inputs[0].dtype == graphs["vision"].io.outputs[0].dtype == dtype
    assert graphs["embedding"].io.outputs[0].dtype == "float32"  # which runs on the CPU, whatever the target
    assert set(onnx.manifest.files) == set(made.manifest.files)
    if target == "cpu":
        backend = open_backend(made, DeviceOptions()).backend
        results = compare_golden(backend, read_golden(made.directory))
        assert [result.name for result in results] == ["vision", "prefill", "decode-1", "decode-2", "first"]
        assert all(result.passed for result in results)
