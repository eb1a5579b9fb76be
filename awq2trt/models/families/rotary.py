"""Rotary position embeddings as data, and their tables of cosines and sines.

`rope.py` derives the frequencies from config.json. Two scalings use other frequencies for a sequence that is longer
than the model was first trained on, at all of its positions, as in transformers (`dynamic_rope_update`): LongRoPE has a
second set, dynamic NTK a set for every length. The length is that of the sequence at the time of the call, tokens in
the cache included. Keys that are in the cache by then keep the rotation that they were written with, so that they do
not match the queries and new keys of a sequence that has grown beyond the limit. Read such a sequence again from its
start, as Phi-3's `generate` does; a longer prompt would have computed the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float32]


@dataclass(frozen=True)
class SecondSet:
    """Frequencies for sequences longer than `positions` (LongRoPE, arXiv:2402.13753).

    Attributes:
        positions: The longest sequence with the first set.
        inv_freq: The frequencies, as in `RopeSpec`.
    """

    positions: int
    inv_freq: tuple[float, ...]


@dataclass(frozen=True)
class GrowingBase:
    """A base that grows with the length of sequences longer than `positions` (dynamic NTK scaling).

    The base of length L is theta * (factor * L / positions - (factor - 1))^(d / (d - 2)), d the rotated channels.

    Attributes:
        positions: The longest sequence whose base is `theta`.
        theta: The base of shorter sequences.
        factor: How fast the base grows.
    """

    positions: int
    theta: float
    factor: float


@dataclass(frozen=True)
class RopeSpec:
    """A rotary position embedding in rotate-half form (RoFormer, arXiv:2104.09864; halves as in Llama).

    Attributes:
        inv_freq: Angular frequency of each channel pair, float64 values, length rotary_dim / 2. Channels of a head
            after the first rotary_dim are not rotated.
        magnitude: Factor of cosines and sines (YaRN, arXiv:2309.00071, section 3.4).
        beyond: What is different for long sequences; None if nothing is.
        sections: How many channel pairs follow an image's frame, row and column, in a model whose positions have three
            numbers (mrope, arXiv:2409.12191); a text has the same number three times. None for positions of one number.
        interleaved: Whether pairs follow frame, row and column in turns, instead of one section after the other; pairs
            that are left over follow the frame (Qwen3-VL, arXiv:2511.21631).
    """

    inv_freq: tuple[float, ...]
    magnitude: float = 1.0
    beyond: SecondSet | GrowingBase | None = None
    sections: tuple[int, ...] | None = None
    interleaved: bool = False

    @property
    def followed(self) -> NDArray[np.int64]:
        """Which of a position's three numbers each channel pair follows, int64 [rotary_dim / 2]."""
        assert self.sections is not None
        numbers = len(self.sections)
        if not self.interleaved:
            return np.repeat(np.arange(numbers), self.sections)
        pairs = np.arange(len(self.inv_freq))
        turn = pairs % numbers
        return np.where(pairs // numbers < np.asarray(self.sections)[turn], turn, 0)

    @property
    def rotary_dim(self) -> int:
        """Number of channels of a head that are rotated."""
        return 2 * len(self.inv_freq)

    def is_long(self, length: int) -> bool:
        """Whether a sequence of `length` tokens uses other frequencies than `inv_freq`."""
        return self.beyond is not None and length > self.beyond.positions

    def frequencies(self, length: int) -> NDArray[np.float64]:
        """Angular frequencies for a sequence of `length` tokens, [rotary_dim / 2]."""
        if self.beyond is None or length <= self.beyond.positions:
            return np.asarray(self.inv_freq)
        if isinstance(self.beyond, SecondSet):
            return np.asarray(self.beyond.inv_freq)
        stretch = self.beyond.factor * length / self.beyond.positions - (self.beyond.factor - 1)
        base = self.beyond.theta * stretch ** (self.rotary_dim / (self.rotary_dim - 2))
        return plain_frequencies(base, self.rotary_dim)

    def tables(self, positions: int, length: int = 0) -> tuple[Table, Table]:
        """Computes cos and sin of position * frequency, times magnitude.

        Args:
            positions: Number of rows.
            length: Length of the sequence; 0 for a short one.

        Returns:
            Both, float32 [positions, rotary_dim / 2].
        """
        angles = np.outer(np.arange(positions, dtype=np.float64), self.frequencies(length))
        cos, sin = (self.magnitude * function(angles) for function in (np.cos, np.sin))
        return cos.astype(np.float32), sin.astype(np.float32)

    def first_long_row(self, capacity: int) -> int:
        """Row of `stored_tables` for position 0 of a long sequence; 0 if there is only one set of rows."""
        return self.beyond.positions if isinstance(self.beyond, SecondSet) and self.is_long(capacity) else 0

    def stored_tables(self, capacity: int) -> tuple[Table, Table]:
        """The rows in a graph of `capacity` positions: for short sequences, then for long ones if they differ.

        Returns:
            cos and sin, float32 [first_long_row + capacity, rotary_dim / 2].
        """
        short = self.first_long_row(capacity)
        if not short:
            return self.tables(capacity)
        pairs = zip(self.tables(short), self.tables(capacity, capacity), strict=True)
        cos, sin = (np.concatenate(pair) for pair in pairs)
        return cos, sin


def plain_frequencies(theta: float, rotary_dim: int) -> NDArray[np.float64]:
    """theta^(-2 i / rotary_dim) of every channel pair i, float64 [rotary_dim / 2]."""
    exponents: NDArray[np.float64] = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    return np.asarray(theta**-exponents)
