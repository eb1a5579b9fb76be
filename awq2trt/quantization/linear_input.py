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
from awq2trt.quantization.gptq import ErrorSpread, GptqOptions
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.search import ScaleResult
from awq2trt.quantization.statistics import InputStatistics, require_finite

COMPENSATED: Final = GptqOptions(damping=0, precision=torch.float32)
"""How codes begin up to `SearchOptions.compensated_width`: E[x x^T] has been damped for the search."""


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
    """

    def __init__(self, method: BlockMethod) -> None:
        self._method = method
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
    def spread(self) -> ErrorSpread:
        """How codes that compensate make up for errors on it."""
        if self._spread is None:
            self._spread = ErrorSpread.of(self.gram, self._method.gptq or COMPENSATED)
        return self._spread
