"""Tokenizers as transformers loads them, and the ids of a text."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.foreign_files import reading
from awq2trt.models.families import family_named
from awq2trt.models.sources.base import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `directory`.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    fix = "put the model's own tokenizer.json and tokenizer_config.json there."
    with reading("a tokenizer", directory, fix=fix):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


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
