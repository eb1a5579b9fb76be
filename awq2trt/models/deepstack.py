"""Deepstack: features of images that are added to the residual stream behind the first blocks of a decoder.

In: pieces of images, each with what every one of these blocks adds, and where they stand in texts. Out: a residual
stream behind a block.

Source: arXiv:2406.04334, as `Qwen3VLTextModel` of transformers 5.24 computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Deepstack:
    """What blocks add in several texts.

    Attributes:
        features: fp32 [texts, S, blocks * hidden_size], block after block; zeros where no image is.
    """

    features: Tensor

    @classmethod
    def of_texts(cls, tokens: Tensor, image_token: int, seen: Sequence[Tensor], more: int = 0) -> Deepstack:
        """Puts features in the places of image tokens.

        Args:
            tokens: int64 [texts, S].
            image_token: The token that stands for a piece of an image.
            seen: What is added for the pieces of each text, fp32 [pieces, blocks * hidden_size]; the last ones may have
                no token, in a text that is cut.
            more: Tokens of text that will follow.
        """
        features = torch.zeros(*tokens.shape, seen[0].shape[-1])
        places = tokens.to(features.device) == image_token
        for text, pieces in enumerate(seen):
            row = features[text]
            row[places[text]] = pieces[: int(places[text].sum())]
        return cls(F.pad(features, (0, 0, 0, more)))

    def added(self, hidden: Tensor, layer: int, start: int, texts: slice | Tensor) -> Tensor:
        """The residual stream behind what a block adds; the same one behind the blocks that add nothing.

        Args:
            hidden: Behind the block itself, fp32 [texts, S, hidden_size].
            layer: The block's number.
            start: The first position.
            texts: Which texts these are.
        """
        size = hidden.shape[-1]
        if (layer + 1) * size > self.features.shape[-1]:
            return hidden
        end = start + hidden.shape[1]
        return hidden + self.features[texts, start:end, layer * size : (layer + 1) * size]
