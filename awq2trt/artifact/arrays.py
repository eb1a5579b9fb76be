"""Stores named arrays in one `.npz` file, so that equal arrays give equal bytes. It needs only NumPy.

Entries are not compressed, because another zlib would give other bytes, and have no dates.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import reading

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""Date of every entry: the earliest that a zip archive can store."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays in the order of the mapping."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue())


def read_arrays(path: Path, *, fix: str) -> dict[str, NDArray[Any]]:
    """Reads all arrays of a file.

    Args:
        path: The file.
        fix: What the user can do if it is damaged.

    Raises:
        ArtifactError: The file is missing or damaged, or holds pickled objects.
    """
    with (
        reading("an .npz file", path, fix=fix, error=ArtifactError),
        zipfile.ZipFile(path) as archive,
    ):
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed, so that they could have any size")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
