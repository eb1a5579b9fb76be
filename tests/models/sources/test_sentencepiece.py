"""tokenizer.model -> tokenizer.json, compared with the ids of SentencePiece 0.2.3 itself (tests/data/sentencepiece).

It trained the models on `trained_tokenizers.training_text`, in the manner of Llama 1 and of Gemma.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_llama
from tokenizers import Tokenizer

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.sources.base import copy_tokenizer
from awq2trt.models.sources.sentencepiece import convert_sentencepiece
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.runtime import ChatTokenizer, OrtBackend
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

DATA = Path(__file__).parents[2] / "data" / "sentencepiece"

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

STYLES = ("llama", "gemma")


def _source(directory: Path, style: str = "llama", **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(DATA / f"{style}.model", directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}))
    return directory


def _converted(source: Path, to: Path) -> Tokenizer:
    to.mkdir()
    convert_sentencepiece(source, to)
    return Tokenizer.from_file(str(to / "tokenizer.json"))


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_sentencepiece(style: str, tmp_path: Path) -> None:
    known = json.loads((DATA / "ids.json").read_text())
    tokenizer = _converted(_source(tmp_path / "source", style), tmp_path / "made")
    for text, expected in zip(known["texts"], known[style], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
        assert tokenizer.decode(expected, skip_special_tokens=False) == text.replace(SPACE, " ")


def test_texts_begin_with_bos_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    text = _converted(_source(tmp_path / "a"), tmp_path / "1").encode("a").tokens
    assert text[0] == "<s>"
    plain = _converted(_source(tmp_path / "b", add_bos_token=False), tmp_path / "2").encode("a").tokens
    assert plain == text[1:]
    both = _converted(_source(tmp_path / "c", add_eos_token=True), tmp_path / "3").encode("a").tokens
    assert both == [*text, "</s>"]


def test_a_space_goes_before_every_part_of_a_text_or_its_first(tmp_path: Path) -> None:
    every = _converted(_source(tmp_path / "a"), tmp_path / "1").encode("a</s>a", add_special_tokens=False).tokens
    first = _converted(_source(tmp_path / "b", legacy=False), tmp_path / "2").encode("a</s>a", add_special_tokens=False)
    none = _converted(_source(tmp_path / "c", add_prefix_space=False), tmp_path / "3").encode("a").tokens
    assert every == [SPACE, "a", "</s>", SPACE, "a"]
    assert first.tokens == [SPACE, "a", "</s>", "a"]
    assert none == ["<s>", "a"]


def test_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    source = _source(tmp_path / "source", pad_token="<pad>")
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": 900, "<tool>": 901}))
    tokenizer = _converted(source, tmp_path / "made")
    assert [tokenizer.token_to_id(text) for text in ("<pad>", "<tool>")] == [900, 901]
    assert ChatTokenizer.load(tmp_path / "made").special.pad == 900
    decoder = {"900": {"content": "<a>", "special": True, "lstrip": False, "rstrip": True, "normalized": False}}
    again = _converted(_source(tmp_path / "again", added_tokens_decoder=decoder), tmp_path / "two")
    assert again.encode("<a>   b", add_special_tokens=False).ids[0] == 900


def test_a_directory_without_tokenizer_json_gets_one(tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    _source(tmp_path / "model", chat_template="{{ messages[0]['content'] }}")
    (tmp_path / "out").mkdir()
    copy_tokenizer(tmp_path / "model", tmp_path / "out")
    loaded = ChatTokenizer.load(tmp_path / "out")
    known = json.loads((DATA / "ids.json").read_text())
    bos = loaded.special.bos
    assert [loaded.encode(text) for text in known["texts"]] == [[bos, *ids] for ids in known["llama"]]
    assert loaded.encode_messages([{"role": "user", "content": "a"}]) == loaded.encode("a")[1:]


def _added(text: str) -> dict[str, object]:
    """A special token as in the configs of Llama 1 and Vicuna."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"__type": "AddedToken", "content": text, "normalized": True, **flags}


def test_a_directory_as_vicunas_goes_through_to_answers(tmp_path: Path) -> None:
    """There are special tokens with flags in both files, and an added one; only tokenizer.model, no tokenizer.json."""
    model = save_llama(tmp_path / "model", vocab_size=904, bos_token_id=1, eos_token_id=2)
    for path in model.glob("*token*"):
        path.unlink()
    roles: dict[str, Any] = {"bos_token": _added("<s>"), "eos_token": _added("</s>"), "unk_token": _added("<unk>")}
    _source(model, **roles, add_bos_token=True, add_eos_token=False, legacy=True, pad_token=None)
    (model / "special_tokens_map.json").write_text(json.dumps({**roles, "pad_token": "<pad>"}))
    (model / "added_tokens.json").write_text(json.dumps({"<pad>": 900}))
    rtn = QuantizeOptions(method="rtn", group_size=32)
    quantize_stage(QuantizeRequest(str(model), tmp_path / "q", rtn), SilentProgress())
    export_stage(ExportRequest(tmp_path / "q", tmp_path / "o", ExportOptions(max_seq_len=64)), SilentProgress())
    chat = ChatTokenizer.load(tmp_path / "o")
    assert (chat.special.bos, chat.special.eos, chat.special.stop) == (1, 2, (2,))
    known = json.loads((DATA / "ids.json").read_text())
    assert chat.encode(known["texts"][0]) == [1, *known["llama"][0]]
    assert OrtBackend.load(tmp_path / "o").forward(chat.encode("a")).shape == (904,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("added_tokens.json", "{"),
        ("special_tokens_map.json", "[]"),
    ],
)
def test_damaged_files_beside_the_model_are_named(name: str, content: str, tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    (source / name).write_text(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="source") as refused:
        copy_tokenizer(source, tmp_path / "out")
    assert "cannot be read as" in refused.value.what


def test_gpt2s_own_files_become_a_tokenizer_json(tmp_path: Path) -> None:
    for name in ("source", "out"):
        (tmp_path / name).mkdir()
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3, "\u0120": 4}
    (tmp_path / "source" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "source" / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    copy_tokenizer(tmp_path / "source", tmp_path / "out")
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("ab a").ids == [2, 4, 0]


def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    (source / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # tiktoken's format
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
        convert_sentencepiece(source, tmp_path)


def test_a_model_of_words_is_refused(tmp_path: Path) -> None:
    from transformers.utils import sentencepiece_model_pb2_new as messages

    source = _source(tmp_path / "source")
    model = getattr(messages, "ModelProto")()  # noqa: B009
    model.ParseFromString((DATA / "llama.model").read_bytes())
    model.trainer_spec.model_type = 3
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"model_type: expected 1 or 2, got 3.*tokenizer\.json"):
        convert_sentencepiece(source, tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", {"<x>": 950}, "'<x>' should have the id 950, but gets 900"),
        ("special_tokens_map.json", {"bos_token": "<nobody>"}, "bos_token: the vocabulary has no token '<nobody>'"),
    ],
)
def test_files_of_another_model_are_refused(file: str, content: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = _source(tmp_path / "source")
    (source / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        convert_sentencepiece(source, tmp_path)
