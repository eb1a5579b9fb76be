"""Texts: a file, or a data set of the `datasets` package, read as far as it is needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from awq2trt.errors import CalibrationError, ToolError, UsageError

MAX_TEXT_BYTES: Final = 64 << 20
"""How much of a text file is read: some 15 million tokens, a thousand times what a search uses."""

CHARACTERS_PER_TOKEN: Final = 16
"""How much text of a data set is fetched per token wanted; English has 4 to 5, tables of numbers under 2."""


def read_text(calib: str, *, characters: int, flag: str = "--calib") -> str:
    """Text of a `.txt` or `.jsonl` file, or of a data set of the `datasets` package.

    Args:
        calib: A path, or `NAME`, `NAME:CONFIG`, `NAME:CONFIG:SPLIT`.
        characters: How much text of a data set is enough.
        flag: That names the text, for errors.

    Raises:
        UsageError: There is no such file, or it is of another kind.
        CalibrationError: It holds no text.
        ToolError: `datasets` is not installed.
    """
    path = Path(calib).expanduser()
    if path.suffix not in (".txt", ".raw", ".jsonl"):
        if path.is_file():
            raise UsageError("expected a .txt or .jsonl file.", where=calib, fix="rename it, or convert it to text.")
        return _join(_dataset_texts(calib), characters)
    if not path.is_file():
        raise UsageError("no such file.", where=calib, fix=f"check the path given as {flag}.")
    if path.suffix == ".jsonl":
        return _join(_jsonl_texts(path), MAX_TEXT_BYTES)
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MAX_TEXT_BYTES)


def _jsonl_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _text_of(json.loads(line))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise CalibrationError(
                    'expected a JSON object with a string "text".',
                    where=f"{path}, line {number}",
                    fix='write one {"text": "..."} a line.',
                ) from error


def _dataset_texts(calib: str) -> Iterator[str]:
    """Texts of a data set, streamed. NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; the split is `train` by default."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ToolError(
            "no such file, and the package `datasets` that could load it by name is not installed.",
            where=calib,
            fix="pip install datasets, or name a .txt or .jsonl file, or use --calib self.",
        ) from error
    name, config, split = ([*calib.split(":"), "", ""])[:3]
    try:
        for record in load_dataset(name, config or None, split=split or "train", streaming=True):
            yield _text_of(record)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"cannot read this data set ({str(error).strip().splitlines()[0]}).",
            where=calib,
            fix="check name, config and split (NAME:CONFIG:SPLIT); its records need a string column `text`.",
        ) from error


def _text_of(record: Any) -> str:
    text = record["text"]
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}")
    return text


def _join(texts: Iterator[str], characters: int) -> str:
    """Documents with a blank line between, until there is enough."""
    parts: list[str] = []
    length = 0
    for text in texts:
        parts.append(text)
        length += len(text)
        if length >= characters:
            break
    return "\n\n".join(parts)
