"""The rotary tables of a conversation with images, for a decoder that takes them as inputs.

In: tokens as they are appended, and the grids of images. Out: cosines and sines of the token in every slot of the
cache; `awq2trt.models.vision.mixed_positions` explains its positions. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import ModelRecord
from awq2trt.io_contract import ROTARY_TABLES
from awq2trt.models.families.rotary import RopeSpec
from awq2trt.models.vision.mixed_positions import MixedPositions, mixed_rows
from awq2trt.models.vision.prepared import Grid


class RotaryTables:
    """Tables with a row for every slot of the cache; slots behind the conversation are those of a text that goes on.

    So only images change them: `version` tells a device whether it still has what it needs.

    Args:
        rope: The embedding, with sections.
        image_token: As of `MixedPositions`.
        capacity: Slots of the cache.

    Attributes:
        arrays: Cosines and sines by the names of the decoder's inputs, fp32 [capacity, pairs of channels]; they are
            changed in place.
        version: Another number whenever they have changed.
    """

    def __init__(self, rope: RopeSpec, image_token: int, capacity: int) -> None:
        self._followed = rope.followed
        self._image_token = image_token
        self._text = rope.tables(capacity)
        self.arrays: Mapping[str, NDArray[np.float32]] = {
            name: table.copy() for name, table in zip(ROTARY_TABLES, self._text, strict=True)
        }
        self.version = 0
        self._positions = MixedPositions(image_token)
        self._slot = 0
        self._mixed = False  # whether the tables have rows of images

    @classmethod
    def of(cls, model: ModelRecord, capacity: int) -> RotaryTables | None:
        """Tables of an exported model; None for one whose decoder has its own."""
        if model.vision is None:
            return None
        mixed = [rope for rope in model.decoder.ropes if rope.sections is not None]
        if not mixed:
            return None
        rope = RopeSpec(
            mixed[0].inv_freq,
            magnitude=mixed[0].factor,
            sections=mixed[0].sections,
            interleaved=mixed[0].interleaved,
        )
        return cls(rope, model.vision.image_token, capacity)

    def restart(self) -> None:
        """Begins a new conversation."""
        if self._mixed:
            for table, text in zip(self.arrays.values(), self._text, strict=True):
                table[...] = text
            self.version += 1
        self._positions, self._slot, self._mixed = MixedPositions(self._image_token), 0, False

    def show(self, grids: Iterable[Grid]) -> None:
        """Adds images, whose tokens are among those that come next, in their order."""
        self._positions.show(grids)

    def append(self, tokens: Sequence[int]) -> None:
        """Takes the next tokens; their rows, and those of all slots behind them, are then right."""
        first, self._slot = self._slot, self._slot + len(tokens)
        if not self._positions.awaits:
            self._positions.next += len(tokens)
            return
        positions, self._mixed = self._positions.of(tokens), True
        rest = self._positions.next + np.arange(len(self._text[0]) - self._slot)
        # Within an image, the text behind it may seem to go on beyond the table; its rows will be written again.
        rest = np.minimum(rest, len(self._text[0]) - 1)
        for table, text in zip(self.arrays.values(), self._text, strict=True):
            table[first : self._slot] = mixed_rows(text, self._followed, positions)
            table[self._slot :] = text[rest]
        self.version += 1
