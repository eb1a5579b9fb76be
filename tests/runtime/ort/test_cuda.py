"""The backend for a GPU, with host memory and ONNX Runtime's CPU provider in the GPU's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from host_memory import HostMemory
from tiny_checkpoints import RandomCheckpoint, relative_error

from awq2trt.errors import UsageError
from awq2trt.graph.next_token import drop_next_token_
from awq2trt.graph.ort_lowering import keep_all_positions_
from awq2trt.graph.provider_file import Lowering, lower_
from awq2trt.graph.read import open_decoder
from awq2trt.onnx_export import export_onnx
from awq2trt.runtime import OrtBackend, Sampler, Sampling, generate
from awq2trt.runtime.backend import ChoosingBackend
from awq2trt.runtime.ort.cuda import CudaBackend, CudaOptions
from awq2trt.runtime.ort.session import open_session

HALF_PRECISION = 5e-3
"""fp16 beside fp32, through two layers."""

Opener = Callable[..., CudaBackend]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_onnx(RandomCheckpoint(), directory)
    return directory


@pytest.fixture
def opened(exported: Path) -> Opener:
    """Opens the model as on a GPU, with chunks of 8 tokens."""

    def opener(memory: HostMemory | None = None, *, all_logits: bool = False, batch: int = 1) -> CudaBackend:
        model, sizes = open_decoder(exported)
        lower_(model, sizes, Lowering.CUDA_ORT)
        if all_logits:
            drop_next_token_(model)
            keep_all_positions_(model)
        session = open_session(model, exported)
        options = CudaOptions(all_logits=all_logits, graph=False, batch=batch, chunk=8)
        return CudaBackend.start(session, sizes, memory or HostMemory(), options)

    return opener


def _tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 120, count)]


@pytest.mark.parametrize("split", [[30], [1] * 30, [7, 1, 1, 16, 5]], ids=["at-once", "one-by-one", "pieces"])
def test_scores_are_those_of_the_cpu(exported: Path, opened: Opener, split: list[int]) -> None:
    tokens, backend, reference = _tokens(30), opened(), OrtBackend.load(exported)
    start = 0
    for length in split:
        piece = tokens[start : start + length]
        start += length
        assert relative_error(backend.forward(piece), reference.forward(piece)) < HALF_PRECISION
        assert backend.position == start


def test_it_chooses_what_has_the_largest_score(opened: Opener) -> None:
    choosing, scoring = opened(), opened()
    assert isinstance(choosing, ChoosingBackend)
    token = choosing.choose(_tokens(19))
    assert token == scoring.forward(_tokens(19)).argmax()
    for _ in range(20):
        following = choosing.choose([token])
        assert following == scoring.forward([token]).argmax()
        token = following


def test_a_token_that_it_chose_is_not_copied_back(opened: Opener) -> None:
    memory = HostMemory()
    backend = opened(memory)
    token = backend.choose([3])
    before = memory.written
    token = backend.choose([token])
    assert memory.written == before + 1  # the position alone
    backend.choose([(token + 1) % 120])
    assert memory.written == before + 3


def test_a_token_of_the_users_own_is_taken(opened: Opener) -> None:
    """After it has chosen a token, it is given another one."""
    backend, reference = opened(), opened()
    other = (backend.choose(_tokens(5)) + 1) % 120
    reference.forward(_tokens(5))
    np.testing.assert_array_equal(backend.forward([other]), reference.forward([other]))


def test_generation_is_greedy_where_the_scores_are(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(generate(opened(), _tokens(5), Sampler(Sampling(top_k=1, temperature=1.0)), max_new_tokens=12))
    backend = opened()
    monkeypatch.setattr(backend, "_read_logits", lambda rows: pytest.fail("scores are copied to the host"))
    assert list(generate(backend, _tokens(5), Sampler(Sampling()), max_new_tokens=12)) == expected


def test_a_conversation_leaves_nothing_to_the_next(opened: Opener) -> None:
    backend = opened()
    first = backend.forward(_tokens(10))
    backend.forward(_tokens(30, seed=1))
    backend.reset()
    np.testing.assert_array_equal(backend.forward(_tokens(10)), first)


def test_all_scores_are_those_of_one_token_after_another(exported: Path, opened: Opener) -> None:
    tokens, backend, single = _tokens(21), opened(all_logits=True), opened()
    pieces = list(backend.logits(tokens))
    assert [len(piece) for piece in pieces] == [8, 8, 5]
    for row, token in zip(np.concatenate(pieces), tokens, strict=True):
        assert relative_error(row, single.forward([token])) < HALF_PRECISION
    assert backend.choose([7]) == single.choose([7])


def test_all_scores_are_refused_where_only_the_last_are_kept(opened: Opener) -> None:
    with pytest.raises(UsageError, match="all_logits=True"):
        list(opened().logits([1]))


@pytest.mark.parametrize(("tokens", "says"), [([], "no tokens"), ([1] * 65, "0 tokens and 65 more .* cache of 64")])
def test_what_does_not_fit_is_refused(opened: Opener, tokens: list[int], says: str) -> None:
    backend = opened()
    for call in (backend.forward, backend.choose):
        with pytest.raises(UsageError, match=says):
            call(tokens)
    assert backend.position == 0


def test_conversations_in_step_give_what_one_gives(opened: Opener) -> None:
    several, one = opened(batch=3), opened()
    for piece in (_tokens(12), [5], [6]):
        assert relative_error(several.forward(piece), one.forward(piece)) < HALF_PRECISION
    assert several.choose([9]) == one.choose([9])


def test_all_memory_is_given_back(opened: Opener) -> None:
    memory = HostMemory()
    backend = opened(memory)
    assert memory.held == 4 + 4  # tokens, position, chosen token, scores; keys and values of two layers
    for seed in range(5):
        backend.reset()
        backend.choose(_tokens(3 + 7 * seed, seed))
    assert memory.held == 8
    backend.close()
    assert memory.held == 0
