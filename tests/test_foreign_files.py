"""The boundary around files of others: one error of ours, whatever happens inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awq2trt.errors import ArtifactError, CheckpointError, UsageError
from awq2trt.foreign_files import read_bounded, read_json, reading


class PanicException(BaseException):
    """Like pyo3's, not an Exception."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (KeyError("weight_map"), "'weight_map' is missing"),
        (IndexError(), "IndexError"),
        (Exception("two\nlines"), "two lines"),
        (PanicException("called `Option::unwrap()`"), "unwrap"),
        (AttributeError("x" * 10_000), r"x \.\.\."),
        (MemoryError(), "not enough memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_error_becomes_one_about_the_file(raised: BaseException, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught, reading("a thing", "dir/file"):
        raise raised
    assert caught.value.where == "dir/file"
    assert "a thing" in caught.value.what
    assert caught.value.fix
    assert len(caught.value.what) < 400


def test_our_own_errors_and_interrupts_pass() -> None:
    for raised in (UsageError("said already."), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(raised)) as caught, reading("a thing", "file", error=ArtifactError):
            raise raised
        assert caught.value is raised


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"nul",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        rb'{"a": "\ud800"}',
    ],
    ids=["empty", "list", "word", "not utf-8", "deep list", "deep object", "long number", "half a character"],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read as a JSON object"):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_pipes_devices_and_files_without_an_end_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(bytes(101))
    for name in ("pipe", "zeros", "large", "none"):
        with pytest.raises(ValueError, match=r"not a regular file|more than"):
            read_bounded(tmp_path / name, 100)
    assert len(read_bounded(tmp_path / "large", 101)) == 101
