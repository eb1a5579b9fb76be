"""The embedding graph in ONNX Runtime against the checkpoint's own rows, quantized, scaled or plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_checkpoints import RandomCheckpoint

from awq2trt.io_contract import EMBEDDING_FILE, EMBEDDING_WEIGHTS_FILE, INPUT_IDS, INPUTS_EMBEDS
from awq2trt.onnx_export.embedding_graph import export_embedding
from awq2trt.scheme import QuantScheme

IDS = np.array([[5, 0, 119, 5]])

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "quantized with the head": {"tie_word_embeddings": True, "head_scheme": QuantScheme(bits=8, group_size=32)},
    "quantized to 4 bits": {"tie_word_embeddings": True, "head_scheme": QuantScheme(bits=4, group_size=64)},
    "of a head that is not the embedding": {"head_scheme": QuantScheme(bits=8, group_size=32)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_the_checkpoints(variant: str, tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(**VARIANTS[variant])
    contract = export_embedding(checkpoint, tmp_path, ir.DataType.FLOAT16, function_bodies=True)
    session = onnxruntime.InferenceSession(tmp_path / EMBEDDING_FILE, providers=["CPUExecutionProvider"])
    (rows,) = session.run([INPUTS_EMBEDS], {INPUT_IDS: IDS})
    expected = checkpoint.tensor(f"{checkpoint.spec.embedding}.weight")[IDS]
    np.testing.assert_allclose(rows.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3)
    assert rows.dtype == np.float16
    assert contract.inputs[0].shape == ("batch", "sequence")
    assert contract.outputs[0].shape == ("batch", "sequence", checkpoint.spec.hidden_size)
    assert {path.name for path in tmp_path.iterdir()} == {EMBEDDING_FILE, EMBEDDING_WEIGHTS_FILE}


def test_rows_are_scaled_where_the_model_scales_them(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(architectures=["GemmaForCausalLM"], hidden_activation="gelu_pytorch_tanh")
    assert checkpoint.spec.embedding_scale != 1
    export_embedding(checkpoint, tmp_path, ir.DataType.FLOAT16, function_bodies=True)
    session = onnxruntime.InferenceSession(tmp_path / EMBEDDING_FILE, providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {INPUT_IDS: IDS})
    expected = checkpoint.tensor(f"{checkpoint.spec.embedding}.weight")[IDS] * checkpoint.spec.embedding_scale
    np.testing.assert_allclose(rows, expected, rtol=2e-3)


def test_without_bodies_the_operator_is_left_to_a_library(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(tie_word_embeddings=True, head_scheme=QuantScheme(bits=8, group_size=32))
    export_embedding(checkpoint, tmp_path, ir.DataType.BFLOAT16, function_bodies=False)
    model = onnx.load(tmp_path / EMBEDDING_FILE, load_external_data=False)
    assert [node.op_type for node in model.graph.node] == ["W8A16Embedding"]
    assert not model.functions
