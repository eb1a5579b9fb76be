"""Explains why a tokenizer does not open: the installed library lacks a part of it, or it needs Python code.

In: a directory with tokenizer files, and the error of the library that reads them. Out: an error that names the cause.
tokenizer.json names the class of each of its parts under `type` (https://huggingface.co/docs/tokenizers). For an
unknown class, the library only says that the data matched no variant.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from awq2trt.errors import Awq2trtError, CheckpointError
from awq2trt.foreign_files import read_json, reading

TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"

_MODULES: Final = {
    "model": "models",
    "normalizer": "normalizers",
    "pre_tokenizer": "pre_tokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""Maps a part of tokenizer.json to the module of `tokenizers` that has a class for each of its types."""

_OWN_FILES: Final = "put the model's own tokenizer.json and tokenizer_config.json there."


@contextmanager
def reading_tokenizer(
    directory: Path, *, name: str | None = None, fix: str = _OWN_FILES, error: type[Awq2trtError] = CheckpointError
) -> Iterator[None]:
    """Turns whatever the block raises while it opens a tokenizer into one error that says why.

    Args:
        directory: Where the tokenizer's files are.
        name: What the user calls the model; None for the directory.
        fix: What the user can do if no cause is found.
        error: The class to raise.

    Raises:
        Awq2trtError: `error`.
    """
    where = name or str(directory)
    try:
        with reading("a tokenizer", where, fix=fix, error=error):
            yield
    except error as raised:
        found = _cause(directory)
        if found is None:
            raise
        raise error(found[0], where=where, fix=found[1]) from raised


def _cause(directory: Path) -> tuple[str, str] | None:
    """What is wrong with a tokenizer and how to fix it, if it is one of the two known causes."""
    try:
        unknown = _unknown_part(_content(directory / TOKENIZER_FILE))
        code = _code(_content(directory / TOKENIZER_CONFIG_FILE))
    except (CheckpointError, RecursionError):
        return None  # the library's own message has to do
    if unknown is not None:
        return (
            f"{TOKENIZER_FILE}: the {unknown[0]} {unknown[1]!r} is unknown to tokenizers {version('tokenizers')}.",
            "install a newer one: pip install --upgrade tokenizers transformers.",
        )
    if code is not None:
        return (
            f"the tokenizer needs Python code of its own ({code} in {TOKENIZER_CONFIG_FILE}), which we refuse to run.",
            f"if the model has a {TOKENIZER_FILE}, remove auto_map from {TOKENIZER_CONFIG_FILE} and set its "
            'tokenizer_class "PreTrainedTokenizerFast"; else use a model whose tokenizer is built into transformers.',
        )
    return None


def _content(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _unknown_part(tokenizer: dict[str, Any]) -> tuple[str, str] | None:
    """Returns the first part whose type the library has no class for, and that type."""
    for part, module in _MODULES.items():
        known = vars(importlib.import_module(f"tokenizers.{module}"))
        for name in _types(tokenizer.get(part)):
            if name not in known:
                return part, name
    return None


def _types(part: object) -> Iterator[str]:
    """The types of a part and, if it is a sequence, of its members."""
    if not isinstance(part, dict):
        return
    if isinstance(part.get("type"), str):
        yield part["type"]
    for below in part.values():
        for member in below if isinstance(below, list) else ():
            yield from _types(member)


def _code(config: dict[str, Any]) -> str | None:
    """The class that an `auto_map` names."""
    mapped = config.get("auto_map")
    named = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    classes = named if isinstance(named, list) else [named]
    return next((name for name in classes if isinstance(name, str)), None)
