"""Pieces of images in the place of image tokens, or attended to, whatever runs the graphs that make pieces and rows.

In: prepared images, then tokens. Out: what a decoder of embeddings reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.attended_images import AttendedImages
from awq2trt.runtime.bits import widen
from awq2trt.runtime.rotary_tables import RotaryTables
from awq2trt.runtime.tables import Tables


class PlacingEmbedder(ABC):
    """An `awq2trt.runtime.backend.Embeds` without the graphs.

    Args:
        image_token: Stands for a piece of an image among the tokens.
        tables: Tables that the decoder reads, too; None for one without any.
        deepstack: Channels of what is added behind the decoder's first blocks, which pieces have behind their own.
        dtype: The contract's name of the type of rows and pieces, which are as `bits.STORED` has it.
    """

    def __init__(
        self, image_token: int, tables: Tables | None = None, deepstack: int = 0, dtype: str = "float32"
    ) -> None:
        self._image_token = image_token
        self._tables = tables
        self._deepstack = deepstack
        self._dtype = dtype
        self._tiles = 1  # of an image in a call of the vision graph, at most
        self._shown: list[NDArray[Any]] = []  # pieces whose tokens are still to come, [pieces, W] each

    @abstractmethod
    def look(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Runs the vision graph on its inputs: pieces of an image, or of tiles of one, [pieces, W]."""

    @abstractmethod
    def embed(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Rows of tokens, [S, H], which the caller may change."""

    def see(self, image: PreparedImage) -> NDArray[np.float32]:
        """Pieces of a prepared image, [pieces, W], in fp32."""
        return widen(self._pieces(image), self._dtype)

    def _pieces(self, image: PreparedImage) -> NDArray[Any]:
        return image.joined([self.look(inputs) for inputs in image.calls(self._tiles)])

    @property
    def tables(self) -> Tables | None:
        """As of the class."""
        return self._tables

    def show(self, images: Sequence[PreparedImage]) -> None:
        """Looks at images whose tokens are among those that come next, in their order."""
        seen = [self._pieces(image) for image in images]  # one at a time, which bounds the memory
        if isinstance(self._tables, AttendedImages):
            self._tables.show([widen(pieces, self._dtype) for pieces in seen])
            return
        self._shown += seen
        if isinstance(self._tables, RotaryTables):
            self._tables.show(image.grid for image in images if image.grid is not None)

    def forget(self) -> None:
        """Forgets the conversation, and images whose tokens did not come."""
        self._shown.clear()
        if self._tables is not None:
            self._tables.restart()

    def rows(self, tokens: Sequence[int]) -> NDArray[Any]:
        """What the decoder reads of the next tokens, [S, W]; the tables then know them, too.

        Each row is an embedding and, for a decoder with deepstack, what is added behind its first blocks: zeros for a
        token of text.

        An image token of no image has its own row, as in transformers: a model may write one, though it means nothing.
        """
        rows = np.pad(self.embed(tokens), ((0, 0), (0, self._deepstack))) if self._deepstack else self.embed(tokens)
        places = np.flatnonzero(np.asarray(tokens) == self._image_token)
        while len(places) and self._shown:
            count = min(len(places), len(self._shown[0]))
            rows[places[:count]] = self._shown[0][:count]
            places, rest = places[count:], self._shown[0][count:]
            self._shown[:1] = [rest] if len(rest) else []
        if self._tables is not None:
            self._tables.append(tokens)
        return rows


def parted(rows: NDArray[Any], channels: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Inputs of a decoder by name, out of what it reads of tokens.

    Args:
        rows: As `PlacingEmbedder.rows` gives them, [..., W].
        channels: Channels of each input, in order; together W.
    """
    ends = np.cumsum([*channels.values()])[:-1]
    return dict(zip(channels, np.split(rows, ends, axis=-1), strict=True))
