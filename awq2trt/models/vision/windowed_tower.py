"""The tower of Qwen2.5-VL and its merger in PyTorch, fp32.

In: prepared patches of images, and their grids. Out: pieces, which stand among the decoder's embeddings.

Source: as of `awq2trt.models.vision.windowed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.windowed import Grid, WindowedTowerSpec, patch_places, windows_of

Weights = Mapping[str, Tensor]
"""Tensors of a tower and its merger by full name, fp32."""

_ROPE_BASE: Final = 10000.0
"""Base of the rotary embedding of rows and columns, each in half of a head."""


def windowed_features(spec: WindowedTowerSpec, weights: Weights, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
    """What a model sees in images.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and merger.
        patches: Patches of all images, one image after the other, fp32 [patches, numbers of a patch].
        grids: Grids of the images.

    Returns:
        fp32 [pieces of all images, out_features].
    """
    windows = windows_of(spec, grids)
    order, square = torch.from_numpy(windows.order), spec.merge**2
    embedded = F.linear(patches, weights[f"{spec.prefix}patch_embed.proj.weight"].flatten(1))
    hidden = _ordered(embedded, order, square)
    places = torch.from_numpy(patch_places(spec, grids)).float()  # [2, patches]
    quarter = spec.hidden_size // spec.num_heads // 4
    frequencies = _ROPE_BASE ** -(torch.arange(quarter).float() / quarter)
    angles = torch.cat([place[:, None] * frequencies for place in places], dim=-1)  # [patches, head_dim / 2]
    angles = _ordered(angles, order, square)
    frames = [grid.rows * grid.columns for grid in grids for _ in range(grid.frames)]
    for layer in range(spec.num_layers):
        lengths = frames if layer in spec.full_layers else windows.lengths
        hidden = _layer(spec, weights, spec.layer_prefix(layer), hidden, (angles, lengths))
    merger = f"{spec.prefix}merger."
    normed = _norm(spec, weights, f"{merger}ln_q", hidden).reshape(-1, square * spec.hidden_size)
    merged = _linear(weights, f"{merger}mlp.2", F.gelu(_linear(weights, f"{merger}mlp.0", normed)))
    return merged[torch.argsort(order)]


def _ordered(x: Tensor, order: Tensor, square: int) -> Tensor:
    """Squares of patches [patches, ...] in another order."""
    squares: Tensor = x.unflatten(0, (-1, square))[order]
    return squares.flatten(0, 1)


def _layer(
    spec: WindowedTowerSpec, weights: Weights, prefix: str, hidden: Tensor, attended: tuple[Tensor, Sequence[int]]
) -> Tensor:
    """One layer: [patches, H] -> [patches, H]; with the angles of patches, and how many attend to each other."""
    angles, lengths = attended
    normed = _norm(spec, weights, f"{prefix}norm1", hidden)
    queries, keys, values = (
        _linear(weights, f"{prefix}attn.qkv", normed).unflatten(-1, (3, spec.num_heads, -1)).permute(1, 2, 0, 3)
    )  # [heads, patches, head_dim]
    queries, keys = _rotate(queries, angles), _rotate(keys, angles)
    parts = (torch.split(each, list(lengths), dim=1) for each in (queries, keys, values))
    context = torch.cat([F.scaled_dot_product_attention(*part) for part in zip(*parts, strict=True)], dim=1)
    hidden = hidden + _linear(weights, f"{prefix}attn.proj", context.transpose(0, 1).flatten(1))
    normed = _norm(spec, weights, f"{prefix}norm2", hidden)
    gate, up = (_linear(weights, f"{prefix}mlp.{name}", normed) for name in ("gate_proj", "up_proj"))
    inner = F.silu(gate) * up
    return hidden + _linear(weights, f"{prefix}mlp.down_proj", inner)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates [heads, patches, head_dim] by [patches, head_dim / 2], halves of a head against each other."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(spec: WindowedTowerSpec, weights: Weights, name: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + spec.norm_eps) * weights[f"{name}.weight"]
