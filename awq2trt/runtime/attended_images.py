"""The images of a conversation, for a decoder that attends to them.

In: keys and values of images, as the vision graph makes them, and tokens as they are appended. Out: the decoder's
inputs: all images, and the image that the token in every slot of the cache attends to. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UsageError
from awq2trt.io_contract import ATTENDED_IMAGES, IMAGE_OF_SLOT


class AttendedImages:
    """Images of a conversation; a token attends to the last one whose token is not after it.

    Slots behind the conversation are those of a text that goes on, so that only images change anything.

    Args:
        image_token: The token that marks an image.
        shape: Most images of a conversation, pieces of each, channels of a piece.
        capacity: Slots of the cache.

    Attributes:
        arrays: Inputs of the decoder by name: fp32 of that shape, and int64 [capacity], numbers from 1, and 0 for none;
            they are changed in place.
        version: Another number whenever they have changed.
    """

    def __init__(self, image_token: int, shape: tuple[int, int, int], capacity: int) -> None:
        self._image_token = image_token
        self._images = np.zeros(shape, np.float32)
        self._image_of_slot = np.zeros(capacity, np.int64)
        self.arrays: Mapping[str, NDArray[Any]] = {
            ATTENDED_IMAGES: self._images,
            IMAGE_OF_SLOT: self._image_of_slot,
        }
        self.version = 0
        self._shown = 0  # images, of which `_marked` have had their tokens
        self._marked = 0
        self._slot = 0

    def restart(self) -> None:
        """Begins a new conversation."""
        if self._shown:
            self._image_of_slot[:] = 0
            self.version += 1
        self._shown = self._marked = self._slot = 0

    def show(self, images: Sequence[NDArray[np.float32]]) -> None:
        """Adds images, whose tokens are among those that come next, in their order.

        Args:
            images: Keys and values of each, [pieces, channels].

        Raises:
            UsageError: The conversation would have more images than the decoder takes.
        """
        together = self._shown + len(images)
        if together > len(self._images):
            raise UsageError(
                f"a conversation with this model may have {len(self._images)} images, got {together}.",
                where="--image",
                fix=f"show fewer images, or export again with --max-images {together} or more.",
            )
        for image in images:
            self._images[self._shown] = image
            self._shown += 1
            self.version += 1

    def append(self, tokens: Sequence[int]) -> None:
        """Takes the next tokens. An image token of no image is a token like any other."""
        for token in tokens:
            if token == self._image_token and self._marked < self._shown:
                self._marked += 1
                self._image_of_slot[self._slot :] = self._marked
                self.version += 1
            self._slot += 1
