"""The ONNX Runtime backend: pieces of a conversation, its cache, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_checkpoints import RandomCheckpoint, relative_error

from awq2trt.errors import ArtifactError, UsageError
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE
from awq2trt.onnx_export import export_onnx
from awq2trt.runtime import OrtBackend

SAME_ARITHMETIC = 1e-4
"""fp32 sums in another order, through two layers."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported decoder, capacity 64."""
    directory = tmp_path_factory.mktemp("exported")
    export_onnx(RandomCheckpoint(), directory)
    return directory


@pytest.mark.parametrize("split", [[30], [1] * 30, [7, 1, 1, 16, 5]], ids=["at-once", "one-by-one", "pieces"])
def test_cache_makes_pieces_equal_the_whole(exported: Path, split: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.runtime.ort.backend.FIRST_CACHE_LENGTH", 4)  # grows four times on the way
    monkeypatch.setattr("awq2trt.runtime.ort.backend.PREFILL_CHUNK", 8)
    tokens = _tokens(30)
    whole = np.concatenate(list(OrtBackend.load(exported, all_logits=True).logits(tokens)))
    backend = OrtBackend.load(exported)
    start = 0
    for length in split:
        got = backend.forward(tokens[start : start + length])
        start += length
        assert backend.position == start
        assert relative_error(got, whole[start - 1]) < SAME_ARITHMETIC


def test_reset_forgets_the_conversation(exported: Path) -> None:
    backend = OrtBackend.load(exported)
    first = backend.forward(_tokens(10))
    backend.forward(_tokens(20, seed=1))
    backend.reset()
    np.testing.assert_array_equal(backend.forward(_tokens(10)), first)


def test_logits_stay_what_they_were_when_more_are_computed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.runtime.ort.backend.PREFILL_CHUNK", 8)
    backend = OrtBackend.load(exported, all_logits=True)
    pieces = list(backend.logits(_tokens(32)))
    assert [len(piece) for piece in pieces] == [8, 8, 8, 8]
    copies = [piece.copy() for piece in backend.logits(_tokens(32))]
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(copies))


def test_more_tokens_than_the_cache_holds_are_refused(exported: Path) -> None:
    backend = OrtBackend.load(exported)
    backend.forward(_tokens(64))
    with pytest.raises(UsageError, match="64 tokens and 1 more do not fit into the cache of 64"):
        backend.forward([1])


def test_no_tokens_are_refused(exported: Path) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        OrtBackend.load(exported).forward([])


def test_all_logits_must_be_asked_for(exported: Path) -> None:
    with pytest.raises(UsageError, match="all_logits=True"):
        next(OrtBackend.load(exported).logits([1]))


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path / MODEL_FILE}: no such model"):
        OrtBackend.load(tmp_path)


def test_missing_weights_are_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes())
    with pytest.raises(ArtifactError, match=f"{WEIGHTS_FILE}: the file with the weights is missing"):
        OrtBackend.load(tmp_path)


def test_truncated_weights_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes())
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        OrtBackend.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a protobuf", bytes(range(256))])
def test_damaged_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=MODEL_FILE):
        OrtBackend.load(tmp_path)


def test_some_other_onnx_model_is_refused(tmp_path: Path) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node("Relu", [x])
    ir.save(ir.Model(ir.Graph([x], node.outputs, nodes=[node], name="other"), ir_version=10), tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match="not a decoder that awq2trt exported"):
        OrtBackend.load(tmp_path)


def test_model_that_onnx_runtime_refuses_is_an_error_of_ours(exported: Path, tmp_path: Path) -> None:
    model = ir.load(exported / MODEL_FILE)
    next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "NoSuchOperator"
    ir.save(model, tmp_path / MODEL_FILE)
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses the model"):
        OrtBackend.load(tmp_path)


def test_model_exported_with_all_logits_runs_too(exported: Path, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(), tmp_path, all_logits=True)
    np.testing.assert_array_equal(
        OrtBackend.load(tmp_path).forward(_tokens(5)), OrtBackend.load(exported, all_logits=True).forward(_tokens(5))
    )


def _tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 120, count)]
