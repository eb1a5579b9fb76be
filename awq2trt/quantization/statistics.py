"""What calibration keeps of a linear's input: its second moments, so that activations need not be stored.

In: activations [tokens, K], batch after batch. Out: E[x x^T], E[x] and the mean |x| of every channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from awq2trt.errors import CalibrationError
from awq2trt.machine.ranks import Ranks

SYRK_COLUMNS: Final = 192
"""Number of columns of X that a CPU multiplies at once by all columns from there on, which needs half of all products:
X [512, 1536] takes 14.1 ms this way, 24.2 ms all at once, and 14.9 ms with 128 or 256 columns (torch 2.13.0, one core
of an EPYC with AVX-512)."""


@dataclass
class InputStatistics:
    """What calibration keeps of one linear input X [tokens, K].

    Attributes:
        gram_sum: Sum of x x^T over tokens, fp32 [K, K]; the part below the diagonal is not used.
        sum: Sum of x over tokens, fp32 [K].
        magnitude_sum: Sum of |x| over tokens, fp32 [K].
        tokens: Number of tokens seen.
        factors: Type of the factors of x x^T on a CPU. With bf16 the sum over the tokens of one `add_` is rounded,
            too: to as many bits as the search rounds E[x x^T] to, and independently for each part of the text.
    """

    gram_sum: Tensor
    sum: Tensor
    magnitude_sum: Tensor
    tokens: int = 0
    factors: torch.dtype = torch.float32
    _away: Path | Tensor | None = None

    @classmethod
    def empty(cls, channels: int, factors: torch.dtype = torch.float32) -> InputStatistics:
        """Makes statistics of no tokens."""
        gram, total, magnitude = torch.zeros(channels, channels), torch.zeros(channels), torch.zeros(channels)
        return cls(gram, total, magnitude, factors=factors)

    def add_(self, x: Tensor) -> None:
        """Adds activations fp32 [tokens, K]."""
        if x.is_cpu and self.factors != x.dtype:
            narrow = x.to(self.factors)
            for own in self._panels():
                self.gram_sum[own, own.start :] += narrow[:, own].T @ narrow[:, own.start :]
        else:
            for own in self._panels():
                self.gram_sum[own, own.start :].addmm_(x[:, own].T, x[:, own.start :])
        self.sum += x.sum(dim=0)
        self.magnitude_sum += x.abs().sum(dim=0)
        self.tokens += x.shape[0]

    def add_other_ranks_(self, ranks: Ranks) -> None:
        """Adds the statistics of the other ranks."""
        ranks.sum_((self.gram_sum, self.sum, self.magnitude_sum))
        self.tokens = round(ranks.total(self.tokens))

    def put_away_(self, file: Path) -> None:
        """Moves the largest part from a GPU to the machine's memory, or from there to a file, where `gram` reads it.

        Nothing can be added afterwards.
        """
        self._away = self.gram_sum.cpu()
        if self.gram_sum.is_cpu:
            np.save(file, self._away.numpy(), allow_pickle=False)
            self._away = file
        self.gram_sum = self.gram_sum.new_empty(0, 0)

    def gram(self) -> Tensor:
        """E[x x^T], fp32 [K, K], computed each time."""
        if self._away is None:
            gram = self.gram_sum / self.tokens
        else:
            kept = self._away if isinstance(self._away, Tensor) else np.load(self._away, allow_pickle=False)
            gram = torch.as_tensor(kept, device=self.sum.device).div_(self.tokens)
        for own in self._panels():
            gram[own.stop :, own] = gram[own, own.stop :].T
        return gram

    def _panels(self) -> Iterator[slice]:
        """Splits columns by `SYRK_COLUMNS`. A GPU takes all, because there the number of calls determines the time."""
        channels = len(self.sum)
        at_once = SYRK_COLUMNS if self.sum.is_cpu else channels
        return (slice(start, min(start + at_once, channels)) for start in range(0, channels, at_once))

    def mean(self) -> Tensor:
        """E[x], fp32 [K]."""
        return self.sum / self.tokens

    def magnitude(self) -> Tensor:
        """s_x: mean |x| of every channel, fp32 [K] (paper, equation 5)."""
        return self.magnitude_sum / self.tokens


def require_finite(gram: Tensor, where: str) -> None:
    """Refuses statistics that neither search nor rounding can use.

    Args:
        gram: E[x x^T] of an input, fp32 [K, K].
        where: Name of the layer, for errors.

    Raises:
        CalibrationError: The input had NaN or infinite values.
    """
    if not torch.isfinite(gram).all():
        raise CalibrationError(
            "calibration produced NaN or infinite activations.",
            where=where,
            fix="check the checkpoint's weights; the model cannot run on this text.",
        )
