"""The tower of Qwen3-VL and its mergers in PyTorch, fp32.

In: prepared patches of an image, and their grid. Out: pieces, which stand among the decoder's embeddings, and behind
each what the decoder's first blocks add.

Source: as of `awq2trt.models.vision.stacked`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.linears import VisionWeights, linear
from awq2trt.models.vision.patched_tower import patch_angles, rotated_heads
from awq2trt.models.vision.prepared import Grid
from awq2trt.models.vision.stacked import MergerSpec, StackedTowerSpec


def stacked_features(spec: StackedTowerSpec, weights: VisionWeights, patches: Tensor, grid: Grid) -> Tensor:
    """What a model sees in an image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and mergers.
        patches: Its patches, fp32 [patches, numbers of a patch].
        grid: Their grid.

    Returns:
        fp32 [pieces, piece_width].
    """
    name, places = f"{spec.prefix}patch_embed.proj", torch.as_tensor(spec.layout.places(grid)).float()
    hidden = F.linear(patches, weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"])
    hidden = hidden + _positions(spec, weights[spec.positions], places, grid)
    angles = patch_angles(places, spec.hidden_size // spec.num_heads)
    deep = []
    for layer in range(spec.num_layers):
        hidden = _layer(spec, weights, spec.layer_prefix(layer), hidden, (angles, grid.frames))
        if layer in spec.deepstack:
            deep.append(_merge(spec, spec.deepstack[layer], weights, hidden))
    return torch.cat((_merge(spec, spec.merger, weights, hidden), *deep), dim=-1)


def _positions(spec: StackedTowerSpec, table: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """Position embeddings of patches, fp32 [patches, H]: those of the four nearest places of the table, by distance.

    The corners of the table are at the corners of the image.
    """
    side = spec.position_side
    exact = places * (side - 1) / torch.tensor([grid.rows - 1, grid.columns - 1]).clamp(min=1)  # [patches, 2]
    first = exact.floor()
    shares = exact - first  # of the place behind the first one
    embeddings = torch.zeros(len(places), table.shape[1])
    for down in (0, 1):
        for right in (0, 1):
            row, column = (first + torch.tensor([down, right])).clamp(max=side - 1).long().unbind(dim=1)
            share = (shares if down else 1 - shares)[:, 0] * (shares if right else 1 - shares)[:, 1]
            embeddings = embeddings + table[row * side + column] * share[:, None]
    return embeddings


def _layer(
    spec: StackedTowerSpec, weights: VisionWeights, prefix: str, hidden: Tensor, attended: tuple[Tensor, int]
) -> Tensor:
    """One layer: [patches, H] -> [patches, H]; with angles, and the number of frames, each of which sees itself."""
    angles, frames = attended
    normed = _norm(spec, weights, f"{prefix}norm1", hidden)
    queries, keys, values = (
        x.unflatten(0, (frames, -1)).transpose(1, 2)
        for x in rotated_heads(spec, weights, f"{prefix}attn.qkv", normed, angles)
    )  # [frames, heads, patches of one, head_dim]
    context = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2).flatten(0, 1)
    hidden = hidden + linear(weights, f"{prefix}attn.proj", context)
    inner = linear(weights, f"{prefix}mlp.linear_fc1", _norm(spec, weights, f"{prefix}norm2", hidden))
    return hidden + linear(weights, f"{prefix}mlp.linear_fc2", F.gelu(inner, approximate="tanh"))


def _merge(spec: StackedTowerSpec, merger: MergerSpec, weights: VisionWeights, hidden: Tensor) -> Tensor:
    """Pieces of squares of patches: [patches, H] -> [pieces, out_features]; patches of a piece are neighbours."""
    normed = _norm(spec, weights, f"{merger.prefix}norm", hidden.reshape(-1, merger.norm_size))
    inner = F.gelu(linear(weights, f"{merger.prefix}linear_fc1", normed.reshape(-1, merger.square_size)))
    return linear(weights, f"{merger.prefix}linear_fc2", inner)


def _norm(spec: StackedTowerSpec, weights: VisionWeights, name: str, x: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], spec.norm_eps)
