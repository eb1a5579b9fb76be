"""Arrays in a file: the same bytes for the same arrays, readable by NumPy, damage named."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from awq2trt.artifact.arrays import read_arrays, write_arrays
from awq2trt.errors import ArtifactError

ARRAYS: dict[str, NDArray[Any]] = {
    "b": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "a": np.array([1.5, np.inf], np.float32),
}


def test_numpy_reads_it_in_order(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["b", "a"]
        np.testing.assert_array_equal(file["b"], [[0, 3], [1, 4], [2, 5]])
    assert read_arrays(tmp_path / "a.npz", fix="")["a"].dtype == np.float32


def test_bytes_depend_on_nothing_but_the_arrays(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    write_arrays(tmp_path / "b.npz", {name: value.copy() for name, value in ARRAYS.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {(info.date_time[0], info.compress_type) for info in archive.infolist()} == {(1980, 0)}


def test_compressed_entries_which_may_have_any_size_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1 << 20))
    with pytest.raises(ArtifactError, match="entries are compressed"):
        read_arrays(tmp_path / "a.npz", fix="make it again.")


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 cut short", pickle.dumps([1])])
def test_damage_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.npz: cannot be read as an .npz file.* Fix: make it again"):
        read_arrays(tmp_path / "a.npz", fix="make it again")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.npz"):
        read_arrays(tmp_path / "a.npz", fix="")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=r"cannot be read as an \.npz file"):
        read_arrays(tmp_path / "a.npz", fix="")
