"""Linears of towers and of what is behind them, in PyTorch, fp32; their inputs can be watched.

In: tensors by full name, and what a linear reads. Out: what it makes; whoever watches is told what each linear reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

VisionWeights = Mapping[str, Tensor]
"""Tensors of a tower and what is behind it by full name, fp32."""

Observer = Callable[[str, Tensor], None]
"""Is told the full name of a linear and what it reads, fp32 [..., K]: the same tensor where linears share it."""


class WatchedWeights(dict[str, Tensor]):
    """Tensors of a tower whose linears are watched.

    Args:
        weights: The tensors.
        observe: Is told what every linear reads that `linear` computes with them.
    """

    def __init__(self, weights: VisionWeights, observe: Observer) -> None:
        super().__init__(weights)
        self.observe = observe

    def with_tensor(self, name: str, value: Tensor) -> WatchedWeights:
        """The same with another tensor of this name."""
        return WatchedWeights({**self, name: value}, self.observe)


def with_tensor(weights: VisionWeights, name: str, value: Tensor) -> VisionWeights:
    """The same tensors, still watched if they are, with another one of this name."""
    if isinstance(weights, WatchedWeights):
        return weights.with_tensor(name, value)
    return {**weights, name: value}


def linear(weights: VisionWeights, name: str, x: Tensor) -> Tensor:
    """[..., K] -> [..., N], with a bias where there is one."""
    if isinstance(weights, WatchedWeights):
        weights.observe(name, x)
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
