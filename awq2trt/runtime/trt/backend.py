"""A conversation with a built engine: an `awq2trt.runtime.Backend` that takes tokens and gives scores of the next one.

`check` reaches an engine through three layers, of which only the last needs a GPU:

- `EngineRunner` answers the calls of `check`;
- `EngineBackend`, here, splits tokens into calls that fit an optimization profile, and carries the cache tensors from
  each call to the next;
- `TrtSession` makes one call, through polygraphy's `TrtRunner`.

**No engine of ours has been run yet**: TensorRT-RTX runs on GeForce RTX, TensorRT builds on the Jetson, and this
project has had neither. The tests drive the first two layers over ONNX Runtime, with the inputs and outputs of an
engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.records import ProfileRecord
from awq2trt.errors import UnsupportedError
from awq2trt.io_contract import (
    CACHE_POSITION,
    DEEPSTACK_EMBEDS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    IoContract,
    TensorContract,
)
from awq2trt.runtime.backend import Conversation, Embeds
from awq2trt.runtime.bits import narrow, narrow_table
from awq2trt.runtime.embedding import parted
from awq2trt.runtime.trt.session import Buffer, EngineSession


class EngineBackend(Conversation):
    """A conversation with an engine: an `awq2trt.runtime.Backend`.

    Args:
        session: The engine.
        contract: Its inputs and outputs.
        profiles: Its profiles, in the engine's order.
        embedder: What makes what a decoder of embeddings reads; None for one of tokens.
    """

    def __init__(
        self,
        session: EngineSession,
        contract: IoContract,
        profiles: Sequence[ProfileRecord],
        embedder: Embeds | None = None,
    ) -> None:
        super().__init__(contract.capacity, contract.vocab_size, embedder)
        self._session = session
        self._contract = contract
        self._profiles = tuple(profiles)
        self._caches: dict[str, Buffer] = {}

    def reset(self) -> None:
        """Forgets the conversation; caches start as zeros, so that nothing of an earlier one remains."""
        tensors = {tensor.name: tensor for tensor in self._contract.inputs}
        super().reset()
        self._caches = {
            past: self._session.zeros(tensors[past], _one_conversation(tensors[past]))
            for past, _ in self._contract.cache_pairs
        }

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Appends tokens; returns the scores of the next token, float32 [V]."""
        self._require_room(tokens)
        if not self._caches:
            self.reset()
        longest = max(profile.tokens.longest for profile in self._profiles)
        for part in self._calls(tokens, longest):
            logits = self._call(part)
        return logits

    def _call(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Calls the engine once: returns the logits of the last position, float32 [V]."""
        inputs = {
            **self._new(tokens),
            CACHE_POSITION: np.asarray([self._position], np.int64),
            **self._caches,
        }
        outputs = self._session.infer(inputs, self._profile_for(len(tokens)))
        for past, present in self._contract.cache_pairs:
            self._session.carry(outputs[present], self._caches[past])
        self._position += len(tokens)
        logits: NDArray[np.float32] = self._session.read(outputs[LOGITS])[0, -1]  # [1, 1, V]
        return logits

    def _new(self, tokens: Sequence[int]) -> dict[str, NDArray[Any]]:
        """What the engine reads of new tokens, by name."""
        if self._embedder is None:
            return {INPUT_IDS: np.asarray([tokens], np.int64)}
        read = [tensor for tensor in self._contract.inputs if tensor.name in (INPUTS_EMBEDS, DEEPSTACK_EMBEDS)]
        channels, dtype = {tensor.name: int(tensor.shape[-1]) for tensor in read}, read[0].dtype
        rows = parted(narrow(self._embedder.rows(tokens)[None], dtype), channels)
        tables = {} if self._tables is None else self._tables.arrays
        given = {name: narrow_table(table, dtype) for name, table in tables.items()}
        return {name: np.ascontiguousarray(row) for name, row in rows.items()} | given

    def _profile_for(self, count: int) -> int:
        """Returns the narrowest profile for this many tokens: `decode` for one, as an application would use it."""
        fitting = [
            (profile.tokens.longest, index)
            for index, profile in enumerate(self._profiles)
            if profile.tokens.shortest <= count <= profile.tokens.longest
        ]
        if not fitting:
            raise UnsupportedError(f"no optimization profile of the engine accepts {count} tokens.", where="engine")
        return min(fitting)[1]


def _one_conversation(tensor: TensorContract) -> tuple[int, ...]:
    """The shape of a cache with its symbolic axis, the batch, set to 1."""
    return tuple(axis if isinstance(axis, int) else 1 for axis in tensor.shape)
