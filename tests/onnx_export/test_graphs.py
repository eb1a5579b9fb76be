"""The graphs of a model: a decoder alone for text, three for a model that sees."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny_llava import export_llava
from tiny_models import save_llama

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.io_contract import DECODER, EMBEDDING, VISION
from awq2trt.onnx_export.graphs import export_graphs
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


def test_a_model_of_text_has_a_decoder_that_reads_tokens(tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    options = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(tmp_path / "model"), tmp_path / "checkpoint", options), SilentProgress())
    (tmp_path / "onnx").mkdir()
    exported = export_graphs(QuantizedCheckpoint.open(tmp_path / "checkpoint"), tmp_path / "onnx", ExportOptions())
    assert list(exported.records) == [DECODER]
    assert exported.records[DECODER].io == exported.decoder.contract
    assert exported.decoder.contract.inputs[0].name == "input_ids"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_that_sees_has_three(dtype: str, tmp_path: Path) -> None:
    export_llava(tmp_path)
    (tmp_path / "again").mkdir()
    options = ExportOptions.model_validate({"dtype": dtype, "max_seq_len": 64})
    exported = export_graphs(QuantizedCheckpoint.open(tmp_path / "checkpoint"), tmp_path / "again", options)
    assert list(exported.records) == [DECODER, VISION, EMBEDDING]
    read = exported.records[DECODER].io.inputs[0]
    assert (read.name, read.dtype, read.shape) == ("inputs_embeds", dtype, ("batch", "sequence", 48))
    assert exported.records[EMBEDDING].io.outputs[0].dtype == dtype
    assert exported.records[VISION].io.outputs[0].dtype == "float16"  # whatever the decoder's
    for record in exported.records.values():
        graph = onnx.load(tmp_path / "again" / record.model, load_external_data=False).graph
        assert [value.name for value in graph.input] == [tensor.name for tensor in record.io.inputs]
        assert [value.name for value in graph.output] == [tensor.name for tensor in record.io.outputs]
