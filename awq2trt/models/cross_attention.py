"""Gated cross-attention before blocks of a decoder, by which texts see images.

In: a residual stream, the tensors of a block, and the images of each text. Out: the residual stream that the block
reads. A position attends to the pieces of the image whose token is the last one up to it; a position before the first
image attends to nothing, and passes only through the gated MLP.

Source: arXiv:2204.14198, sections 2.2 and 2.3, as the package `open-flamingo` computes it (`GatedCrossAttentionBlock`,
arXiv:2308.01390).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.block_weights import BlockWeights
from awq2trt.models.families import CrossAttentionSpec


@dataclass(frozen=True)
class Media:
    """The images of several texts.

    Attributes:
        pieces: fp32 [texts, images, pieces, width]; zeros behind the images of a text that has fewer than others.
        image_of: int64 [texts, S]: number of the image that each position attends to, from 1; 0 for none.
    """

    pieces: Tensor
    image_of: Tensor

    @classmethod
    def of_texts(cls, tokens: Tensor, image_token: int, seen: Sequence[Tensor], more: int = 0) -> Media:
        """Assigns images to positions.

        Args:
            tokens: int64 [texts, S].
            image_token: The token that marks an image.
            seen: The pieces of each text's images, fp32 [images, pieces, width].
            more: Tokens of text that will follow, which attend to the last image.
        """
        most = max(map(len, seen))
        padded = [F.pad(images, (0, 0, 0, 0, 0, most - len(images))) for images in seen]
        markers = F.pad(tokens.to(padded[0].device) == image_token, (0, more))
        return cls(torch.stack(padded), markers.cumsum(dim=-1))

    def part(self, texts: slice | Tensor, positions: slice) -> Media:
        """The images of some texts, as some of their positions see them."""
        return Media(self.pieces[texts], self.image_of[texts, positions])


def without_cross(spec: CrossAttentionSpec | None, weights: BlockWeights) -> dict[str, Tensor]:
    """The tensors of the block itself."""
    return {name: value for name, value in weights.items() if spec is None or not name.startswith(spec.prefix)}


def look_at_images(spec: CrossAttentionSpec, weights: BlockWeights, hidden: Tensor, media: Media | None) -> Tensor:
    """What stands before a block, as a function of the residual stream.

    Args:
        spec: Its description.
        weights: The block's tensors, those of the cross-attention among them.
        hidden: fp32 [texts, S, hidden_size].
        media: What the texts see; None for texts without images.

    Returns:
        The same shape.
    """
    attention, mlp = f"{spec.prefix}attn.", f"{spec.prefix}ff."
    if media is not None and media.pieces.shape[1]:
        queries = _norm(spec, weights, f"{attention}norm", hidden) @ weights[f"{attention}to_q.weight"].T
        attended = _attend(spec, queries, media.pieces @ weights[f"{attention}to_kv.weight"].T, media.image_of)
        hidden = hidden + attended @ weights[f"{attention}to_out.weight"].T * weights[f"{spec.prefix}attn_gate"].tanh()
    inner = F.gelu(_norm(spec, weights, f"{mlp}0", hidden) @ weights[f"{mlp}1.weight"].T)
    return hidden + inner @ weights[f"{mlp}3.weight"].T * weights[f"{spec.prefix}ff_gate"].tanh()


def _attend(spec: CrossAttentionSpec, queries: Tensor, projected: Tensor, image_of: Tensor) -> Tensor:
    """Attention to the pieces of one image.

    Args:
        spec: Its description.
        queries: fp32 [texts, S, heads * head_dim].
        projected: Keys, then values of all pieces, fp32 [texts, images, pieces, 2 * heads * head_dim].
        image_of: int64 [texts, S].

    Returns:
        fp32 [texts, S, heads * head_dim]; zeros where a position attends to nothing.
    """
    images, pieces = projected.shape[1:3]
    keys, values = (
        part.flatten(1, 2).unflatten(-1, (spec.num_heads, -1)).transpose(1, 2)  # [texts, heads, images * pieces, D]
        for part in projected.chunk(2, dim=-1)
    )
    # A position before the first image looks at that one, so that softmax has something to divide by, and is cleared.
    looked_at = image_of.clamp(min=1).unsqueeze(-1) == torch.arange(1, images + 1)  # [texts, S, images]
    mask = looked_at.repeat_interleave(pieces, dim=-1).unsqueeze(1)
    context = F.scaled_dot_product_attention(
        queries.unflatten(-1, (spec.num_heads, -1)).transpose(1, 2), keys, values, attn_mask=mask
    )
    return context.transpose(1, 2).flatten(2) * (image_of > 0).unsqueeze(-1)


def _norm(spec: CrossAttentionSpec, weights: BlockWeights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (spec.hidden_size,), weights[f"{name}.weight"], weights[f"{name}.bias"], spec.norm_eps)
