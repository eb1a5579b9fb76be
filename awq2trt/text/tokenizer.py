"""Tokenizers as transformers loads them, and the ids of a text."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.errors import CheckpointError
from awq2trt.foreign_files import reading
from awq2trt.models.families import family_named
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.tokenizer_parts import reading_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN: Final = 16
"""Characters of text that are encoded per wanted token; English has 4 to 5, tables of numbers have under 2."""

_SLACK: Final = 64
"""Tokens that are encoded in addition, since the last ones depend on where a text is cut."""


def load_tokenizer(directory: Path, *, name: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in `directory`.

    Args:
        directory: Where its files are.
        name: What the user calls its model, for errors; None for the directory.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    with reading_tokenizer(directory, name=name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the token ids of a text, without special tokens."""
    with reading("a tokenizer that accepts this text", tokenizer.name_or_path):
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> list[int]:
    """Returns the first `count` ids of a text, or fewer if it is shorter; no more of it is encoded than necessary."""
    length = (count + _SLACK) * CHARACTERS_PER_TOKEN
    while True:
        ids = encode(tokenizer, text[:length])
        if len(ids) >= count + _SLACK or length >= len(text):
            return ids[:count]
        length *= 2


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that stand for text: neither special tokens nor rows of the embedding without a token."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(tokenizer.get_vocab().values()) - special - {*tokenizer.all_special_ids}


def bos_of(tokenizer: PreTrainedTokenizerBase, family: str) -> int | None:
    """The token that windows of text begin with: BOS for a family that needs it, otherwise None."""
    bos: int | None = tokenizer.bos_token_id if family_named(family).needs_bos else None
    return bos


def tokenizer_of(model: Path | ModelSource) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a directory, or of a model."""
    from awq2trt.text.tokenizer import load_tokenizer

    if isinstance(model, Path):
        return load_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        model.save_tokenizer(Path(directory))
        return load_tokenizer(Path(directory), name=model.name)


def require_tokenizer(source: ModelSource) -> None:
    """Refuses a tokenizer that does not open, or has ids for which the model has no embedding.

    Special tokens that were added beyond the vocabulary are accepted, unless texts begin or end with them, since some
    models share the tokenizer of larger ones (Gemma 3 1B's tokenizer has a token for images).

    Raises:
        CheckpointError: It does not open, or its ids are too large.
    """
    tokenizer, size = tokenizer_of(source), source.spec.vocab_size
    with reading("a tokenizer", source.name):
        ordinary = int(tokenizer.vocab_size) - 1
        used = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
        encode(tokenizer, "The sea.")
    largest = max({"ordinary tokens": ordinary, **{name: id_ or 0 for name, id_ in used.items()}}.items(), key=_second)
    if largest[1] >= size:
        raise CheckpointError(
            f"the tokenizer's {largest[0]} go up to id {largest[1]}, but the model has {size} embeddings.",
            where=source.name,
            fix="use the tokenizer files that were published with these weights.",
        )


def _second(pair: tuple[str, int]) -> int:
    return pair[1]
