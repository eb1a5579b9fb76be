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
    """Mean |x| of a linear's input as it was, s, and E[x] as it is after folding, over s.

    E[x x^T] is made when it is asked for: of the widest input of a large model, it is larger than the linear.
    """

    alpha: float | None
    beta: float | None
    magnitude: Tensor
    scales: Tensor
    mean: Tensor
    _statistics: InputStatistics
    _divisors: Tensor | None = None  # s, where weights were scaled here

    @classmethod
    def unscaled(cls, statistics: InputStatistics) -> LinearInput:
        """Before, or without, a search."""
        magnitude = statistics.magnitude()
        return cls(None, None, magnitude, torch.ones_like(magnitude), statistics.mean(), statistics)

    def unscaled_gram(self) -> Tensor:
        """E[x x^T] as it was."""
        return self._statistics.gram()

    def gram(self) -> Tensor:
        """E[x x^T] as it is after folding."""
        gram, divisors = self.unscaled_gram(), self._divisors
        return gram if divisors is None else gram.div_(divisors).div_(divisors.unsqueeze(1))

    def scaled(self, found: ScaleResult) -> LinearInput:
        """After scales were folded."""
        mean, scales = self.mean / found.scales, found.scales
        return replace(self, alpha=found.alpha, beta=found.beta, scales=scales, mean=mean, _divisors=scales)

    def search(self) -> dict[str, Tensor]:
        """What `QuantizedBlock.search` keeps of it."""
        return {"magnitude": self.magnitude, "scales": self.scales}


def scaled_before(
    spec: DecoderSpec, inputs: Mapping[str, LinearInput], scales: Mapping[str, Tensor]
) -> dict[str, LinearInput]:
    """The inputs of linears that were scaled already, with the scales noted, and the magnitude that was before them."""
    noted = dict[str, LinearInput]()
    for group in spec.scale_groups():
        seen, own = inputs[group.balance_layers[0]], scales[group.balance_layers[0]]
        seen = replace(seen, scales=own, magnitude=seen.magnitude * own)
        noted.update(dict.fromkeys(group.balance_layers, seen))
    return noted
