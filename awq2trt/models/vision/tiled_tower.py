"""The tower and connector of Idefics3 and SmolVLM in PyTorch, fp32.

In: prepared tiles of an image. Out: pieces, which stand among the decoder's embeddings.

Source: as of `awq2trt.models.vision.tiled`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.models.vision.linears import VisionWeights, linear, with_tensor
from awq2trt.models.vision.tiled import TiledVisionSpec
from awq2trt.models.vision.tower import last_norm, require_side, tower_states


def tiled_features(spec: TiledVisionSpec, weights: VisionWeights, tiles: Tensor) -> Tensor:
    """What a model sees in an image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and connector.
        tiles: Its tiles, fp32 [tiles, 3, image_size, image_size].

    Returns:
        fp32 [pieces, out_features], tile after tile.

    Raises:
        UsageError: The tiles are not of the tower's size.
    """
    require_side(spec.tower, tiles)
    table = f"{spec.tower.prefix}embeddings.position_embedding.weight"
    placed = with_tensor(weights, table, weights[table][torch.as_tensor(spec.position_rows())])
    return torch.cat([_pieces(spec, placed, tile[None]) for tile in tiles])  # one at a time, which bounds the memory


def _pieces(spec: TiledVisionSpec, weights: VisionWeights, tile: Tensor) -> Tensor:
    """Pieces of a tile: [1, 3, image_size, image_size] -> [pieces, out_features]."""
    hidden = last_norm(spec.tower, weights, tower_states(spec.tower, weights, tile, last=spec.tower.num_layers)[-1])
    side, merge = spec.tower.side // spec.connector.merge, spec.connector.merge
    squares = hidden.view(side, merge, side, merge, -1).transpose(1, 2).reshape(side**2, -1)
    return linear(weights, spec.connector.linear, squares)
