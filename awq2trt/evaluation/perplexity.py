"""Perplexity of a model on windows of text (the measure of the paper's tables).

Perplexity is exp of the mean negative log-likelihood of every token of a window given those before it in the same
window; windows are cut one after another from the start of the text, without special tokens. A perplexity therefore has
a meaning only together with the number of windows and their length, which every result includes.

In: tokens of a text, and logits of each window from whatever runs the model. Out: a `Perplexity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress

WindowLogits = Callable[[Tensor], Iterator[Tensor]]
"""Takes one window int64 [S]; yields logits of all its positions in order, in pieces of fp32 [rows, vocab]."""


@dataclass(frozen=True)
class Perplexity:
    """A perplexity and what it was measured on.

    Attributes:
        value: exp(mean NLL).
        window_nll: Mean NLL of every window.
        windows: Number of windows.
        seqlen: Tokens in a window; each gives seqlen - 1 predictions.
    """

    value: float
    window_nll: tuple[float, ...]
    windows: int
    seqlen: int


def first_windows(ids: list[int], windows: int, seqlen: int, *, where: str, bos: int | None = None) -> Tensor:
    """Returns the first windows of a text, one after another.

    Args:
        ids: Tokens of the text.
        windows: The most windows.
        seqlen: Tokens in each.
        where: Name of the text, for errors.
        bos: The first of the `seqlen` tokens of every window; None for text alone.

    Returns:
        int64 [windows, seqlen], with fewer windows if the text is too short.

    Raises:
        UsageError: The text is shorter than one window.
    """
    length = seqlen if bos is None else seqlen - 1
    count = min(windows, len(ids) // length)
    if count == 0:
        raise UsageError(
            f"expected at least {length} tokens, got {len(ids)}.",
            where=where,
            fix="use a longer text, or a smaller --seqlen.",
        )
    found = torch.tensor(ids[: count * length]).view(count, length)
    return found if bos is None else F.pad(found, (1, 0), value=bos)


def perplexity(windows: Tensor, logits: WindowLogits, progress: Progress, description: str) -> Perplexity:
    """Computes the perplexity of anything that gives logits.

    Args:
        windows: int64 [windows, S].
        logits: The model.
        progress: Counts the windows.
        description: Description of the task.
    """
    losses = []
    with progress.task(description, total=len(windows)) as advance:
        for window in windows:
            losses.append(_window_nll(window, logits(window)))
            advance(1)
    return Perplexity(math.exp(sum(losses) / len(losses)), tuple(losses), len(windows), windows.shape[1])


def torch_logits(source: ModelSource, windows: Tensor, progress: Progress, description: str) -> WindowLogits:
    """Runs a model over all windows, one block in memory at a time; returns a function that gives logits by window.

    Args:
        source: An original or quantized model.
        windows: int64 [windows, S]; logits exist only for these, in this order.
        progress: Counts the blocks.
        description: Description of the task.
    """
    with torch.inference_mode(), progress.task(description, total=source.spec.num_layers) as advance:
        hidden = iter(run_model(source, windows, progress=advance))
    ends = Ends(source)
    return lambda window: ends.logits_in_pieces(next(hidden)[: len(window)])


def _window_nll(window: Tensor, pieces: Iterator[Tensor]) -> float:
    total, start = 0.0, 0
    for piece in pieces:
        targets = window[start + 1 : start + 1 + len(piece)].to(piece.device)  # windows are cut before a GPU is chosen
        total += (
            float(F.cross_entropy(piece[: len(targets)].float(), targets, reduction="sum")) if len(targets) else 0.0
        )
        start += len(piece)
    return total / (len(window) - 1)
