"""A perceiver in PyTorch, which makes a fixed number of pieces of an image's patches.

In: patches from a tower. Out: the pieces that a decoder attends to.

Source: arXiv:2204.14198, section 2.1, as the package `open-flamingo` computes it (`PerceiverResampler`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.description import ResamplerSpec


def resample(spec: ResamplerSpec, weights: Mapping[str, Tensor], patches: Tensor) -> Tensor:
    """Computes the pieces of images.

    Args:
        spec: Its description.
        weights: fp32, by full name.
        patches: fp32 [images, patches, width].

    Returns:
        fp32 [images, num_latents, width].
    """
    latents = weights[f"{spec.prefix}latents"].expand(len(patches), -1, -1)
    for layer in range(spec.num_layers):
        prefix = f"{spec.prefix}layers.{layer}."
        latents = latents + _attend(spec, weights, f"{prefix}0.", patches, latents)
        inner = F.gelu(_norm(spec, weights, f"{prefix}1.0", latents) @ weights[f"{prefix}1.1.weight"].T)
        latents = latents + inner @ weights[f"{prefix}1.3.weight"].T
    return _norm(spec, weights, f"{spec.prefix}norm", latents)


def _attend(
    spec: ResamplerSpec, weights: Mapping[str, Tensor], prefix: str, patches: Tensor, latents: Tensor
) -> Tensor:
    """Attention of latents to patches and latents, [images, num_latents, width]."""
    asking = _norm(spec, weights, f"{prefix}norm_latents", latents)
    asked = torch.cat((_norm(spec, weights, f"{prefix}norm_media", patches), asking), dim=1)
    projected = asking @ weights[f"{prefix}to_q.weight"].T, *(asked @ weights[f"{prefix}to_kv.weight"].T).chunk(2, -1)
    heads = (x.unflatten(-1, (spec.num_heads, -1)).transpose(1, 2) for x in projected)
    context = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return context @ weights[f"{prefix}to_out.weight"].T


def _norm(spec: ResamplerSpec, weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (spec.width,), weights[f"{name}.weight"], weights[f"{name}.bias"], spec.norm_eps)
