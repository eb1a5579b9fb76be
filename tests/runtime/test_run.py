"""Running a decoder: the ONNX Runtime backend and its lowering, sampling, generation, streamed text."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_checkpoints import RandomCheckpoint, random_linear, relative_error
from tiny_models import save_tokenizer

from awq2trt.artifact.records import TokensRecord
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.graph.ort_lowering import block_weight
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE
from awq2trt.onnx_export import export_onnx
from awq2trt.runtime import (
    ChatTokenizer,
    OrtBackend,
    Sampler,
    Sampling,
    generate,
    stream_text,
    system_message,
    user_message,
)
from awq2trt.runtime.sampling import candidate_probabilities
from awq2trt.scheme import WHOLE_ROW, QuantScheme

SAME_ARITHMETIC = 1e-4
"""fp32 sums in another order, through two layers."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny exported decoder, capacity 64."""
    directory = tmp_path_factory.mktemp("exported")
    export_onnx(RandomCheckpoint(), directory)
    return directory


# The backend.


@pytest.mark.parametrize("split", [[30], [1] * 30, [7, 1, 1, 16, 5]], ids=["at-once", "one-by-one", "pieces"])
def test_cache_makes_pieces_equal_the_whole(exported: Path, split: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.runtime.ort.cpu.FIRST_CACHE_LENGTH", 4)  # grows four times on the way
    monkeypatch.setattr("awq2trt.runtime.ort.cpu.PREFILL_CHUNK", 8)
    tokens = _tokens(30)
    whole = np.concatenate(list(OrtBackend.load(exported, all_logits=True).logits(tokens)))
    backend = OrtBackend.load(exported)
    start = 0
    for length in split:
        got = backend.forward(tokens[start : start + length])
        start += length
        assert backend.position == start
        assert relative_error(got, whole[start - 1]) < SAME_ARITHMETIC


def test_reset_forgets_the_conversation(exported: Path) -> None:
    backend = OrtBackend.load(exported)
    first = backend.forward(_tokens(10))
    backend.forward(_tokens(20, seed=1))
    backend.reset()
    np.testing.assert_array_equal(backend.forward(_tokens(10)), first)


def test_logits_stay_what_they_were_when_more_are_computed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.runtime.ort.cpu.PREFILL_CHUNK", 8)
    backend = OrtBackend.load(exported, all_logits=True)
    pieces = list(backend.logits(_tokens(32)))
    assert [len(piece) for piece in pieces] == [8, 8, 8, 8]
    copies = [piece.copy() for piece in backend.logits(_tokens(32))]
    np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(copies))


def test_more_tokens_than_the_cache_holds_are_refused(exported: Path) -> None:
    backend = OrtBackend.load(exported)
    backend.forward(_tokens(64))
    with pytest.raises(UsageError, match="64 tokens and 1 more do not fit the cache of 64"):
        backend.forward([1])


def test_no_tokens_are_refused(exported: Path) -> None:
    with pytest.raises(UsageError, match="no tokens"):
        OrtBackend.load(exported).forward([])


def test_all_logits_must_be_asked_for(exported: Path) -> None:
    with pytest.raises(UsageError, match="all_logits=True"):
        next(OrtBackend.load(exported).logits([1]))


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path / MODEL_FILE}: no such model"):
        OrtBackend.load(tmp_path)


def test_missing_weights_are_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes())
    with pytest.raises(ArtifactError, match=f"{WEIGHTS_FILE}: the weights file is missing"):
        OrtBackend.load(tmp_path)


def test_truncated_weights_are_refused(exported: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((exported / MODEL_FILE).read_bytes())
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        OrtBackend.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a protobuf", bytes(range(256))])
def test_damaged_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=MODEL_FILE):
        OrtBackend.load(tmp_path)


def test_some_other_onnx_model_is_refused(tmp_path: Path) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node("Relu", [x])
    ir.save(ir.Model(ir.Graph([x], node.outputs, nodes=[node], name="other"), ir_version=10), tmp_path / MODEL_FILE)
    with pytest.raises(ArtifactError, match="not a decoder that awq2trt exported"):
        OrtBackend.load(tmp_path)


