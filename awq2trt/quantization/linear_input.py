"""What a linear reads: its statistics before and after scales were folded into what is before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from awq2trt.models.families import DecoderSpec
from awq2trt.quantization.search import ScaleResult
from awq2trt.quantization.statistics import InputStatistics


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
