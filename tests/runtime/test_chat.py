"""Streamed text, stop strings, and the tokenizer with its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chat_templates import PUBLISHED
from tiny_models import save_tokenizer
from tokenizers import Tokenizer

from awq2trt.artifact.records import TokensRecord
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.runtime import ChatTokenizer, stream_text, system_message, user_message


def _bytes_to_text(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", errors="replace")


def _stream(text: str, stop: Sequence[str] = ()) -> list[str]:
    return list(stream_text(iter(text.encode()), _bytes_to_text, stop))


def test_text_streams_token_by_token() -> None:
    assert _stream("abc") == ["a", "b", "c"]


def test_characters_come_whole() -> None:
    assert _stream("aé😀b") == ["a", "é", "😀", "b"]


def test_token_without_text_does_not_eat_the_next_ones_space() -> None:
    words = {
        0: "",
        1: " one",
        2: " two",
    }  # a decoder that drops the space at the beginning of a text, as sentencepiece's do

    def decode(tokens: Sequence[int]) -> str:
        return "".join(words[token] for token in tokens).removeprefix(" ")

    assert list(stream_text([1, 0, 2], decode)) == ["one", " two"]


def test_bytes_that_never_become_a_character_still_come() -> None:
    assert list(stream_text([65, 0xF0, 0x9F], _bytes_to_text)) == ["A", "\ufffd"]


def test_text_ends_before_a_stop_string() -> None:
    assert "".join(_stream("one\n\ntwo", ["\n\n"])) == "one"
    assert "".join(_stream("xEND", ["ENDING", "END"])) == "x"
    assert _stream("STOPx", ["STOP"]) == []


def test_the_stop_string_that_is_whole_first_counts_in_any_pieces() -> None:
    """As in plugins/runtime/generation/stop_strings.h."""
    for pieces in (["xabcd"], ["xab", "cd"], ["x", "a", "b", "c", "d"]):

        def decode(ids: Sequence[int], pieces: Sequence[str] = pieces) -> str:
            return "".join(pieces[i] for i in ids)

        assert "".join(stream_text(range(len(pieces)), decode, ["abcd", "bc", "c"])) == "xa"


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


@pytest.mark.parametrize(("template", "expected"), [("llama3", 258), ("gemma", 258), ("llama2", None)])
def test_the_token_that_a_template_ends_a_turn_with_stops_an_answer(
    template: str, expected: int | None, tokenizer_directory: Path
) -> None:
    turn_ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "llama2": "<|other|>"}
    loaded = Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    loaded.add_special_tokens([turn_ends[template]])
    loaded.save(str(tokenizer_directory / "tokenizer.json"))
    (tokenizer_directory / "chat_template.jinja").write_text(PUBLISHED[template].source)
    stop = ChatTokenizer.load(tokenizer_directory).special.stop
    assert stop == ((256,) if expected is None else (256, expected))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[9].content }}", "{% bad", "{{ 1 / 0 }}"]
)
def test_a_template_that_fails_ends_no_turn(template: str, tokenizer_directory: Path) -> None:
    (tokenizer_directory / "chat_template.jinja").write_text(template)
    assert ChatTokenizer.load(tokenizer_directory).special.stop == (256,)


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
    with pytest.raises(UsageError, match="failed: no system message"):
        ChatTokenizer.load(tokenizer_directory).encode_messages([user_message("hi")])


def test_model_without_chat_template_asks_for_raw(tokenizer_directory: Path) -> None:
    with pytest.raises(UsageError, match="--raw"):
        ChatTokenizer.load(tokenizer_directory).encode_messages([user_message("hi")])


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path}: cannot be read as a"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_is_named(tokenizer_directory: Path, file: str) -> None:
    (tokenizer_directory / file).write_text("[")
    with pytest.raises(ArtifactError, match=f"{tokenizer_directory}.*: cannot be read as a"):
        ChatTokenizer.load(tokenizer_directory)


def test_damaged_generation_config_is_named(tokenizer_directory: Path) -> None:
    (tokenizer_directory / "generation_config.json").write_text("[")
    with pytest.raises(ArtifactError, match="generation_config"):
        ChatTokenizer.load(tokenizer_directory)


PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}>"
)
TEXTS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
NO_IMAGES = "{% for m in messages %}[{{ m.role }}]{{ m.content | replace('<image>', '') }}{% endfor %}>"
STRICT = PARTS.replace(
    "{% for c in", "{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}{% for c in"
)


def _with_template(directory: Path, template: str, *, processors: bool = False) -> ChatTokenizer:
    name = "chat_template.json" if processors else "chat_template.jinja"
    text = json.dumps({"chat_template": template}) if processors else template
    (directory / name).write_text(text)
    return ChatTokenizer.load(directory)


def _decoded(tokenizer: ChatTokenizer, tokens: Sequence[int], image_token: int) -> str:
    """Text of tokens, `*` for an image."""
    pieces, start = [], 0
    for index, token in enumerate([*tokens, image_token]):
        if token == image_token:
            pieces.append(tokenizer.decode(tokens[start:index]))
            start = index + 1
    return "*".join(pieces)


@pytest.mark.parametrize("template", [PARTS, STRICT, TEXTS], ids=["parts", "strict", "texts"])
@pytest.mark.parametrize("processors", [False, True])
def test_images_are_where_the_template_has_them(template: str, processors: bool, tokenizer_directory: Path) -> None:
    tokenizer = _with_template(tokenizer_directory, template, processors=processors)
    conversation = [system_message("Be brief."), user_message("<image>\na<image>b")]
    tokens = tokenizer.encode_messages(conversation, 270)
    line = "\n" if template is TEXTS else ""
    assert _decoded(tokenizer, tokens, 270) == f"[system]Be brief.[user]*{line}a*b>"
    assert _decoded(tokenizer, tokenizer.encode_messages([user_message("hi\n")], 270), 270) == "[user]hi\n>"


def test_a_template_without_a_place_for_images_is_refused(tokenizer_directory: Path) -> None:
    tokenizer = _with_template(tokenizer_directory, NO_IMAGES)
    assert tokenizer.encode_messages([user_message("hi")], 270)
    with pytest.raises(UsageError, match=r"no place for 1 images.*--raw"):
        tokenizer.encode_messages([user_message("<image>hi")], 270)


def test_a_marker_means_nothing_to_a_model_of_text(tokenizer_directory: Path) -> None:
    tokenizer = _with_template(tokenizer_directory, TEXTS)
    assert tokenizer.decode(tokenizer.encode_messages([user_message("<image>hi")])) == "[user]<image>hi>"
    assert tokenizer.decode(tokenizer.encode("<image>")) == "<image>"


def test_plain_text_has_images_too(tokenizer_directory: Path) -> None:
    tokenizer = ChatTokenizer.load(tokenizer_directory)
    assert _decoded(tokenizer, tokenizer.encode("a<image>b<image>", 270), 270) == "a*b*"
