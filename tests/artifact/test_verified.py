"""Files are hashed at the first load, and again when any has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq2trt.artifact import manifest
from awq2trt.artifact.records import FileRecord
from awq2trt.artifact.verified import is_verified, note_verified


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, FileRecord]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"more")
    return {name: manifest.record_file(tmp_path / name) for name in ("a", "b")}


def test_note_holds_until_a_file_changes(tmp_path: Path, files: dict[str, FileRecord]) -> None:
    assert not is_verified(tmp_path, files)
    note_verified(tmp_path, files)
    assert is_verified(tmp_path, files)

    found = (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(b"WEIGHTS")
    os.utime(tmp_path / "a", ns=(found.st_atime_ns, found.st_mtime_ns))  # whoever changed it hides that
    assert not is_verified(tmp_path, files)


def test_other_hashes_and_missing_files_are_not_verified(tmp_path: Path, files: dict[str, FileRecord]) -> None:
    note_verified(tmp_path, files)
    other = {**files, "a": files["b"]}
    assert not is_verified(tmp_path, other)

    (tmp_path / "b").unlink()
    assert not is_verified(tmp_path, files)


def test_without_a_cache_directory_nothing_is_noted(
    tmp_path: Path, files: dict[str, FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    note_verified(tmp_path, files)
    assert not is_verified(tmp_path, files)
