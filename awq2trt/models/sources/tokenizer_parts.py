"""Why a tokenizer does not open: a part that the installed library has not yet, or Python code of its own.

In: a directory with tokenizer files, and the error of the library that reads them. Out: an error that names the cause.
tokenizer.json names the class of each of its parts under `type` (https://huggingface.co/docs/tokenizers), and the
library says of one that it does not know only that the data matched no variant.
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
"""Part of tokenizer.json -> module of `tokenizers` that has a class for each of its types."""

_OWN_FILES: Final = "put the model's own tokenizer.json and tokenizer_config.json there."


@contextmanager
def reading_tokenizer(
    directory: Path, *, name: str | None = None, fix: str = _OWN_FILES, error: type[Awq2trtError] = CheckpointError
) -> Iterator[None]:
    """Turns whatever the block raises while it opens a tokenizer into one error that says why.

    Args:
        directory: Where the tokenizer's files are.
        name: What the user calls the model; None for the directory.
        fix: What to do where no cause is found.
        error: What to raise.

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
    """What is wrong with a tokenizer, and what helps, if it is one of the two that are known."""
    try:
        unknown = _unknown_part(_content(directory / TOKENIZER_FILE))
        code = _code(_content(directory / TOKENIZER_CONFIG_FILE))
    except (CheckpointError, RecursionError):
        return None  # what the library said is all there is to say
    if unknown is not None:
        return (
            f"{TOKENIZER_FILE}: the {unknown[0]} {unknown[1]!r} is none that tokenizers {version('tokenizers')} knows.",
            "install a newer one: pip install --upgrade tokenizers transformers.",
        )
    if code is not None:
        return (
            f"the tokenizer wants its own Python code to run ({code} in {TOKENIZER_CONFIG_FILE}), which is not done.",
            f"if there is a {TOKENIZER_FILE} of the model's own, let {TOKENIZER_CONFIG_FILE} have no auto_map and the "
            'tokenizer_class "PreTrainedTokenizerFast"; else use a model whose tokenizer is built into transformers.',
        )
    return None


def _content(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _unknown_part(tokenizer: dict[str, Any]) -> tuple[str, str] | None:
    """The first part of a type that the library has no class for: what it is, and its type."""
    for part, module in _MODULES.items():
        known = vars(importlib.import_module(f"tokenizers.{module}"))
        for name in _types(tokenizer.get(part)):
            if name not in known:
                return part, name
    return None


def _types(part: object) -> Iterator[str]:
    """The types of a part and of those that it is a sequence of."""
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
