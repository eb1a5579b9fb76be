"""Runs a built engine as a stage of `check`: takes the calls of `calls_of`, gives only logits, of every position."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from awq2trt.checking.beside import noise_shown, prepared_noise
from awq2trt.checking.runners import Arrays, DecoderRunner
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, VISION
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.embedder import EngineEmbedder
from awq2trt.runtime.trt.engine import EngineBuild
from awq2trt.runtime.trt.session import EngineSession


class EngineRunner(DecoderRunner):
    """An engine as a stage of `check`; it gives only logits, of every position.

    An engine gives logits only of the last position of a call. So the first call, a text of S tokens, becomes two
    conversations: its tokens one by one, for the logits of the first S - 1 positions, and then all of them at once, for
    those of the last, in an empty cache that later calls continue. So both profiles are compared with the reference,
    and through the later calls also what prefill wrote into the cache.

    Args:
        open_session: Loads the engine.
        engine: The engine's record.
        name: Name of the stage.
        open_embedder: Loads the engines beside it, of a model that sees; None for a model of text.
        vision: How the model sees; None for a model of text.
    """

    def __init__(
        self,
        open_session: Callable[[], EngineSession],
        engine: EngineBuild,
        name: str,
        open_embedder: Callable[[], EngineEmbedder | None] | None = None,
        vision: SeeingSpec | None = None,
    ) -> None:
        super().__init__(name=name)
        self._open_session = open_session
        self._engine = engine
        self._open_embedder = open_embedder
        self._vision = vision
        self._seen: Arrays = OrderedDict()

    def activate_impl(self) -> None:
        self._session = self._open_session()
        self._embedder = self._open_embedder() if self._open_embedder is not None else None
        self._backend = EngineBackend(self._session, self._engine.contract, self._engine.profiles, self._embedder)
        if self._vision is not None:
            self._seen[VISION] = self._backend.see(prepared_noise(self._vision))[None]

    def infer_impl(self, feed_dict: Mapping[str, Any]) -> Arrays:
        started = time.monotonic()
        tokens = feed_dict[INPUT_IDS][0].tolist()
        if feed_dict[CACHE_POSITION][0] == 0:
            self._begin(tokens)
            rows = [self._backend.forward([token]) for token in tokens[:-1]]
            self._begin(tokens)
            rows.append(self._backend.forward(tokens))
        else:
            rows = [self._backend.forward([token]) for token in tokens]
        self.inference_time = time.monotonic() - started
        return OrderedDict({**self._seen, LOGITS: np.stack(rows)[None]})

    def _begin(self, tokens: Sequence[int]) -> None:
        self._backend.reset()
        if images := noise_shown(self._vision, tokens):
            self._backend.show(images)

    def deactivate_impl(self) -> None:
        self._session.close()
        self._seen = OrderedDict()
        if self._embedder is not None:
            self._embedder.close()
        del self._backend, self._session, self._embedder
