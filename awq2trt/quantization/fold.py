"""Folds scales: W -> W diag(s) in the balance layers, and 1/s into the layer before (AWQ paper, section 3.2).

The model's output does not change: a norm's gain, a linear's output rows or an activation function's output are divided
by exactly what the following linears' input channels are multiplied by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.models.families import ACTIVATION, LINEAR, OFFSET_NORM, UNFOLDED, ScaleGroup


def fold_scales_(weights: dict[str, Tensor], group: ScaleGroup, scales: Tensor, head_dim: int) -> None:
    """Folds s into a block, replacing the tensors it changes.

    Args:
        weights: The block's tensors by relative name, fp32.
        group: The layers.
        scales: s of the balance layers' input channels, fp32 [K]; equal for tied heads.
        head_dim: Channels of a head, for groups with tied heads.

    Raises:
        ValueError: No layer before the balance layers can absorb scales.
    """
    if group.smooth_kind == UNFOLDED:
        raise ValueError(f"{', '.join(group.balance_layers)}: no layer before them can absorb scales")
    for name in group.balance_layers:
        weights[f"{name}.weight"] = weights[f"{name}.weight"] * scales
    if group.smooth_kind == ACTIVATION:
        key = f"{group.smooth_layer}.scales"
        weights[key] = weights[key] * scales if key in weights else scales.clone()
        return
    smooth = smooth_scales(group, scales, head_dim)
    key = f"{group.smooth_layer}.weight"
    if group.smooth_kind == LINEAR:
        weights[key] = weights[key] / smooth.unsqueeze(1)
    elif group.smooth_kind == OFFSET_NORM:
        weights[key] = (weights[key] + 1) / smooth - 1
    else:
        weights[key] = weights[key] / smooth
    bias = f"{group.smooth_layer}.bias"
    if bias in weights:
        weights[bias] = weights[bias] / smooth


def smooth_scales(group: ScaleGroup, scales: Tensor, head_dim: int) -> Tensor:
    """Returns s by output channel of the smooth layer, one for every set of tied heads, fp32 [K / heads_tied].

    Raises:
        ValueError: The scales of tied heads differ, so that no output scale of the smooth layer can undo them.
    """
    per_head = scales.view(-1, group.heads_tied, head_dim) if group.heads_tied > 1 else scales.view(-1, 1, 1)
    first = per_head[:, :1]
    if not torch.equal(first.expand_as(per_head), per_head):
        raise ValueError(f"{group.smooth_layer}: scales of the {group.heads_tied} tied heads differ")
    return first.reshape(-1)
