"""Tokenizers out of GGUF files: the ids of the tokenizer that was written into them, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from trained_tokenizers import STYLES
from varied_texts import varied_texts

from awq2trt.errors import Awq2trtError, CheckpointError, UnsupportedError
from awq2trt.models.sources.gguf_tokenizer import GgufTokenizer, save_gguf_tokenizer
from awq2trt.runtime import ChatTokenizer

DATA = Path(__file__).parents[2] / "data" / "sentencepiece"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

TEXTS = [*varied_texts(250), "12345 1,000", "I'LL DON'T", " don't\n\n\n  x\t\ty", ""]


def _smollm() -> Tokenizer:
    """GPT-2's tokenizer with single digits, like those of SmolLM2 and StarCoder."""
    tokenizer = STYLES["gpt2"]()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def _gpt_neox() -> Tokenizer:
    tokenizer = STYLES["gpt2"]()
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


BYTE_LEVEL: dict[str, tuple[Any, str, str]] = {
    "falcon": (STYLES["falcon"], "falcon", "falcon"),
    "llama3": (STYLES["llama3"], "llama-bpe", "llama"),
    "qwen2": (STYLES["qwen2"], "qwen2", "qwen2"),
    "o200k": (STYLES["o200k"], "gpt-4o", "llama"),
    "smollm": (_smollm, "smollm", "llama"),
    "gpt_neox": (_gpt_neox, "olmo", "gptneox"),
    "falcon of before the word": (STYLES["falcon"], "", "falcon"),
    "gpt_neox of before the word": (_gpt_neox, "default", "gptneox"),
}
"""For each tokenizer, its `tokenizer.ggml.pre` (empty if missing) and architecture."""


