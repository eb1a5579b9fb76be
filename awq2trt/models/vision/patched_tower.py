"""What towers for images of any size compute alike, in PyTorch, fp32.

In: where patches stand, and their channels. Out: rotated heads. `windowed_tower` and `stacked_tower` are made of it, as
`awq2trt.onnx_export.patch_graph` is what their graphs are made of.

Source: `apply_rotary_pos_emb_vision` of transformers 5.24.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.models.vision.linears import VisionWeights, linear
from awq2trt.models.vision.patch_layout import ROPE_BASE
from awq2trt.models.vision.patched import PatchTowerSpec


def patch_angles(places: Tensor, head_dim: int) -> Tensor:
    """Angles by which heads are rotated: rows in one half of a head, columns in the other.

    Args:
        places: Row and column of every patch, fp32 [patches, 2].
        head_dim: Channels of a head.

    Returns:
        fp32 [patches, head_dim / 2].
    """
    quarter = head_dim // 4
    frequencies = ROPE_BASE ** -(torch.arange(quarter).float() / quarter)
    return (places[:, :, None] * frequencies).flatten(1)


def rotated_heads(
    spec: PatchTowerSpec, weights: VisionWeights, name: str, normed: Tensor, angles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values of patches, [patches, heads, head_dim] each.

    Args:
        spec: The tower.
        weights: Its tensors.
        name: Name of the linear that makes all three.
        normed: What it reads, [patches, H].
        angles: As of `patch_angles`.
    """
    split = linear(weights, name, normed).unflatten(-1, (3, spec.num_heads, -1))  # [patches, 3, heads, head_dim]
    queries, keys, values = split.unbind(1)
    return _rotate(queries, angles), _rotate(keys, angles), values


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates [patches, heads, head_dim] by [patches, head_dim / 2], halves of a head against each other."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
