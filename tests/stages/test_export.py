"""`awq2trt export`: what an ONNX model keeps of its checkpoint, ours or another tool's, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import TokensRecord
from awq2trt.errors import ArtifactError
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage


def test_an_onnx_model_keeps_the_origin_and_tells_its_inputs(made: Path) -> None:
    onnx = Artifact.open(made / "onnx", kind="onnx").manifest
    checkpoint = Artifact.open(made / "checkpoint").manifest
    assert onnx.contents.source == checkpoint.contents.source
    assert onnx.contents.quantization == checkpoint.contents.quantization
    assert onnx.contents.model == checkpoint.contents.model
    graph = onnx.contents.graphs["decoder"]
    assert (graph.model, graph.engine, graph.io.capacity) == ("model.onnx", None, 64)
    assert graph.io.cache_pairs[:2] == (("past_key_0", "present_key_0"), ("past_value_0", "present_value_0"))
    assert onnx.contents.operators == {"W4A16Linear": "1"}
    assert onnx.contents.tokens == TokensRecord(bos=256, eos=256, pad=257, unk=None, stop=(256,))
    assert {"model.onnx", "model.onnx.data", "tokenizer.json"} <= set(onnx.files)


def test_a_checkpoint_without_manifest_is_somebody_elses_and_is_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "theirs")
    (tmp_path / "theirs" / "manifest.json").unlink()
    (tmp_path / "theirs" / "quantization.json").unlink()
    export = ExportRequest(tmp_path / "theirs", tmp_path / "onnx", ExportOptions(max_seq_len=64))
    contents = export_stage(export, SilentProgress()).manifest.contents
    assert contents.source.model == "theirs"
    assert contents.quantization.calibration is None
    assert contents.quantization.scheme == QuantScheme(group_size=32)


def test_a_changed_checkpoint_is_not_exported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "checkpoint", tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="it was changed since"):
        export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions()), SilentProgress())
    assert not (tmp_path / "onnx").exists()
