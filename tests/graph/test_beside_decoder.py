"""The graphs beside a decoder, lowered: the same numbers, in the types that their contracts name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from seeing_families import quantize_sight
from tiny_checkpoints import RandomCheckpoint
from tiny_llava import export_llava, save_llava

from awq2trt import scheme
from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ArtifactError
from awq2trt.graph.beside_decoder import lower_beside_, write_beside
from awq2trt.graph.read import load_model
from awq2trt.io_contract import DECODER, EMBEDDING, EMBEDDING_FILE, VISION, VISION_FILE, IoContract
from awq2trt.onnx_export.embedding_graph import export_embedding
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime.ort.session import open_session
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_llava(tmp_path_factory.mktemp("seeing"))


def _feed(contract: IoContract) -> dict[str, NDArray[Any]]:
    (tensor,) = contract.inputs
    shape = [axis if isinstance(axis, int) else 2 for axis in tensor.shape]
    numbers = np.random.default_rng(4).standard_normal(shape) * 50
    return {
        tensor.name: np.abs(numbers).astype(tensor.dtype) if tensor.dtype == "int64" else numbers.astype(np.float16)
    }


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("graph", [VISION, EMBEDDING])
def test_what_is_written_computes_the_same(graph: str, on_cpu: bool, onnx: Artifact, tmp_path: Path) -> None:
    records = onnx.manifest.contents.beside
    assert set(records) == {VISION, EMBEDDING}
    written = write_beside(onnx.directory, records, tmp_path, on_cpu=on_cpu)
    exported, lowered = records[graph], written[graph]
    feed = _feed(exported.io)
    session = open_session(None, tmp_path / lowered.model)
    expected = open_session(None, onnx.directory / exported.model).run(None, feed)[0]
    types = {tensor.name: tensor.dtype for tensor in lowered.io.inputs}
    got = session.run(None, {name: value.astype(types[name]) for name, value in feed.items()})[0]
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())
    assert got.dtype == lowered.io.outputs[0].dtype == ("float32" if graph == EMBEDDING or on_cpu else "float16")
    assert [value.name for value in session.get_outputs()] == [lowered.io.outputs[0].name]


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16"])
@pytest.mark.parametrize("head", [None, QuantScheme(bits=8, group_size=32), QuantScheme(bits=4, group_size=64)])
def test_rows_of_any_embedding_come_in_fp32(head: QuantScheme | None, dtype: str, tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint(head_scheme=head, tie_word_embeddings=True)
    export_embedding(checkpoint, tmp_path, ir.DataType[dtype], function_bodies=True)
    model = load_model(tmp_path / EMBEDDING_FILE)
    lower_beside_(model, EMBEDDING, on_cpu=False)
    tokens = np.array([[3, 110]])
    (rows,) = open_session(model, tmp_path / EMBEDDING_FILE).run(None, {"input_ids": tokens})
    expected = checkpoint.tensor(f"{checkpoint.spec.embedding}.weight")[tokens].astype(np.float32)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=8e-3, atol=8e-3)


def test_a_decoder_is_none_of_them(onnx: Artifact) -> None:
    with pytest.raises(ArtifactError, match="expected vision or embedding, got 'decoder'"):
        lower_beside_(load_model(onnx.directory / "model.onnx"), DECODER, on_cpu=True)


def _with_groups_of_24(folder: Path, *, function_bodies: bool) -> Artifact:
    """A model whose tower has groups that ONNX Runtime's operator does not support; none of ours has, or may have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheme, "SUPPORTED_GROUP_SIZES", (24,))
        save_llava(folder / "model")
        quantize_sight(folder / "model", folder / "checkpoint", group_size=24)
        options = ExportOptions(max_seq_len=96, function_bodies=function_bodies)
        return export_stage(ExportRequest(folder / "checkpoint", folder / "onnx", options), SilentProgress())


@pytest.mark.parametrize("on_cpu", [True, False])
def test_linears_that_onnx_runtime_has_no_operator_for_keep_their_bodies(on_cpu: bool, tmp_path: Path) -> None:
    onnx = _with_groups_of_24(tmp_path, function_bodies=True)
    (tmp_path / "lowered").mkdir()
    written = write_beside(onnx.directory, onnx.manifest.contents.beside, tmp_path / "lowered", on_cpu=on_cpu)[VISION]
    model = load_model(tmp_path / "lowered" / written.model)
    kinds = {node.name: node.op_type for node in model.graph}
    assert kinds["vision_tower.encoder.layers.0.mlp.fc1"] == "MatMulNBits"  # a row of 24 is one group
    assert kinds["vision_tower.encoder.layers.0.mlp.fc2"] == "W4A16Linear"
    feed = _feed(written.io)
    expected = open_session(None, onnx.directory / VISION_FILE).run(None, _as(np.float16, feed))[0]
    (got,) = open_session(None, tmp_path / "lowered" / written.model).run(
        None, _as(np.float32 if on_cpu else np.float16, feed)
    )
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())


def _as(dtype: type, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: value.astype(dtype) for name, value in feed.items()}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_they_are_refused_without_bodies(on_cpu: bool, tmp_path: Path) -> None:
    onnx = _with_groups_of_24(tmp_path, function_bodies=False)
    says = (
        r"vision_tower\.encoder\.layers\.0\.mlp\.fc2: ONNX Runtime has no operator for W4A16Linear with groups of 24, "
        r"and the model has no function that defines it\. .*--function-bodies"
    )
    with pytest.raises(ArtifactError, match=says):
        write_beside(onnx.directory, onnx.manifest.contents.beside, tmp_path, on_cpu=on_cpu)