def test_model_that_onnx_runtime_refuses_is_an_error_of_ours(exported: Path, tmp_path: Path) -> None:
    model = ir.load(exported / MODEL_FILE)
    next(node for node in model.graph if node.op_type == "Sigmoid").op_type = "NoSuchOperator"
    ir.save(model, tmp_path / MODEL_FILE)
    (tmp_path / WEIGHTS_FILE).write_bytes((exported / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ArtifactError, match="ONNX Runtime refuses the model"):
        OrtBackend.load(tmp_path)


def test_model_exported_with_all_logits_runs_too(exported: Path, tmp_path: Path) -> None:
    export_onnx(RandomCheckpoint(), tmp_path, all_logits=True)
    np.testing.assert_array_equal(
        OrtBackend.load(tmp_path).forward(_tokens(5)), OrtBackend.load(exported, all_logits=True).forward(_tokens(5))
    )


# Lowering.


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize(
    ("group_size", "features"), [(128, 576), (64, 77), (32, 96), (WHOLE_ROW, 80), (WHOLE_ROW, 300), (128, 96)]
)
def test_blocked_weight_means_the_same(group_size: int, features: int, zero_point: bool) -> None:
    linear = random_linear((9, features), QuantScheme(4, group_size, zero_point), np.random.default_rng(0))
    blocked = block_weight(linear.codes, linear.scales.astype(np.float32), linear.zeros, linear.group_length)
    assert blocked is not None
    nibbles = np.stack([blocked.codes & 15, blocked.codes >> 4], axis=-1).reshape(9, -1, blocked.block)
    zeros: Any = 8
    if blocked.zeros is not None:
        zeros = np.stack([blocked.zeros & 15, blocked.zeros >> 4], axis=-1).reshape(9, -1)
        zeros = zeros[:, : nibbles.shape[1], None].astype(np.int16)
    weight = (nibbles.astype(np.int16) - zeros) * blocked.scales[:, :, None]
    np.testing.assert_array_equal(weight.reshape(9, -1)[:, :features], linear.dequantize())


def test_blocked_weight_bytes() -> None:
    codes = np.arange(32, dtype=np.uint8).reshape(2, 16) % 16
    scales, zeros = np.ones((2, 1), np.float32), np.array([[3], [12]], dtype=np.uint8)
    blocked = block_weight(codes, scales, zeros, 16)
    assert blocked is not None
    assert blocked.codes[1, 0, :9].tolist() == [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, 0]
    assert blocked.zeros is not None
    assert blocked.zeros.tolist() == [[3], [12]]


def test_groups_that_no_block_fits_are_left_to_the_body() -> None:
    linear = random_linear((4, 48), QuantScheme(), np.random.default_rng(0))
    assert block_weight(linear.codes, np.ones((4, 2), np.float32), None, 24) is None


# Sampling.


def test_greedy_takes_the_best() -> None:
    assert Sampler(Sampling()).pick(_logits(0.1, 0.5, 0.4)) == 1


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), {1: 0.5, 2: 0.3, 0: 0.15, 3: 0.05}),
        (Sampling(1.0, top_k=2), {1: 0.625, 2: 0.375}),
        (Sampling(1.0, top_k=9), {1: 0.5, 2: 0.3, 0: 0.15, 3: 0.05}),
        (Sampling(1.0, top_p=0.79), {1: 0.625, 2: 0.375}),
        (Sampling(1.0, top_p=0.01), {1: 1.0}),
        (Sampling(1.0, top_k=3, top_p=0.5), {1: 1.0}),
        (Sampling(0.5, top_k=2), {1: 0.25 / 0.34, 2: 0.09 / 0.34}),
    ],
)
def test_candidates(sampling: Sampling, expected: dict[int, float]) -> None:
    candidates, probabilities = candidate_probabilities(_logits(0.15, 0.5, 0.3, 0.05), sampling)
    assert candidates.tolist() == list(expected)
    np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-5)


def test_seed_repeats_and_frequencies_follow_probabilities() -> None:
    logits = _logits(0.2, 0.8)
    first, second = (Sampler(Sampling(1.0, seed=3)) for _ in range(2))
    drawn = [first.pick(logits) for _ in range(2000)]
    assert drawn == [second.pick(logits) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.8, abs=0.03)  # three standard deviations


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**wrong)


# Generation.


