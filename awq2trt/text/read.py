"""Reads texts from a file, or from a data set of the `datasets` package, only as far as needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from awq2trt.errors import CalibrationError, ToolError, UsageError
from awq2trt.foreign_files import encoding_of, reading

MAX_TEXT_BYTES: Final = 64 << 20
"""The most that is read of a text file: some 15 million tokens, a thousand times what a search uses."""

_TO_UTF8: Final = "convert it: iconv -f ENCODING -t UTF-8 FILE > NEW_FILE"

_TEXT_KEYS: Final = ("text", "content")
_PAIRS: Final = (("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
_MESSAGES: Final = ("messages", "conversations")
_MESSAGE_KEYS: Final = ("content", "value")
"""Keys that are read from records: a text, the two halves of one, or the messages of a conversation."""


def read_text(calib: str, *, characters: int, flag: str = "--calib") -> str:
    """Reads the text of a `.txt` or `.jsonl` file, or of a data set of the `datasets` package.

    Args:
        calib: A path, or `NAME`, `NAME:CONFIG`, `NAME:CONFIG:SPLIT`.
        characters: How many characters of a data set are enough.
        flag: The flag that names the text, for errors.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        CalibrationError: The file holds no text.
        ToolError: `datasets` is not installed.
    """
    path = Path(calib).expanduser()
    if path.suffix not in (".txt", ".raw", ".jsonl"):
        if path.exists() and not path.is_dir():
            raise UsageError("expected a .txt or .jsonl file.", where=calib, fix="rename it, or convert it to text.")
        return _join(_dataset_texts(calib, flag), characters)
    if not path.is_file():
        raise UsageError("no such file.", where=calib, fix=f"check the path given as {flag}.")
    if path.suffix == ".jsonl":
        return _join(_jsonl_texts(path), MAX_TEXT_BYTES)
    return _plain_text(path)


def _plain_text(path: Path) -> str:
    """Returns the text of a file, up to the limit."""
    with path.open(encoding=encoding_of(path), errors="strict") as file:
        try:
            text = file.read(MAX_TEXT_BYTES)
        except UnicodeError as error:
            raise _not_in_encoding(path, error) from error
    _require_text(text, str(path))
    return text


def _jsonl_texts(path: Path) -> Iterator[str]:
    with path.open(encoding=encoding_of(path), errors="strict") as file:
        for number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            try:
                text = _text_of(json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:  # also of numbers with too many digits
                raise CalibrationError(
                    f"expected a JSON object with a text under {_known_keys()} ({error}).",
                    where=f"{path}, line {number}",
                    fix='write one {"text": "..."} per line.',
                ) from error
            _require_text(text, f"{path}, line {number}")
            yield text


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yields the lines of a file; the file may turn out to have another encoding, or no lines."""
    try:
        while line := file.readline(MAX_TEXT_BYTES + 1):
            if len(line) > MAX_TEXT_BYTES:
                raise CalibrationError(
                    f"expected one document per line, got a line of more than {MAX_TEXT_BYTES >> 20} MiB.",
                    where=str(path),
                    fix="name the file .txt if it is plain text; otherwise split the document.",
                )
            yield line
    except UnicodeError as error:
        raise _not_in_encoding(path, error) from error


def _not_in_encoding(path: Path, error: UnicodeError) -> CalibrationError:
    return CalibrationError(
        f"expected text in UTF-8, or with a byte order mark: {error}.", where=str(path), fix=_TO_UTF8
    )


def _require_text(text: str, where: str) -> None:
    """Refuses NULs, which come from UTF-16 without its mark or from data, and lone surrogates, which JSON allows."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(
            f"expected text, got half of a surrogate pair at character {error.start}.",
            where=where,
            fix="write the JSON again with a library that does not split characters.",
        ) from error
    place = text.find("\0")
    if place >= 0:
        raise CalibrationError(
            f"expected text, got a NUL at character {place}: this is UTF-16 without a byte order mark, or not text.",
            where=where,
            fix=_TO_UTF8,
        )


def _dataset_texts(calib: str, flag: str) -> Iterator[str]:
    """Streams the texts of a data set: NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; the default split is `train`."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToolError(
            "there is no such file, and the package `datasets`, which could load it by name, is not installed.",
            where=calib,
            fix=f"pip install datasets, or name a .txt or .jsonl file as {flag}.",
        ) from error
    name, config, split = ([*calib.split(":"), "", ""])[:3]
    fix = f"check name, config and split (NAME:CONFIG:SPLIT); its records need texts under {_known_keys()}."
    with reading("a data set", calib, fix=fix, error=CalibrationError):
        for record in load_dataset(name, config or None, split=split or "train", streaming=True):
            yield _text_of(record)


def _known_keys() -> str:
    return ", ".join((*_TEXT_KEYS, *("/".join(pair) for pair in _PAIRS), *_MESSAGES))


def _text_of(record: Any) -> str:
    """Returns the text of a record: one string, two that belong together, or the messages of a conversation.

    Raises:
        TypeError: The record has none of these.
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"got {type(record).__name__}")
    for key in _TEXT_KEYS:
        if isinstance(record.get(key), str):
            return str(record[key])
    for keys in _PAIRS:
        if all(isinstance(record.get(key), str) for key in keys):
            return "\n".join(record[key] for key in keys)
    for key in _MESSAGES:
        if isinstance(record.get(key), list):
            return "\n".join(_said(message) for message in record[key])
    raise TypeError(f"got the keys {', '.join(map(str, record)) or '(none)'}")


def _said(message: Any) -> str:
    """Returns the text of a message, without images and the like."""
    found = message if isinstance(message, Mapping) else {}
    content = next((found[key] for key in _MESSAGE_KEYS if key in found), None)
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        return "\n".join(text for text in parts if isinstance(text, str))
    raise TypeError(f"a message without {' or '.join(_MESSAGE_KEYS)}")


def _join(texts: Iterator[str], characters: int) -> str:
    """Joins documents with blank lines until there is enough text."""
    parts: list[str] = []
    length = 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= characters:
            break
    return "\n\n".join(parts)
