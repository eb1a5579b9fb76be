"""The store of a job: one process writes and another reads, and a block counts only when all of it is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from awq2trt.errors import ArtifactError, UsageError
from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.quantization.block import LinearReport
from awq2trt.quantization.store import Store, StoredBlock

LAYERS = 3


def _block(layer: int) -> StoredBlock:
    name = f"layers.{layer}.q"
    return StoredBlock(
        tensors={f"{name}.codes": np.full((2, 4), layer, np.uint8)},
        reports={name: LinearReport(alpha=0.1 * layer, error=0.5)},
        search={f"{name}.scales": np.full(4, layer, np.float32)},
    )


def _fill(directory: Path, blocks: int) -> None:
    store = Store(directory, LAYERS)
    for layer in range(blocks):
        store.keep_hidden(layer + 1, torch.full((1, 2, 3), float(layer)))
        store.keep_largest_activation(layer, 2.5 * layer)
        store.keep_block(layer, _block(layer))


def test_another_process_reads_what_one_kept(tmp_path: Path) -> None:
    _fill(tmp_path, LAYERS)
    read = Store(tmp_path, LAYERS)
    assert read.finished_blocks() == LAYERS
    assert read.reports() == {f"layers.{i}.q": LinearReport(alpha=0.1 * i, error=0.5) for i in range(LAYERS)}
    assert {name: value.tolist() for name, value in read.search().items()} == {
        f"layers.{layer}.q.scales": [layer] * 4 for layer in range(LAYERS)
    }
    assert [read.largest_activation(layer) for layer in range(LAYERS)] == [0.0, 2.5, 5.0]
    torch.testing.assert_close(read.hidden(LAYERS), torch.full((1, 2, 3), LAYERS - 1.0), rtol=0, atol=0)


def test_the_residual_stream_before_a_finished_block_is_dropped(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.glob("hidden-*"))] == ["hidden-00002.safetensors"]


def test_a_block_counts_once_its_tensors_are_there(tmp_path: Path) -> None:
    _fill(tmp_path, 2)
    store = Store(tmp_path, LAYERS)
    assert store.finished_blocks() == 2
    store.block_files()[0].unlink()  # blocks are finished in order: what comes after a gap does not count
    assert store.finished_blocks() == 0


def test_a_run_continues_where_the_last_stream_was_stored(tmp_path: Path) -> None:
    store = Store(tmp_path, LAYERS)
    for layer in range(LAYERS - 1):
        if layer == 0:
            store.keep_hidden(1, torch.zeros(1, 2, 3))
            store.keep_original(1, torch.zeros(1, 2, 3))
        store.keep_block(layer, _block(layer))
    assert store.finished_blocks() == 1  # the stream before block 1 is the only one
    assert {path.name for path in tmp_path.glob("*-00001.safetensors")} > {"hidden-00001.safetensors"}
    store.keep_hidden(LAYERS, torch.zeros(1, 2, 3))
    assert store.finished_blocks() == 1  # the last block is missing
    store.keep_block(LAYERS - 1, _block(LAYERS - 1))
    assert store.finished_blocks() == LAYERS
    assert [path.name for path in tmp_path.glob("hidden-*")] == [f"hidden-{LAYERS:05}.safetensors"]
    assert not [*tmp_path.glob("original-*")]


def test_what_a_model_sees_with_counts_once_its_tensors_are_there(tmp_path: Path) -> None:
    store, tensors = Store(tmp_path, LAYERS), {"tower.q.codes": np.ones((2, 4), np.uint8)}
    _fill(tmp_path, LAYERS)
    assert store.vision_reports() == {}
    found = StoredBlock(tensors, {"tower.q": LinearReport(error=0.25)}, {"tower.q.magnitude": np.ones(4, np.float32)})
    store.keep_vision(found)
    read = Store(tmp_path, LAYERS)
    assert read.vision_reports() == {"tower.q": LinearReport(error=0.25)}
    assert read.search()["tower.q.magnitude"].tolist() == [1] * 4
    assert set(read.reports()) == {f"layers.{layer}.q" for layer in range(LAYERS)}
    assert read.vision_file not in read.final_files()
    read.vision_file.unlink()
    assert read.vision_reports() == {}
    assert "tower.q.magnitude" not in read.search()


def test_tokens_come_back(tmp_path: Path) -> None:
    store, tokens = Store(tmp_path, LAYERS), torch.arange(6).view(2, 3)
    assert store.tokens() is None
    assert torch.equal(store.keep_tokens(tokens), tokens)
    kept = Store(tmp_path, LAYERS).tokens()
    assert kept is not None
    assert torch.equal(kept, tokens)


def test_damage_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    _fill(tmp_path, LAYERS)
    (tmp_path / "block-00001.npz").write_bytes(b"not a zip file")
    with pytest.raises(ArtifactError, match="without --resume"):
        Store(tmp_path, LAYERS).search()


def test_a_resumed_run_takes_the_threads_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    Store(tmp_path, LAYERS).same_computer_(ALONE, shared=True)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    Store(tmp_path, LAYERS).same_computer_(ALONE, shared=True)
    assert asked == [threads]
    with pytest.raises(UsageError, match="had 1 ranks"):
        Store(tmp_path, LAYERS).same_computer_(Ranks(0, 2), shared=True)
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("cuda"))
    with pytest.raises(UsageError, match="computed on cpu"):
        Store(tmp_path, LAYERS).same_computer_(ALONE, shared=False)
