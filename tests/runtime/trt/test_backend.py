"""A conversation with an engine, on a stand-in for it: calls that fit the profiles, carried caches, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in_engine
import tiny_models
from numpy.typing import NDArray
from stand_in_engine import (
    CAPACITY,
    PROFILES,
    TOKENS,
    OnnxSession,
    contract_of,
)

from awq2trt.artifact.records import ProfileRecord
from awq2trt.errors import UnsupportedError, UsageError
from awq2trt.runtime.trt.backend import EngineBackend


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    return stand_in_engine.make_build(stand_in_engine.save_model(directory / "model"), directory)


def test_tokens_are_split_as_the_profiles_allow(build: Path) -> None:
    session = OnnxSession(build / "onnx")
    narrow = (ProfileRecord.of_tokens("prefill", 1, 8, 8), PROFILES[1])
    backend = EngineBackend(session, contract_of(build / "onnx"), narrow)
    expected = EngineBackend(OnnxSession(build / "onnx"), contract_of(build / "onnx"), PROFILES).forward(TOKENS)
    np.testing.assert_allclose(backend.forward(TOKENS), expected, atol=5e-3)
    assert session.calls == [(0, 0, 8), (0, 8, 8), (0, 16, 4)]
    assert (backend.position, backend.capacity, backend.vocab_size) == (20, CAPACITY, tiny_models.VOCAB_SIZE)


def test_a_new_conversation_finds_empty_caches(build: Path) -> None:
    seen: list[float] = []

    class Watching(OnnxSession):
        def infer(self, inputs: Mapping[str, NDArray[Any]], profile: int) -> Mapping[str, NDArray[Any]]:
            seen.append(float(np.abs(inputs["past_key_1"]).max()))
            return super().infer(inputs, profile)

    backend = EngineBackend(Watching(build / "onnx"), contract_of(build / "onnx"), PROFILES)
    for tokens in (TOKENS, [3]):
        backend.forward(tokens)
    backend.reset()
    backend.forward([3])
    assert seen[0] == seen[2] == 0.0
    assert seen[1] > 0.0


def test_what_no_call_can_take_is_refused(build: Path) -> None:
    backend = EngineBackend(OnnxSession(build / "onnx"), contract_of(build / "onnx"), PROFILES)
    with pytest.raises(UsageError, match="got no tokens to append, expected at least one"):
        backend.forward([])
    with pytest.raises(UsageError, match="0 tokens and 65 more do not fit"):
        backend.forward([1] * 65)
    two_at_least = (ProfileRecord.of_tokens("prefill", 2, 16, 64),)
    with pytest.raises(UnsupportedError, match="no optimization profile of the engine accepts 1 tokens"):
        EngineBackend(OnnxSession(build / "onnx"), contract_of(build / "onnx"), two_at_least).forward([1])
