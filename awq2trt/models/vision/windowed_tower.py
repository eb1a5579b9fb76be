"""The tower of Qwen2.5-VL and its merger in PyTorch, fp32.

In: prepared patches of an image, and their grid. Out: pieces, which stand among the decoder's embeddings.

Source: as of `awq2trt.models.vision.windowed`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.linears import VisionWeights, linear
from awq2trt.models.vision.patched_tower import patch_angles, rotated_heads
from awq2trt.models.vision.prepared import Grid
from awq2trt.models.vision.windowed import WindowedTowerSpec


def windowed_features(spec: WindowedTowerSpec, weights: VisionWeights, patches: Tensor, grid: Grid) -> Tensor:
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
    return linear(weights, f"{merger}mlp.2", F.gelu(linear(weights, f"{merger}mlp.0", normed)))


def _layer(
    spec: WindowedTowerSpec,
    weights: VisionWeights,
    prefix: str,
    hidden: Tensor,
    attended: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """One layer: [patches, H] -> [patches, H]; with angles, and the groups whose patches attend to each other."""
    angles, members, slots = attended  # [patches, head_dim / 2], [groups, slots] with -1 for none, [patches]
    normed = _norm(spec, weights, f"{prefix}norm1", hidden)
    queries, keys, values = (
        x[members.clamp(min=0)].transpose(1, 2)
        for x in rotated_heads(spec, weights, f"{prefix}attn.qkv", normed, angles)
    )  # [groups, heads, slots, head_dim]
    context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=(members >= 0)[:, None, None, :])
    flat = context.transpose(1, 2).flatten(0, 1)[slots].flatten(1)  # [patches, H]
    hidden = hidden + linear(weights, f"{prefix}attn.proj", flat)
    normed = _norm(spec, weights, f"{prefix}norm2", hidden)
    gate, up = (linear(weights, f"{prefix}mlp.{name}", normed) for name in ("gate_proj", "up_proj"))
    return hidden + linear(weights, f"{prefix}mlp.down_proj", F.silu(gate) * up)


def _norm(spec: WindowedTowerSpec, weights: VisionWeights, name: str, x: Tensor) -> Tensor:
    """RMSNorm over the last axis."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + spec.norm_eps) * weights[f"{name}.weight"]