class CountingBackend:
    """Answers every token with the next number."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.vocab_size, self.position = capacity, 100, 0

    def reset(self) -> None:
        self.position = 0

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.position += len(tokens)
        assert self.position <= self.capacity
        scores: NDArray[np.float32] = np.eye(self.vocab_size, dtype=np.float32)[tokens[-1] + 1]
        return scores


def test_generation_ends_before_a_stop_token() -> None:
    assert list(generate(CountingBackend(50), [3, 5], Sampler(Sampling()), stop_tokens={9})) == [6, 7, 8]


def test_generation_ends_after_the_tokens_asked_for() -> None:
    backend = CountingBackend(50)
    assert list(generate(backend, [3, 5], Sampler(Sampling()), max_new_tokens=3)) == [6, 7, 8]
    assert backend.position == 4  # the last token is not run for nothing
    assert list(generate(backend, [3], Sampler(Sampling()), max_new_tokens=0)) == []


def test_generation_fills_the_cache_and_ends() -> None:
    assert list(generate(CountingBackend(5), [1, 2, 3], Sampler(Sampling()))) == [4, 5, 6]
    assert list(generate(CountingBackend(3), [1, 2, 3], Sampler(Sampling()))) == [4]


def test_generation_starts_a_new_conversation() -> None:
    backend = CountingBackend(5)
    for _ in range(3):
        assert list(generate(backend, [1], Sampler(Sampling()), max_new_tokens=4)) == [2, 3, 4, 5]


def test_prompt_longer_than_the_cache_is_refused() -> None:
    with pytest.raises(UsageError, match=r"4 tokens, but the cache .* holds 3\. Fix: .*--max-seq-len 4"):
        list(generate(CountingBackend(3), [1, 2, 3, 4], Sampler(Sampling())))


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        list(generate(CountingBackend(3), [], Sampler(Sampling())))


# Text.


def _bytes_to_text(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def _stream(text: str, stop: Sequence[str] = ()) -> list[str]:
    return list(stream_text(iter(text.encode()), _bytes_to_text, stop))


def test_text_streams_token_by_token() -> None:
    assert _stream("abc") == ["a", "b", "c"]


def test_characters_come_whole() -> None:
    assert _stream("aé😀b") == ["a", "é", "😀", "b"]


def test_token_without_text_does_not_eat_the_next_ones_space() -> None:
    words = {0: "", 1: " one", 2: " two"}  # a decoder that drops the space a text begins with, as sentencepiece's do

    def decode(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    assert list(stream_text([1, 0, 2], decode)) == ["one", " two"]


def test_bytes_that_never_become_a_character_still_come() -> None:
    assert list(stream_text([65, 0xF0, 0x9F], _bytes_to_text)) == ["A", "\ufffd"]


def test_text_ends_before_a_stop_string() -> None:
    assert "".join(_stream("one\n\ntwo", ["\n\n"])) == "one"
    assert "".join(_stream("xEND", ["ENDING", "END"])) == "x"
    assert _stream("STOPx", ["STOP"]) == []


def test_beginning_of_a_stop_string_is_held_back_and_then_shown() -> None:
    assert _stream("aENb", ["END"]) == ["a", "ENb"]
    assert _stream("aEN", ["END"]) == ["a", "EN"]


def test_generation_stops_with_the_text() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield from b"word "

    assert "".join(stream_text(endless(), _bytes_to_text, ["d w"])) == "wor"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="--stop"):
        list(stream_text([65], _bytes_to_text, [""]))


# The tokenizer.


@pytest.fixture
def tokenizer_directory(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


def test_tokenizer_encodes_decodes_and_knows_its_end(tokenizer_directory: Path) -> None:
    tokenizer = ChatTokenizer.load(tokenizer_directory)
    tokens = tokenizer.encode("hello wörld")
    assert tokenizer.decode(tokens) == "hello wörld"
    assert tokenizer.special == TokensRecord(bos=256, eos=256, pad=257, unk=None, stop=(256,))


@pytest.mark.parametrize(("configured", "expected"), [("7", (7, 256)), ("[8, 7]", (7, 8, 256)), ("null", (256,))])
def test_stop_tokens_of_the_generation_config(
    tokenizer_directory: Path, configured: str, expected: tuple[int, ...]
) -> None:
    (tokenizer_directory / "generation_config.json").write_text(f'{{"eos_token_id": {configured}}}')
    assert ChatTokenizer.load(tokenizer_directory).special.stop == expected


def test_chat_template_wraps_the_prompt(tokenizer_directory: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    (tokenizer_directory / "chat_template.jinja").write_text(template)
    tokenizer = ChatTokenizer.load(tokenizer_directory)
    assert (
        tokenizer.decode(tokenizer.encode_messages([system_message("be"), user_message("hi")])) == "[system]be[user]hi>"
    )
    assert tokenizer.decode(tokenizer.encode_messages([user_message("hi")])) == "[user]hi>"


def test_chat_template_that_fails_is_the_users_error(tokenizer_directory: Path) -> None:
    (tokenizer_directory / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    with pytest.raises(UsageError, match="refused the messages: no system message"):
        ChatTokenizer.load(tokenizer_directory).encode_messages([user_message("hi")])


def test_model_without_chat_template_asks_for_raw(tokenizer_directory: Path) -> None:
    with pytest.raises(UsageError, match="--raw"):
        ChatTokenizer.load(tokenizer_directory).encode_messages([user_message("hi")])


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path}: no readable tokenizer"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_named(tokenizer_directory: Path, file: str) -> None:
    (tokenizer_directory / file).write_text("[")
    with pytest.raises(ArtifactError, match=f"{tokenizer_directory}: no readable tokenizer"):
        ChatTokenizer.load(tokenizer_directory)


def test_damaged_generation_config_is_named(tokenizer_directory: Path) -> None:
    (tokenizer_directory / "generation_config.json").write_text("[")
    with pytest.raises(ArtifactError, match="generation_config"):
        ChatTokenizer.load(tokenizer_directory)


def test_running_needs_no_torch() -> None:
    imports = "import sys, awq2trt.runtime, awq2trt.engine.builder"
    code = f"{imports}; sys.exit('torch' in sys.modules or 'tensorrt_rtx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 120, count)]


def _logits(*probabilities: float) -> NDArray[np.float32]:
    return np.array([math.log(probability) for probability in probabilities], dtype=np.float32)