def _write(path: Path, architecture: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes a GGUF file with only metadata; returns its fields as they are read back."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add: dict[type, Any] = {
            str: writer.add_string,
            bool: writer.add_bool,
            int: writer.add_uint32,
            list: writer.add_array,
        }
        add[type(value)](f"tokenizer.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields: dict[str, Any] = GGUFReader(path).fields
    return fields


def _byte_level(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """The metadata that the converter writes for a tokenizer.json (`SpecialVocab` and `_set_vocab_gpt2`)."""
    definition = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in definition["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]
    metadata: dict[str, Any] = {
        "ggml.model": "gpt2",
        "ggml.tokens": tokens,
        "ggml.token_type": [special.get(token, NORMAL) for token in tokens],
        "ggml.merges": merges,
        "ggml.eos_token_id": 0,
    }
    return metadata | ({"ggml.pre": pre} if pre else {})


def _pieces(style: str, **more: Any) -> dict[str, Any]:
    """The metadata that the converter writes for a tokenizer.model (`_set_vocab_sentencepiece`)."""
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model = getattr(messages, "ModelProto")()  # noqa: B009
    model.ParseFromString((DATA / f"{style}.model").read_bytes())
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": [piece.piece for piece in model.pieces],
        "ggml.scores": [piece.score for piece in model.pieces],
        "ggml.token_type": [piece.type for piece in model.pieces],
        **more,
    }


def _read(fields: dict[str, Any], directory: Path) -> Tokenizer:
    directory.mkdir(exist_ok=True)
    save_gguf_tokenizer(fields, "x.gguf", directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("style", BYTE_LEVEL)
def test_ids_of_byte_level_tokenizers_are_the_sources(style: str, tmp_path: Path) -> None:
    make, pre, architecture = BYTE_LEVEL[style]
    source = make()
    again = _read(_write(tmp_path / "x.gguf", architecture, _byte_level(source, pre)), tmp_path / "made")
    for text in TEXTS:
        assert again.encode(text, add_special_tokens=False).ids == source.encode(text, add_special_tokens=False).ids, (
            text
        )
        ids = source.encode(text, add_special_tokens=False).ids
        assert again.decode(ids) == source.decode(ids)


@pytest.mark.parametrize("style", ["llama", "gemma"])
def test_ids_of_sentencepiece_tokenizers_are_the_sources(style: str, tmp_path: Path) -> None:
    known = json.loads((DATA / "ids.json").read_text())
    metadata = _pieces(style, **{"ggml.add_space_prefix": style == "llama"})
    again = _read(_write(tmp_path / "x.gguf", "llama", metadata), tmp_path / "made")
    for text, expected in zip(known["texts"], known[style], strict=True):
        assert again.encode(text, add_special_tokens=False).ids == expected, text


@pytest.mark.parametrize(("said", "first"), [(True, 1), (False, None), (None, 1)])
def test_add_bos_token_is_honoured(said: bool | None, first: int | None, tmp_path: Path) -> None:
    metadata = _pieces("llama", **({} if said is None else {"ggml.add_bos_token": said}))
    _read(_write(tmp_path / "x.gguf", "llama", metadata), tmp_path / "made")
    ids = ChatTokenizer.load(tmp_path / "made").encode("a")
    assert (ids[0] == first) == (first is not None)


def test_byte_level_tokenizers_add_bos_where_llama_cpp_does(tmp_path: Path) -> None:
    for pre, said, expected in (("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)):
        metadata = _byte_level(STYLES["llama3"](), pre) | {"ggml.bos_token_id": 0}
        metadata |= {} if said is None else {"ggml.add_bos_token": said}
        tokenizer = _read(_write(tmp_path / "x.gguf", "llama", metadata), tmp_path / "made")
        assert (tokenizer.encode("a").ids[0] == 0) == expected


def test_template_roles_and_all_end_tokens_come_along(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    ends = {"ggml.bos_token_id": 0, "ggml.eos_token_id": 1, "ggml.eot_token_id": 3, "ggml.padding_token_id": 2}
    metadata = _byte_level(STYLES["llama3"](), "llama-bpe") | ends | {"chat_template": template}
    _read(_write(tmp_path / "x.gguf", "llama", metadata), tmp_path / "made")
    loaded = ChatTokenizer.load(tmp_path / "made")
    assert (loaded.special.bos, loaded.special.eos, loaded.special.pad) == (0, 1, 2)
    assert {1, 3} <= set(loaded.special.stop)
    plain = loaded.encode("hello")
    assert loaded.encode_messages([{"role": "user", "content": "hello"}]) == plain


def test_the_files_of_a_tokenizer_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = _write(tmp_path / "x.gguf", "llama", _byte_level(STYLES["llama3"](), "llama-bpe"))
    directories = [tmp_path / name for name in ("plain", "first", "second")]
    for directory in directories:
        directory.mkdir()
    save_gguf_tokenizer(fields, "x.gguf", directories[0])
    tokenizer = GgufTokenizer(fields, "x.gguf")
    tokenizer.save(directories[1])
    monkeypatch.setattr("awq2trt.models.sources.gguf_tokenizer.save_gguf_tokenizer", None)
    tokenizer.save(directories[2])
    plain, first, second = ({file.name: file.read_bytes() for file in path.iterdir()} for path in directories)
    assert plain == first == second
    assert "tokenizer.json" in plain


def test_phi3s_special_tokens_take_the_space_behind_them(tmp_path: Path) -> None:
    metadata = _pieces("gemma")
    metadata["ggml.token_type"] = [CONTROL if kind == USER_DEFINED else kind for kind in metadata["ggml.token_type"]]
    text = "<start_of_turn>  a"
    counts = {
        architecture: len(
            _read(_write(tmp_path / "x.gguf", architecture, metadata), tmp_path / "made").encode(text).ids
        )
        for architecture in ("llama", "phi3")
    }
    assert counts["phi3"] < counts["llama"]


REFUSED: dict[str, tuple[dict[str, Any], type[Awq2trtError], str]] = {
    "another kind": ({"ggml.model": "rwkv"}, UnsupportedError, "ggml.model: expected llama or gpt2, got 'rwkv'"),
    "another splitting": ({"ggml.pre": "superbpe"}, UnsupportedError, "ggml.pre: expected one of .*got 'superbpe'"),
    "fewer kinds": ({"ggml.token_type": [1, 1]}, CheckpointError, "tokens, but 2 token_type"),
    "tokens twice": ({"ggml.tokens": ["a"] * 3, "ggml.token_type": [1] * 3}, CheckpointError, "occur twice"),
    "a special token beyond": ({"ggml.eos_token_id": 99999}, CheckpointError, "special token 99999"),
    "a merge of one": ({"ggml.merges": ["ab"]}, CheckpointError, "a merge 'ab'"),
    "a merge of strangers": ({"ggml.merges": ["\u4e00 \u4e01"]}, CheckpointError, "merges that do not fit"),
    "tokens of numbers": ({"ggml.tokens": [1, 2], "ggml.token_type": [1, 1]}, CheckpointError, "tokens that are not"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_damaged_and_unknown_tokenizers_are_refused(fault: str, tmp_path: Path) -> None:
    change, kind, message = REFUSED[fault]
    metadata = _byte_level(STYLES["llama3"](), "llama-bpe") | change
    with pytest.raises(kind, match=message) as caught:
        _read(_write(tmp_path / "x.gguf", "llama", metadata), tmp_path / "made")
    assert caught.value.where == "x.gguf"
