"""Folding scales: W -> W diag(s) in the balance layers, 1/s into the layer before (AWQ paper, section 3.2).

The model's output does not move: a norm's weight or a linear's output rows are divided by exactly what the
following linears' input channels are multiplied by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.families import NORM, ScaleGroup


def fold_scales_(weights: dict[str, Tensor], group: ScaleGroup, scales: Tensor, head_dim: int) -> None:
    """Folds s into a block, replacing the tensors it changes.

    Args:
        weights: The block's tensors by relative name, fp32.
        group: Which layers.
        scales: s of the balance layers' input channels, fp32 [K]; equal over tied heads.
        head_dim: Channels of a head, for groups with tied heads.
    """
    for name in group.balance_layers:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * scales
    smooth = smooth_scales(group, scales, head_dim)
    key = f"{group.smooth_layer}.weight"
    if group.smooth_kind == NORM:
        weights[key] = weights[key] / smooth
    else:
        weights[key] = weights[key] / smooth.unsqueeze(1)
    bias = f"{group.smooth_layer}.bias"
    if bias in weights:
        weights[bias] = weights[bias] / smooth


def smooth_scales(group: ScaleGroup, scales: Tensor, head_dim: int) -> Tensor:
    """s by output channel of the smooth layer: one of every tied set, fp32 [K / heads_tied].

    Raises:
        ValueError: The scales of tied heads differ, so no output scale of the smooth layer can undo them.
    """
    per_head = scales.view(-1, group.heads_tied, head_dim) if group.heads_tied > 1 else scales.view(-1, 1, 1)
    first = per_head[:, :1]
    if not torch.equal(first.expand_as(per_head), per_head):
        raise ValueError(f"{group.smooth_layer}: scales of the {group.heads_tied} tied heads differ")
    return first.reshape(-1)
