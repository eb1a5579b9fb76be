"""Rounds a model's head, with the grids that change the next token's distribution least, and reports what that costs.

In: the head's weight and the last hidden states of the calibration text, as the unquantized head reads them. Out:
codes, and a report of the KL divergence from the unquantized head, and of both perplexities, on a part of that text.

A head has far more rows than a block's linears, and an error in a row changes one logit, so it is judged by the
resulting distribution, KL(p || q) in nats per token. There are two candidates, the complete range of every group, and
the grid that the search finds for the smallest squared error of logits (`grids`); the better one is chosen. Rows are
processed in pieces, since a head of 128,256 x 4,096 takes 2 GiB in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.block_weights import to_tensor
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import Array
from awq2trt.quantization.grids import GridOptions, search_grids
from awq2trt.quantization.rounding import group_grid, round_to_grid, to_groups
from awq2trt.quantization.statistics import InputStatistics, require_finite
from awq2trt.scheme import QuantizedLinear, QuantScheme

PIECE_ROWS: Final = 8192
"""Number of rows that are rounded, or multiplied, at once."""

JUDGED_TOKENS: Final = 512
"""Tokens at the end of the text on which candidates are judged: their logits are 512 x 128,256 fp32, 250 MiB."""


@dataclass(frozen=True)
class HeadReport:
    """What rounding did to the head, on `tokens` tokens of the calibration text.

    Attributes:
        scheme: The usual name of how it was rounded.
        grid: The chosen candidate; its key in `kl`.
        kl: KL divergence of every candidate from the unquantized head, in nats per token; empty without text.
        perplexity: Perplexity of the text with the blocks that calibration ran, and the unquantized head.
        rounded_perplexity: The same with the rounded head. Both are None if no text was used.
        tokens: Number of tokens that were judged.
    """

    scheme: str
    grid: str
    kl: Mapping[str, float]
    perplexity: float | None = None
    rounded_perplexity: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class CalibratedHead:
    """The last hidden states of the calibration text.

    Attributes:
        hidden: The states after the final norm, fp32 [samples, seqlen, H].
        tokens: int64 [samples, seqlen].
    """

    hidden: Tensor
    tokens: Tensor


_Candidates = dict[str, QuantizedLinear]


def quantize_head(
    weight: Array, scheme: QuantScheme, text: CalibratedHead | None, grids: GridOptions | None, *, where: str
) -> tuple[QuantizedLinear, HeadReport]:
    """Rounds a head.

    Args:
        weight: The weight [V, H], as the model stores it.
        scheme: How to round.
        text: Its inputs on the calibration text; None for a method that uses none.
        grids: How to search grids; None to use every group's complete range.
        where: Name of the head, for errors.

    Raises:
        CheckpointError: A step size is beyond fp16.
        CalibrationError: The hidden states are not finite.
    """
    candidates = {"whole range": _rounded(weight, scheme, where)}
    if text is None:
        return candidates["whole range"], HeadReport(scheme.describe(), "whole range", {})
    if grids is not None:
        statistics = InputStatistics.empty(weight.shape[1])
        for window in text.hidden:
            statistics.add_(window)
        gram = statistics.gram()
        require_finite(gram, where)

        def search(piece: Tensor) -> QuantizedLinear:
            grid = search_grids(piece, gram, scheme, grids)
            return round_to_grid(piece, grid, scheme).to_linear(scheme, where=where)

        candidates["searched"] = _joined(search(piece) for piece in _pieces(weight))
    return _best(candidates, weight, text)


def _rounded(weight: Array, scheme: QuantScheme, where: str) -> QuantizedLinear:
    """Rounds the head on the complete range of every group."""

    def rounded(piece: Tensor) -> QuantizedLinear:
        return round_to_grid(piece, group_grid(to_groups(piece, scheme), scheme), scheme).to_linear(scheme, where=where)

    return _joined(rounded(piece) for piece in _pieces(weight))


def _best(candidates: _Candidates, weight: Array, text: CalibratedHead) -> tuple[QuantizedLinear, HeadReport]:
    """Returns the candidate with the smallest KL divergence."""
    hidden, targets = _judged(text)
    plain = _log_probabilities(hidden, weight.shape[0], lambda start, end: to_tensor(weight[start:end]))
    kl, perplexity = dict[str, float](), dict[str, float]()
    for name, linear in candidates.items():
        rounded = _log_probabilities(hidden, weight.shape[0], _dequantizing(linear))
        kl[name] = max(0.0, float(F.kl_div(rounded, plain, reduction="batchmean", log_target=True)))
        perplexity[name] = math.exp(float(F.nll_loss(rounded, targets)))
    best = min(kl, key=kl.__getitem__)
    report = HeadReport(
        scheme=candidates[best].scheme.describe(),
        grid=best,
        kl=kl,
        perplexity=math.exp(float(F.nll_loss(plain, targets))),
        rounded_perplexity=perplexity[best],
        tokens=len(targets),
    )
    return candidates[best], report


def _judged(text: CalibratedHead) -> tuple[Tensor, Tensor]:
    """Hidden states fp32 [tokens, H] at the end of the text, and the token behind each, int64 [tokens]."""
    hidden = text.hidden[:, :-1].flatten(0, 1)
    return hidden[-JUDGED_TOKENS:], text.tokens[:, 1:].flatten()[-JUDGED_TOKENS:]


def _log_probabilities(hidden: Tensor, rows: int, weight: Callable[[int, int], Tensor]) -> Tensor:
    """log p of every next token, fp32 [tokens, V]; `weight` returns rows of the head in fp32, given start and end."""
    starts = range(0, rows, PIECE_ROWS)
    logits = torch.cat([hidden @ weight(start, min(start + PIECE_ROWS, rows)).T for start in starts], dim=-1)
    return logits.log_softmax(dim=-1)


def _dequantizing(linear: QuantizedLinear) -> Callable[[int, int], Tensor]:
    return lambda start, end: to_tensor(linear.rows(start, end).dequantize())


def _pieces(weight: Array) -> Iterator[Tensor]:
    return (to_tensor(weight[start : start + PIECE_ROWS]) for start in range(0, len(weight), PIECE_ROWS))


def _joined(pieces: Iterator[QuantizedLinear]) -> QuantizedLinear:
    """Joins the rows of several linears into one."""
    parts = list(pieces)
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return QuantizedLinear(
        codes=np.concatenate([part.codes for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zeros=np.concatenate(zeros) if zeros else None,
        scheme=parts[0].scheme,
    )


def head_lines(spec: DecoderSpec, report: HeadReport) -> Iterator[str]:
    """Lines that say what a quantized head costs."""
    what = "head and embedding, one weight" if spec.tie_embeddings else "head"
    if not report.kl:
        yield f"{what}: {report.scheme}, rounded to nearest"
        return
    yield (
        f"{what}: {report.scheme}, {report.grid}; KL {report.kl[report.grid]:.2g} nats per token from the unquantized "
        f"head, perplexity {report.perplexity:.2f} -> {report.rounded_perplexity:.2f} ({report.tokens} tokens of the "
        "calibration text, head alone)"
    )
