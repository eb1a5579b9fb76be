"""What a linear reads: its statistics before and after scales were folded into what is before it.

In: what calibration kept. Out: E[x x^T], and what is computed from it once for all linears that read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from awq2trt.models.families import DecoderSpec
from awq2trt.quantization.gptq import DAMPING, ErrorSpread, GptqOptions
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.search import ScaleResult
from awq2trt.quantization.statistics import InputStatistics, require_finite

COMPENSATED: Final = GptqOptions(damping=0, precision=torch.float32)
"""How codes begin up to `SearchOptions.compensated_width`: E[x x^T] has been damped for the search."""

UNSEEN: Final = 0.3
"""How much of the mean E[x_k^2] a search adds to each for an input without scales, with as many rows as channels; with
more rows it is less, down to `DAMPING`. A few pictures leave directions that were never seen, and channels that
happened to be still, where codes that compensate move weights as far as they like. `tools/study_towers.py` on the model
of `tools/train_small_vlm.py`, INT4 in groups of 64: what is seen in 32 other pictures errs by 2.9, 2.3, 1.6 and 1.1 %
after a search on 1, 4, 16 and 48 pictures of 64 patches, and by 4.7 % if weights are rounded to nearest. With
`SearchOptions.damping` instead, and grids searched on the same moments, it was 62, 4.7, 2.3 and 1.4 %. GPTQ has a
damping of its own, with which it errs by 2.8, 2.1, 1.5 and 1.1 %."""


@dataclass(frozen=True)
class LinearInput:
    """The original mean |x| of a linear's input, the scales s, and E[x] after folding, which divides it by s.

    E[x x^T] is computed when it is needed, since for the widest input of a large model it is larger than the linear.
    """

    alpha: float | None
    beta: float | None
    magnitude: Tensor
    scales: Tensor
    mean: Tensor
    _statistics: InputStatistics
    _divisors: Tensor | None = None  # s, if weights were scaled here

    @classmethod
    def unscaled(cls, statistics: InputStatistics) -> LinearInput:
        """Makes the input before, or without, a search."""
        magnitude = statistics.magnitude()
        return cls(None, None, magnitude, torch.ones_like(magnitude), statistics.mean(), statistics)

    def unscaled_gram(self) -> Tensor:
        """E[x x^T] of the original input."""
        return self._statistics.gram()

    def gram(self) -> Tensor:
        """E[x x^T] after folding."""
        gram, divisors = self.unscaled_gram(), self._divisors
        return gram if divisors is None else gram.div_(divisors).div_(divisors.unsqueeze(1))

    def scaled(self, found: ScaleResult) -> LinearInput:
        """Returns the input after these scales were folded."""
        mean, scales = self.mean / found.scales, found.scales
        return replace(self, alpha=found.alpha, beta=found.beta, scales=scales, mean=mean, _divisors=scales)

    def unseen(self, gram: Tensor) -> Tensor:
        """What may be added to every E[x_k^2] for what the rows did not show, see `UNSEEN`.

        Args:
            gram: E[x x^T] of this input, fp32 [K, K].
        """
        share = max(DAMPING, UNSEEN * len(gram) / self._statistics.tokens)
        return gram.diagonal().mean() * share

    def search(self) -> dict[str, Tensor]:
        """The part of it that `QuantizedBlock.search` keeps."""
        return {"magnitude": self.magnitude, "scales": self.scales}


def scaled_before(
    spec: DecoderSpec, inputs: Mapping[str, LinearInput], scales: Mapping[str, Tensor]
) -> dict[str, LinearInput]:
    """The inputs of linears that are already scaled, with the scales and the original magnitude noted."""
    noted = dict[str, LinearInput]()
    for group in spec.scale_groups():
        seen, own = inputs[group.balance_layers[0]], scales[group.balance_layers[0]]
        seen = replace(seen, scales=own, magnitude=seen.magnitude * own)
        noted.update(dict.fromkeys(group.balance_layers, seen))
    return noted


class InputMoments:
    """E[x x^T] of the input whose linears have their turn, damped as grids and codes see it.

    Linears that share an input follow each other, and share what is computed of it.

    Args:
        method: How linears are quantized.
        alone: Whether the linears belong to no block, so that no scales level their inputs.
    """

    def __init__(self, method: BlockMethod, *, alone: bool = False) -> None:
        self._method = method
        self._alone = alone
        self._seen: LinearInput | None = None
        self._gram: Tensor | None = None
        self._spread: ErrorSpread | None = None

    def turn_to(self, seen: LinearInput, where: str) -> None:
        """Computes E[x x^T] of an input, unless it already has its turn.

        Args:
            seen: The input.
            where: Full name of the linear that reads it, for errors.

        Raises:
            CalibrationError: The input had NaN or infinite values.
        """
        self.forget_unless(seen)
        if self._gram is None:
            gram = seen.gram()
            require_finite(gram, where)
            if self._method.search is not None:
                if self._alone:
                    gram.diagonal().add_(seen.unseen(gram))
                else:
                    gram.diagonal().mul_(1 + self._method.search.damping)
            self._seen, self._gram = seen, gram

    def forget_unless(self, seen: LinearInput | None) -> None:
        """Frees the memory of another input than this."""
        if seen is not self._seen:
            self._seen = self._gram = self._spread = None

    @property
    def gram(self) -> Tensor:
        """E[x x^T], fp32 [K, K]."""
        assert self._gram is not None, "no input has its turn"
        return self._gram

    @property
    def gram_of_grids(self) -> Tensor:
        """E[x x^T] as the search of grids sees it, fp32 [K, K].

        Without scales, a few directions hold most of an input. Codes that compensate make up for errors there on any
        grid, and grids that were bent for them serve all other directions worse: those that fit weights are better.
        """
        gram = self.gram
        if self._alone and len(gram) <= self._method.compensated_width:
            return torch.eye(len(gram), device=gram.device)
        return gram

    @property
    def spread(self) -> ErrorSpread:
        """How codes that compensate make up for errors on it."""
        if self._spread is None:
            self._spread = ErrorSpread.of(self.gram, self._method.gptq or COMPENSATED)
        return self._spread
