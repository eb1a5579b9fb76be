"""Reading exported models: through links, as the hub's cache has them, and never from other places by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tiny_checkpoints import RandomCheckpoint
from tiny_models import tokens

from awq2trt.errors import ArtifactError
from awq2trt.graph.provider_file import Lowering, write_lowered
from awq2trt.graph.read import load_model, open_decoder
from awq2trt.onnx_export import export_onnx
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend

CAPACITY = 32


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_onnx(RandomCheckpoint(), directory, options=ExportOptions(max_seq_len=CAPACITY))
    return directory


def _cached(directory: Path, to: Path) -> Path:
    """The same files as in the hub's cache: links into a folder of blobs with other names."""
    (to / "blobs").mkdir(parents=True)
    (to / "snapshots" / "0123").mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        shutil.copy(path, to / "blobs" / f"b{number}")
        (to / "snapshots" / "0123" / path.name).symlink_to(f"../../blobs/b{number}")
    return to / "snapshots" / "0123"


def _last_logits(backend: OrtBackend) -> NDArray[np.float32]:
    backend.reset()
    return np.asarray(backend.forward((tokens(7) % 100).tolist()))


def test_a_model_runs_through_links(exported: Path, tmp_path: Path) -> None:
    linked = _cached(exported, tmp_path)
    expected = _last_logits(OrtBackend.load(exported, threads=1))
    np.testing.assert_array_equal(_last_logits(OrtBackend.load(linked, threads=1)), expected)


def test_a_lowered_model_runs_through_links(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "lowered").mkdir()
    write_lowered(exported, Lowering.CPU, tmp_path / "lowered", SilentProgress())
    linked = _cached(tmp_path / "lowered", tmp_path / "cache")
    expected = _last_logits(OrtBackend.load_lowered(tmp_path / "lowered", CAPACITY))
    np.testing.assert_array_equal(_last_logits(OrtBackend.load_lowered(linked, CAPACITY)), expected)


def test_weights_on_another_disk_are_read(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(exported / "model.onnx.data", tmp_path / "elsewhere" / "w")
    (tmp_path / "model.onnx.data").symlink_to(tmp_path / "elsewhere" / "w")
    expected = _last_logits(OrtBackend.load(exported, threads=1))
    np.testing.assert_array_equal(_last_logits(OrtBackend.load(tmp_path, threads=1)), expected)


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd", "a/../../b"])
def test_a_graph_that_names_a_file_elsewhere_is_refused(location: str, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(str(exported / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="beside the model"):
        load_model(tmp_path / "model.onnx")


def test_a_link_that_leads_nowhere_is_a_missing_file(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "model.onnx", tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").symlink_to(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="missing"):
        open_decoder(tmp_path)
