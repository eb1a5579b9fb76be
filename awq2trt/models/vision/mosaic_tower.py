"""What LLaVA 1.6 sees in an image, in PyTorch, fp32.

In: prepared tiles of an image. Out: pieces, which stand among the decoder's embeddings.

Source: as of `awq2trt.models.vision.mosaic`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.models.vision.linears import VisionWeights
from awq2trt.models.vision.mosaic import MosaicSpec
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.tower import image_features


def mosaic_features(spec: MosaicSpec, weights: VisionWeights, pixels: Pixels) -> Tensor:
    """What a model sees in an image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower, projector and end of a row.
        pixels: Its tiles, fp32 [tiles, 3, image_size, image_size], the whole image first.

    Returns:
        fp32 [pieces, out_features].

    Raises:
        UsageError: The tiles are not of the tower's size.
    """
    newline = weights[spec.newline][None]
    rows = []
    for tile in torch.as_tensor(pixels.values):  # one at a time, which bounds the memory
        rows += [image_features(spec.tile, weights, tile[None])[0], newline]
    order = spec.layout.prepared(pixels).order
    return torch.cat(rows)[torch.as_tensor(order)]
