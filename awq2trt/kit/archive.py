"""A kit as one file: a tar archive whose bytes depend only on the files in it.

In: a directory and the names of its files. Out: the archive. Its entries are sorted by name, have time 0, belong to
root, and have modes 644 or 755. It is not compressed, since 4-bit weights do not shrink.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_FILE_MODE: Final = 0o644
_PROGRAM_MODE: Final = 0o755
_OWNER_MAY_RUN: Final = 0o100


def write_tar(directory: Path, names: Iterable[str], path: Path) -> None:
    """Writes files of a directory into a tar archive, below the directory's own name.

    Args:
        directory: The directory of the files.
        names: Their paths relative to it.
        path: The archive; it has this name only when it is complete.

    Raises:
        OSError: The archive cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # GNU's format can store files beyond 8 GB without an extra header that has times of its own.
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
            for name in sorted(names):
                _add(archive, directory / name, f"{directory.name}/{name}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, file: Path, name: str) -> None:
    status = file.stat()
    entry = tarfile.TarInfo(name)
    entry.size = status.st_size
    entry.mode = _PROGRAM_MODE if status.st_mode & _OWNER_MAY_RUN else _FILE_MODE
    with file.open("rb") as content:
        archive.addfile(entry, content)
