"""What tokens see of what is behind them, for a decoder in which tokens of an image see each other.

In: tokens as they are appended. Out: the decoder's input: for every slot of the cache the last slot that its token
sees. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.io_contract import VISIBLE_END
from awq2trt.models.vision.block_ends import block_ends


class VisibleEnds:
    """The table of a conversation; a slot behind it is one of text, whose token sees no further than itself.

    Args:
        image_token: Stands for a piece of an image.
        capacity: Slots of the cache.

    Attributes:
        arrays: Inputs of the decoder by name: int64 [capacity]; it is changed in place.
        version: Another number whenever it has changed.
    """

    def __init__(self, image_token: int, capacity: int) -> None:
        self._image_token = image_token
        self._text = np.arange(capacity)
        self._ends = self._text.copy()
        self.arrays: Mapping[str, NDArray[Any]] = {VISIBLE_END: self._ends}
        self.version = 0
        self._slot = 0

    def restart(self) -> None:
        """Begins a new conversation."""
        if not np.array_equal(self._ends, self._text):
            self._ends[:] = self._text
            self.version += 1
        self._slot = 0

    def append(self, tokens: Sequence[int]) -> None:
        """Takes the tokens of the next call."""
        is_image = np.asarray(tokens) == self._image_token
        first, self._slot = self._slot, self._slot + len(tokens)
        if is_image.any():
            self._ends[first : self._slot] = first + block_ends(is_image)
            self.version += 1

    def calls(self, tokens: Sequence[int], longest: int) -> Iterator[Sequence[int]]:
        """Divides tokens into calls of a decoder, so that each has all of the images that are in it.

        Args:
            tokens: The next tokens.
            longest: Tokens that a call may have.

        Raises:
            UsageError: Image tokens that stand side by side are more than a call may have.
        """
        start = 0
        while start < len(tokens):
            end = min(start + longest, len(tokens))
            if end < len(tokens) and tokens[end] == self._image_token:
                while end > start and tokens[end - 1] == self._image_token:
                    end -= 1
            if end == start:
                raise UsageError(
                    f"more than {longest} image tokens stand side by side, and a call of this model's decoder takes "
                    f"{longest} tokens.",
                    where="--image",
                    fix="write something between images.",
                )
            yield tokens[start:end]
            start = end
