"""A vision tower for images of one size and its projector in PyTorch, fp32.

In: tensors and prepared images. Out: pieces, which `awq2trt.models.vision.seeing` shows to the decoder.

Source: `CLIPVisionModel`, `SiglipVisionModel` and `LlavaModel` of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.models.block_weights import to_tensor
from awq2trt.models.families import GELU, GELU_TANH, RELU, SILU
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import (
    CHANNELS,
    QUICK_GELU,
    QUICK_GELU_SLOPE,
    AttendedSpec,
    ProjectorSpec,
    StillSpec,
    TowerSpec,
    VisionSpec,
)
from awq2trt.models.vision.linears import VisionWeights, linear
from awq2trt.models.vision.pooled import PooledVisionSpec, PoolerSpec
from awq2trt.models.vision.resampler import resample


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(QUICK_GELU_SLOPE * x)


_ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    QUICK_GELU: _quick_gelu,
    GELU: F.gelu,
    GELU_TANH: partial(F.gelu, approximate="tanh"),
    RELU: F.relu,
    SILU: F.silu,
}


def load_vision(source: ModelSource) -> dict[str, Tensor]:
    """Loads all tensors of a model's tower and projector in fp32, by full name."""
    return {name: to_tensor(value) for name, value in source.vision_tensors().items()}


def image_features(spec: StillSpec, weights: VisionWeights, pixels: Tensor) -> Tensor:
    """Computes the features that a model sees in prepared images.

    Args:
        spec: How the model sees images.
        weights: Weights of its tower and projector.
        pixels: fp32 [images, 3, image_size, image_size].

    Returns:
        fp32 [images, pieces, channels]: what stands in the place of image tokens, or is attended to.

    Raises:
        UsageError: The images are not of the tower's size.
    """
    require_side(spec.tower, pixels)
    states = tower_states(spec.tower, weights, pixels, last=max(spec.feature_layers))
    features = torch.cat([states[layer] for layer in spec.feature_layers], dim=-1)
    if isinstance(spec, PooledVisionSpec):
        return _pool(spec.pooler, weights, last_norm(spec.tower, weights, features))
    if not spec.keeps_class:
        features = features[:, 1:]
    if isinstance(spec, AttendedSpec):
        return resample(spec.resampler, weights, features)
    assert isinstance(spec, VisionSpec)
    return _project(spec.projector, weights, features)


def require_side(spec: TowerSpec, pixels: Tensor) -> None:
    """Refuses images that are not of the tower's size.

    Raises:
        UsageError: They are not.
    """
    side = spec.image_size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (CHANNELS, side, side):
        raise UsageError(
            f"expected images of [{CHANNELS}, {side}, {side}], got {list(pixels.shape[1:])}.",
            where="the vision tower",
            fix="prepare them as the model's preprocessor_config.json describes.",
        )


def tower_states(spec: TowerSpec, weights: VisionWeights, pixels: Tensor, *, last: int) -> list[Tensor]:
    """Returns the first layer's input, then the outputs of the first `last` layers.

    Returns:
        `last` + 1 times fp32 [images, patches, hidden_size], with a class token before the patches if there is one.
    """
    embeddings = f"{spec.prefix}embeddings."
    name = f"{embeddings}patch_embedding"
    grid = F.conv2d(pixels, weights[f"{name}.weight"], weights.get(f"{name}.bias"), stride=spec.patch_size)
    hidden = grid.flatten(2).mT  # [images, patches, hidden]
    if spec.class_token:
        hidden = torch.cat((weights[f"{embeddings}class_embedding"].expand(len(pixels), 1, -1), hidden), dim=1)
    hidden = hidden + weights[f"{embeddings}position_embedding.weight"]
    states = [_norm(spec, weights, f"{spec.prefix}pre_layrnorm", hidden) if spec.class_token else hidden]
    for layer in range(last):
        states.append(_layer(spec, weights, spec.layer_prefix(layer), states[-1]))
    return states


def last_norm(spec: TowerSpec, weights: VisionWeights, hidden: Tensor) -> Tensor:
    """The norm behind the layers, which CLIP has only for its class token."""
    return _norm(spec, weights, f"{spec.prefix}post_layernorm", hidden)


def _layer(spec: TowerSpec, weights: VisionWeights, prefix: str, hidden: Tensor) -> Tensor:
    attention = f"{prefix}self_attn."
    normed = _norm(spec, weights, f"{prefix}layer_norm1", hidden)
    queries, keys, values = (
        linear(weights, attention + name, normed).unflatten(-1, (spec.num_heads, -1)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )  # [images, heads, patches, head_dim]
    context = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    hidden = hidden + linear(weights, f"{attention}out_proj", context)
    inner = linear(weights, f"{prefix}mlp.fc1", _norm(spec, weights, f"{prefix}layer_norm2", hidden))
    return hidden + linear(weights, f"{prefix}mlp.fc2", _ACTIVATIONS[spec.activation](inner))


def _project(spec: ProjectorSpec, weights: VisionWeights, features: Tensor) -> Tensor:
    inner = _ACTIVATIONS[spec.activation](linear(weights, f"{spec.prefix}linear_1", features))
    return linear(weights, f"{spec.prefix}linear_2", inner)


def _pool(spec: PoolerSpec, weights: VisionWeights, features: Tensor) -> Tensor:
    """Means of squares of patches, projected: [images, patches, in_features] -> [images, pieces, out_features]."""
    side = math.isqrt(features.shape[1])
    grid = features.mT.unflatten(-1, (side, side))
    pooled = F.avg_pool2d(grid, kernel_size=spec.merge).flatten(2).mT
    normed = F.rms_norm(pooled, (spec.in_features,), weights[spec.norm] + 1, spec.norm_eps)
    return normed @ weights[spec.projection]


def _norm(spec: TowerSpec, weights: VisionWeights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (spec.hidden_size,), weights[f"{name}.weight"], weights[f"{name}.bias"], spec.norm_eps)
