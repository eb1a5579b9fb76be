"""Notes in the user's cache directory that a directory's files had their hashes, so that loading need not read them.

In: a directory and its files' records. Out: whether it has a note. A note is for sizes, hashes and times of change, as
in the C++ library (`plugins/runtime/artifact/files.cpp`), which keeps its own beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from awq2trt.artifact.records import FileRecord


def is_verified(directory: Path, files: Mapping[str, FileRecord]) -> bool:
    """Whether the files had these hashes, and none has changed since; a missing file has not been verified."""
    try:
        return _note(directory, files).is_file()
    except (OSError, RuntimeError):  # a file or the home directory is missing
        return False


def note_verified(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Notes that the files have these hashes; without a writable cache directory they will be hashed again."""
    with suppress(OSError, RuntimeError):
        note = _note(directory, files)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{directory.absolute()}\n", encoding="utf-8")


def _note(directory: Path, files: Mapping[str, FileRecord]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lines = [str(directory.absolute())]
    for name, record in sorted(files.items()):
        found = (directory / name).stat()
        lines.append(f"{name} {record.size_bytes} {record.sha256} {found.st_mtime_ns} {found.st_ctime_ns}")
    return cache / "awq2trt" / "verified" / hashlib.sha256("\n".join(lines).encode()).hexdigest()
