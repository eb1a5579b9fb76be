"""Tokenizers as transformers loads them, and the ids of a text."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.errors import CheckpointError
from awq2trt.models.families import family_named
from awq2trt.models.sources.base import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN: Final = 16
"""How much text is taken per token wanted; English has 4 to 5, tables of numbers under 2."""

_SLACK: Final = 64
"""Tokens that are encoded beyond those wanted, since the last ones depend on where a text is cut."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `directory`.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"transformers cannot load the tokenizer ({str(error).splitlines()[0]}).",
            where=str(directory),
            fix="put the model's own tokenizer.json and tokenizer_config.json there.",
        ) from error
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> list[int]:
    """The first `count` ids of a text, or all if it has fewer; only as much of it is encoded as they need."""
    length = (count + _SLACK) * CHARACTERS_PER_TOKEN
    while True:
        ids = encode(tokenizer, text[:length])
        if len(ids) >= count + _SLACK or length >= len(text):
            return ids[:count]
        length *= 2


def bos_of(tokenizer: PreTrainedTokenizerBase, family: str) -> int | None:
    """The token that windows of text begin with: BOS for a family that needs it, else none."""
    bos: int | None = tokenizer.bos_token_id if family_named(family).needs_bos else None
    return bos


def tokenizer_of(model: Path | ModelSource) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory, or that a model brings along."""
    from awq2trt.text.tokenizer import load_tokenizer

    if isinstance(model, Path):
        return load_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        model.save_tokenizer(Path(directory))
        return load_tokenizer(Path(directory))
