"""What a kit is predicted to hold, and what it holds."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from seeing_families import options_of_sight, quantize_sight
from seen_by_transformers import SEEING
from tiny_kits import EXPORT, kit_request, make_tiny_kit

from awq2trt.graph.read import load_model
from awq2trt.io_contract import EMBEDDING_FILE, MODEL_FILE, VISION_FILE
from awq2trt.progress import SilentProgress
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import model_spec, predict_outlooks


def _weights_bytes(path: Path) -> int:
    """Bytes of a graph's weights, without tables of positions, which no prediction counts."""
    tensors = (value.const_value for value in load_model(path).graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor and not str(tensor.name).startswith("rotary"))


@pytest.mark.parametrize(("family", "quantized"), [("llava", False), *((family, True) for family in SEEING)])
def test_the_graphs_of_a_model_that_sees_hold_what_was_predicted(family: str, quantized: bool, tmp_path: Path) -> None:
    """The rest, a per cent at most, are constants of graphs and a norm that some towers have and do not use."""
    options = options_of_sight(None, quantize_vision=quantized, head="int8")
    SEEING[family](tmp_path / "model")
    quantize_sight(tmp_path / "model", tmp_path / "checkpoint", quantize_vision=quantized, head="int8")
    export_stage(ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", EXPORT), SilentProgress())
    kit = make_tiny_kit(tmp_path, tmp_path / "kit", "7.2", fusion=False, quantize=options).directory
    spec, recipe = model_spec(str(tmp_path / "model")), kit_request(tmp_path, "7.2", quantize=options).options
    predicted = next(each.footprint for each in predict_outlooks(spec, recipe) if each.target.name == "orin")
    decoder, embedding, vision = (_weights_bytes(kit / name) for name in (MODEL_FILE, EMBEDDING_FILE, VISION_FILE))
    table = 0 if spec.decoder.tie_embeddings else embedding  # the footprint's own, which lies beside the decoder
    assert predicted.beside_bytes == pytest.approx(vision + embedding - table, rel=0.01)
    assert predicted.weights_bytes == pytest.approx(decoder + table, rel=0.01)
    has_codes = any(
        value.dtype is ir.DataType.INT4 for value in load_model(kit / VISION_FILE).graph.initializers.values()
    )
    assert has_codes == quantized
