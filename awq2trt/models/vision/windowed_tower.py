"""The tower of Qwen2.5-VL and its merger in PyTorch, fp32.

In: prepared patches of an image, and their grid. Out: pieces, which stand among the decoder's embeddings.

Source: as of `awq2trt.models.vision.windowed`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.patch_layout import ROPE_BASE
from awq2trt.models.vision.prepared import Grid
from awq2trt.models.vision.windowed import WindowedTowerSpec

Weights = Mapping[str, Tensor]
"""Tensors of a tower and its merger by full name, fp32."""


def windowed_features(spec: WindowedTowerSpec, weights: Weights, patches: Tensor, grid: Grid) -> Tensor:
    """What a model sees in an image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and merger.
        patches: Its patches, fp32 [patches, numbers of a patch].
        grid: Their grid.

    Returns:
        fp32 [pieces, out_features].
    """
    hidden = F.linear(patches, weights[f"{spec.prefix}patch_embed.proj.weight"].flatten(1))
    places = torch.as_tensor(spec.layout.places(grid)).float()
    angles = patch_angles(places, spec.hidden_size // spec.num_heads)
    windows = spec.layout.windows(grid)
    within = torch.as_tensor(windows.patches), torch.as_tensor(windows.slots)
    whole = torch.arange(grid.cells).view(grid.frames, -1), torch.arange(grid.cells)
    for layer in range(spec.num_layers):
        groups = whole if layer in spec.full_layers else within
        hidden = _layer(spec, weights, spec.layer_prefix(layer), hidden, (angles, *groups))
    merger = f"{spec.prefix}merger."
    normed = _norm(spec, weights, f"{merger}ln_q", hidden).reshape(-1, spec.merge**2 * spec.hidden_size)
    return _linear(weights, f"{merger}mlp.2", F.gelu(_linear(weights, f"{merger}mlp.0", normed)))


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


def _layer(
    spec: WindowedTowerSpec, weights: Weights, prefix: str, hidden: Tensor, attended: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """One layer: [patches, H] -> [patches, H]; with angles, and the groups whose patches attend to each other."""
    angles, members, slots = attended  # [patches, head_dim / 2], [groups, slots] with -1 for none, [patches]
    normed = _norm(spec, weights, f"{prefix}norm1", hidden)
    queries, keys, values = (
        _linear(weights, f"{prefix}attn.qkv", normed).unflatten(-1, (3, spec.num_heads, -1)).unbind(1)
    )  # [patches, heads, head_dim]
    queries, keys, values = (
        x[members.clamp(min=0)].transpose(1, 2) for x in (rotate(queries, angles), rotate(keys, angles), values)
    )  # [groups, heads, slots, head_dim]
    context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=(members >= 0)[:, None, None, :])
    flat = context.transpose(1, 2).flatten(0, 1)[slots].flatten(1)  # [patches, H]
    hidden = hidden + _linear(weights, f"{prefix}attn.proj", flat)
    normed = _norm(spec, weights, f"{prefix}norm2", hidden)
    gate, up = (_linear(weights, f"{prefix}mlp.{name}", normed) for name in ("gate_proj", "up_proj"))
    return hidden + _linear(weights, f"{prefix}mlp.down_proj", F.silu(gate) * up)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates [patches, heads, head_dim] by [patches, head_dim / 2], halves of a head against each other."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(spec: WindowedTowerSpec, weights: Weights, name: str, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + spec.norm_eps) * weights[f"{name}.weight"]
