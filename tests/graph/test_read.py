"""Exported models read: weights are those beside the model."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny_checkpoints import RandomCheckpoint

from awq2trt.errors import ArtifactError
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import MODEL_FILE
from awq2trt.onnx_export import export_onnx


@pytest.mark.parametrize("location", ["../model.onnx.data", "{tmp}/model.onnx.data", "a/../../model.onnx.data"])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    export_onnx(RandomCheckpoint(num_hidden_layers=1), tmp_path)
    model = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    for entry in entries:
        if entry.key == "location":
            entry.value = location.format(tmp=tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / MODEL_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"beside the model, got"):
        open_decoder(tmp_path / "m")
