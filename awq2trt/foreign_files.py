"""The boundary around files that others wrote: whatever goes wrong while reading one becomes a single clear message.

In: a file, or a library's call that reads one. Out: its content, or an error of ours with the file's name, what was
wrong, and what to do. Libraries raise what they like on damaged input (UnicodeDecodeError, RecursionError, plain
Exception, panics of Rust code), so that no list of exceptions is long enough.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from awq2trt.errors import Awq2trtError, CheckpointError

AGAIN: Final = "it is truncated or damaged; download it again."

_MAX_JSON_BYTES: Final = 256 << 20
"""A limit above any index, tokenizer or configuration: the largest tokenizer.json we know (Gemma 3's) has 33 MB."""

_RUST_PANIC: Final = "PanicException"
"""What pyo3 raises for a panic in Rust; it derives from BaseException, and no module exports it."""

UNPAIRED: Final = "surrogates not allowed"
"""The reason that Python gives when a path or JSON text contains lone surrogates, which it cannot encode."""

_REASON_CHARACTERS: Final = 300
"""How much of a library's message is shown; some quote the complete file."""


_ENCODINGS: Final = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # must precede UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the mark at the beginning of a file; without a mark it is UTF-8."""


@contextmanager
def reading(
    what: str, where: str | Path, *, fix: str = AGAIN, error: type[Awq2trtError] = CheckpointError
) -> Iterator[None]:
    """Turns whatever the block raises into one error about the file; our own errors pass unchanged.

    Args:
        what: What the file should be, with an article: `a GGUF file`.
        where: The file, and the place in it if known.
        fix: What the user can do.
        error: The class to raise.

    Raises:
        Awq2trtError: `error`, or the error of ours that the block raised.
        KeyboardInterrupt: Passed on unchanged, since it does not concern the file.
    """
    try:
        yield
    except Awq2trtError:
        raise
    except MemoryError as raised:
        what = f"there is not enough memory to read {what}."
        raise error(what, where=str(where), fix=f"close other programs; or {fix}") from raised
    except BaseException as raised:
        if not isinstance(raised, Exception) and type(raised).__name__ != _RUST_PANIC:
            raise
        raise error(f"cannot be read as {what}: {reason(raised)}", where=str(where), fix=fix) from raised


def reason(raised: BaseException) -> str:
    """Returns what an exception says as one line that ends with a full stop."""
    said = " ".join(str(raised).split())
    if isinstance(raised, RecursionError):
        said = "it is nested too deeply"
    elif isinstance(raised, UnicodeEncodeError) and raised.reason == UNPAIRED:
        said = "its path, or a text in it, has bytes that are not UTF-8"
    elif isinstance(raised, KeyError):
        said = f"{said} is missing"
    elif not said:
        said = type(raised).__name__
    if len(said) > _REASON_CHARACTERS:
        said = said[:_REASON_CHARACTERS] + " ..."
    return said if said.endswith((".", "!", "?")) else f"{said}."


def read_json(
    path: Path, *, what: str = "a JSON object", fix: str = AGAIN, error: type[Awq2trtError] = CheckpointError
) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Args:
        path: The file.
        what: What the file should be, for errors.
        fix: What the user can do if it is not.
        error: The class to raise.

    Raises:
        Awq2trtError: The file cannot be read, is too large, or holds something else.
    """
    with reading(what, path, fix=fix, error=error):
        value = parse_json(read_bounded(path, _MAX_JSON_BYTES))
        if not isinstance(value, dict):
            raise TypeError(f"expected a JSON object, got {type(value).__name__}")
        return value


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or has lone surrogates, which JSON can write, but which cannot be in texts or names.
        RecursionError: It is nested too deeply.
    """
    value = json.loads(content)
    if "\\u" in content if isinstance(content, str) else b"\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_bounded(path: Path, limit: int) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
        ValueError: It has more than `limit`, or is a pipe or a device, which may have no end.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is missing, or not a regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit >> 10:,} KiB")
    return content


def encoding_of(path: Path) -> str:
    """The encoding of a text file, by the mark at its beginning; UTF-8 where there is none."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
