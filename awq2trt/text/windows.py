"""Text -> token windows [samples, seqlen] to calibrate on: from a file, a data set, or written by the model itself.

A file's windows are spread evenly over it, so that no part of it weighs more than another and nothing is drawn at
random.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.recipe import QuantizeOptions
from awq2trt.text.read import CHARACTERS_PER_TOKEN, read_text
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import bos_of, encode, load_tokenizer, ordinary_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SELF: Final = "self"

_LONG_TEXT: Final = 4 << 20
"""Characters: a text up to this is tokenized whole, in half a GiB and some four seconds."""


def text_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, samples: int, seqlen: int, *, where: str, bos: int | None = None
) -> Tensor:
    """Windows spread evenly over a text.

    Args:
        tokenizer: Of the model.
        text: Everything there is.
        samples: Windows wanted.
        seqlen: Tokens in a window.
        where: Name of the text, for errors.
        bos: Begins every window, in place of its first token; None for text alone.

    Returns:
        int64 [samples, seqlen]; fewer windows, none overlapping, if the text is too short for all.

    Raises:
        CalibrationError: The text is shorter than one window.
    """
    windows = _from_slices(tokenizer, text, samples, seqlen)
    if windows is None:
        windows = _from_whole(encode(tokenizer, text), samples, seqlen, where)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _from_slices(tokenizer: PreTrainedTokenizerBase, text: str, samples: int, seqlen: int) -> Tensor | None:
    """Windows of a long text, each tokenized by itself from a place of its own: 32 MB whole take 5 GiB and 31 s.

    Returns:
        int64 [samples, seqlen]; None for a text that is short, or whose tokens are long: it is to be tokenized whole.
    """
    length = seqlen * CHARACTERS_PER_TOKEN
    if len(text) < max(_LONG_TEXT, samples * length):
        return None
    step = (len(text) - length) // max(samples - 1, 1)
    windows = []
    for start in range(0, samples * step, step):
        # The first of its tokens may be the rest of a word.
        ids = encode(tokenizer, text[start : start + length])[1 : seqlen + 1]
        if len(ids) < seqlen:
            return None
        windows.append(ids)
    return torch.tensor(windows)


def _from_whole(ids: list[int], samples: int, seqlen: int, where: str) -> Tensor:
    """Windows of a text of which all ids are there."""
    if len(ids) < seqlen:
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got a text of {len(ids)}.",
            where=where,
            fix=f"name a longer text, or use --seqlen {max(8, len(ids))} or less.",
        )
    count = min(samples, len(ids) // seqlen)
    step = (len(ids) - seqlen) // max(count - 1, 1)
    return torch.tensor([ids[index * step : index * step + seqlen] for index in range(count)])


def calibration_tokens(
    source: ModelSource, tokenizer_directory: Path, options: QuantizeOptions, progress: Progress
) -> Tensor:
    """Calibration windows from whatever `options.calib` names.

    Args:
        source: The model; runs if it is to write the text itself.
        tokenizer_directory: Where its tokenizer is saved.
        options: Text, number and length of windows, seed.
        progress: Of the model's own text.

    Returns:
        int64 [samples, seqlen], fewer samples if the text is short.
    """
    samples, seqlen = options.samples, options.seqlen
    tokenizer = load_tokenizer(tokenizer_directory)
    if options.calib == SELF:
        return self_written(source, ordinary_tokens(tokenizer), samples, seqlen, options.seed, progress)
    text = read_text(options.calib, characters=samples * seqlen * CHARACTERS_PER_TOKEN)
    bos = bos_of(tokenizer, source.spec.family)
    return text_windows(tokenizer, text, samples, seqlen, where=options.calib, bos=bos)
