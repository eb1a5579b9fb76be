"""Makes token windows [samples, seqlen] to calibrate on: from a file, a data set, or text of the model's own.

A file's windows are spread evenly over it, so that all parts count equally and nothing is drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.recipe import SHORTEST_WINDOW, QuantizeOptions
from awq2trt.text.read import read_text
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import CHARACTERS_PER_TOKEN, bos_of, encode, first_tokens, load_tokenizer, ordinary_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SELF: Final = "self"

_WHOLE_CHARACTERS: Final = 2 << 20
"""A text of up to this many characters is encoded completely; 32 million took 5 GiB and half a minute."""

_LONGEST_WORD: Final = 256
"""How far a window may move to begin at a word."""


def text_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, samples: int, seqlen: int, *, where: str, bos: int | None = None
) -> Tensor:
    """Spreads windows evenly over a text.

    Args:
        tokenizer: The model's tokenizer.
        text: The complete text.
        samples: Number of windows wanted.
        seqlen: Number of tokens in a window.
        where: Name of the text, for errors.
        bos: The token that replaces the first one of every window; None for text alone.

    Returns:
        int64 [samples, seqlen]; if the text is too short for all, fewer windows that do not overlap.

    Raises:
        CalibrationError: The text is shorter than one window.
    """
    piece = seqlen * CHARACTERS_PER_TOKEN
    if len(text) > max(_WHOLE_CHARACTERS, samples * piece):
        windows = _windows_of_pieces(tokenizer, text, samples, seqlen)
    else:
        windows = _windows_of_ids(encode(tokenizer, text), samples, seqlen, where)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _windows_of_ids(ids: list[int], samples: int, seqlen: int, where: str) -> Tensor:
    if len(ids) < seqlen:
        shorter = f", or use --seqlen {len(ids)} or less" if len(ids) >= SHORTEST_WINDOW else ""
        raise CalibrationError(
            f"expected at least one window of {seqlen} tokens, got a text of {len(ids)}.",
            where=where,
            fix=f"name a longer text{shorter}.",
        )
    count = min(samples, len(ids) // seqlen)
    step = (len(ids) - seqlen) // max(count - 1, 1)
    return torch.tensor([ids[index * step : index * step + seqlen] for index in range(count)])


def _windows_of_pieces(tokenizer: PreTrainedTokenizerBase, text: str, samples: int, seqlen: int) -> Tensor:
    """Takes windows from a long text, spread evenly, each beginning at a word; nothing else of it is encoded."""
    starts = (index * (len(text) - seqlen * CHARACTERS_PER_TOKEN) // max(samples - 1, 1) for index in range(samples))
    words = (max(text.find(" ", start, start + _LONGEST_WORD), start) for start in starts)
    found = [first_tokens(tokenizer, text[start : start + _WHOLE_CHARACTERS], seqlen) for start in words]
    return torch.tensor([ids for ids in found if len(ids) == seqlen])


def calibration_tokens(
    source: ModelSource, tokenizer_directory: Path, options: QuantizeOptions, progress: Progress
) -> Tensor:
    """Makes calibration windows from whatever `options.calib` names.

    Args:
        source: The model, which may have to write the text itself.
        tokenizer_directory: The directory of its tokenizer.
        options: Text, number and length of windows, seed.
        progress: Receives the progress of the model's own text.

    Returns:
        int64 [samples, seqlen], with fewer samples if the text is short.
    """
    samples, seqlen = options.samples, options.seqlen
    tokenizer = load_tokenizer(tokenizer_directory)
    if options.calib == SELF:
        return self_written(source, ordinary_tokens(tokenizer), samples, seqlen, options.seed, progress)
    text = read_text(options.calib, characters=samples * seqlen * CHARACTERS_PER_TOKEN)
    bos = bos_of(tokenizer, source.spec.family)
    return text_windows(tokenizer, text, samples, seqlen, where=options.calib, bos=bos)
