"""Images whose tokens see each other: each token of such a block sees the cache up to the block's end (Gemma 3).

In: tokens. Out: for each the last position that it sees; a token of text sees up to itself. Sliding windows limit how
far back tokens see, and nothing else.

Source: `create_masks_for_vision_model` of transformers 5.24's `modeling_gemma3`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.vision.block_ends import block_ends


@dataclass(frozen=True)
class ImageBlocks:
    """What tokens of several texts see of what is behind them.

    Attributes:
        ends: int64 [texts, S]: the last position that each token sees.
    """

    ends: Tensor

    @classmethod
    def of_texts(cls, tokens: Tensor, image_token: int, more: int = 0) -> ImageBlocks:
        """Finds the blocks.

        Args:
            tokens: int64 [texts, S].
            image_token: Stands for a piece of an image.
            more: Tokens of text that will follow.
        """
        is_image = F.pad(tokens == image_token, (0, more)).numpy(force=True)
        return cls(torch.as_tensor(np.stack([block_ends(row) for row in is_image])))

    def mask(self, texts: slice | Tensor, keys: int, queries: int, sliding_window: int | None) -> Tensor:
        """Which keys each position of a call may see.

        Args:
            texts: Which texts these are.
            keys: Positions from the text's first to the call's last.
            queries: The call's positions, which are the last of them.
            sliding_window: Positions that a token sees at most, with itself; None for all.

        Returns:
            bool [texts, 1, queries, keys].
        """
        key = torch.arange(keys)
        mine = self.ends[texts, keys - queries : keys].to(key.device)  # [texts, queries]
        mask = key <= mine[:, None, :, None]
        if sliding_window is not None:
            mask = mask & (key > torch.arange(keys - queries, keys)[:, None] - sliding_window)
        return mask
