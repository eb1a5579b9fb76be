"""What a model sees in an image, in PyTorch, fp32, whatever its tower.

In: how it sees, its tensors, and prepared pixels. Out: pieces, which stand among the decoder's embeddings.
"""

from __future__ import annotations

import torch
from torch import Tensor

from awq2trt.errors import UnsupportedError
from awq2trt.models.vision.description import SeeingSpec, VisionSpec
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.tower import VisionWeights, image_features
from awq2trt.models.vision.windowed import WindowedVisionSpec
from awq2trt.models.vision.windowed_tower import windowed_features


def pieces_seen(spec: SeeingSpec, weights: VisionWeights, pixels: Pixels) -> Tensor:
    """What a model sees in one image.

    Args:
        spec: How it sees.
        weights: Tensors of its tower and what is behind it, fp32.
        pixels: The image, prepared by the model's own processor.

    Returns:
        fp32 [pieces, hidden_size of the decoder].

    Raises:
        UsageError: The image is not of the tower's size.
        UnsupportedError: PyTorch does not run this kind of tower here.
    """
    # Not from_numpy(), which knows nothing of the device that PyTorch computes on.
    values = torch.as_tensor(pixels.values)
    if isinstance(spec, WindowedVisionSpec) and pixels.grid is not None:
        return windowed_features(spec.tower, weights, values, pixels.grid)
    if isinstance(spec, VisionSpec):
        return image_features(spec, weights, values[None])[0]
    raise UnsupportedError(
        f"images of this kind are not what {spec.family} sees.", where="the vision tower", fix="use its own processor."
    )
