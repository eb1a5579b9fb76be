"""Makes tokenizer.json from a GGUF file's metadata, with the ids of the tokenizer that the file was made from.

In: `tokenizer.*` (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Out: files beside a checkpoint. llama.cpp
names the regular expressions of a byte-level tokenizer by a word (`tokenizer.ggml.pre`); here each word is replaced by
the steps in the tokenizer.json of such models (llama-vocab.cpp, `llm_tokenizer_bpe`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.sources.base import GENERATION_CONFIG_FILE
from awq2trt.models.sources.gguf_metadata import metadata
from awq2trt.models.sources.tokenizer_json import (
    NORMAL,
    SPECIAL_KINDS,
    USER_DEFINED,
    Piece,
    PieceRules,
    SpecialTokens,
    pieces_tokenizer,
    save_tokenizer_files,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PIECES: Final = "llama"
_BYTE_LEVEL: Final = "gpt2"
"""Values of `tokenizer.ggml.model`."""

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ANY_CASE: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NO_LETTER: Final = r"[^\r\n\p{L}\p{N}]?"

_DIGITS_BY_THREE: Final = rf"{_CONTRACTIONS}|{_NO_LETTER}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_SINGLE_DIGITS: Final = _DIGITS_BY_THREE.replace("{1,3}", "")
_TEKKEN: Final = (
    rf"{_NO_LETTER}{_ANY_CASE}*{_LOWER}+|{_NO_LETTER}{_ANY_CASE}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K: Final = (
    rf"{_NO_LETTER}{_ANY_CASE}*{_LOWER}+{_CONTRACTIONS}?|{_NO_LETTER}{_ANY_CASE}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM: Final = (
    " ?[^(\\s|.,!?\N{HORIZONTAL ELLIPSIS}\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH COMMA}\N{IDEOGRAPHIC COMMA}"
    + ("\N{DEVANAGARI DANDA}\N{ARABIC FULL STOP}\N{ARABIC COMMA})]+")
)
_CHINESE_AND_KOREAN: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


class GgufTokenizer:
    """The files of a GGUF file's tokenizer. They are made only once, since that takes seconds and much memory.

    Args:
        fields: The file's metadata.
        where: The file, for errors.
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self._where = where
        self._made: dict[str, bytes] = {}

    def save(self, directory: Path) -> None:
        """Writes the files into the directory of a checkpoint.

        Raises:
            CheckpointError: The GGUF file has no tokenizer, or a damaged one.
            UnsupportedError: The tokenizer is of a kind that is not supported.
        """
        if not self._made:
            with tempfile.TemporaryDirectory(prefix="awq2trt-") as made:
                save_gguf_tokenizer(self._fields, self._where, Path(made))
                self._made = {path.name: path.read_bytes() for path in Path(made).iterdir()}
            self._fields = {}
        for name, content in self._made.items():
            (directory / name).write_bytes(content)


def save_gguf_tokenizer(fields: Mapping[str, Any], where: str, directory: Path) -> None:
    """Writes a GGUF file's tokenizer, chat template and end tokens into `directory`.

    Args:
        fields: The file's metadata.
        where: The file, for errors.
        directory: Directory of a checkpoint.

    Raises:
        CheckpointError: The file has no tokenizer, or a damaged one.
        UnsupportedError: The tokenizer is of a kind that is not supported.
    """
    reader = _Reader(fields, where)
    kind = reader.value("model", None)
    if kind == _PIECES:
        tokenizer, adds_bos = _of_pieces(reader), True
    elif kind == _BYTE_LEVEL:
        tokenizer, adds_bos = _of_bytes(reader), reader.pre in _WITH_BOS
    else:
        raise UnsupportedError(
            f"tokenizer.ggml.model: expected {_PIECES} or {_BYTE_LEVEL}, got {kind!r}.",
            where=where,
            fix="use the model's safetensors directory.",
        )
    special = SpecialTokens(
        roles=reader.roles(),
        add_bos=bool(reader.value("add_bos_token", adds_bos)),
        add_eos=bool(reader.value("add_eos_token", False)),
        chat_template=metadata(fields, "tokenizer.chat_template", where, None),
    )
    save_tokenizer_files(tokenizer, special, directory)
    ends = reader.ids(*_ENDS)
    if ends:
        content = {"eos_token_id": ends[0] if len(ends) == 1 else ends}
        (directory / GENERATION_CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


_ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Tokens that end an answer."""

_ROLES: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


_USUAL_IDS: Final = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
"""Ids of SentencePiece's special tokens if the file names none."""


class _Reader:
    """The metadata of a tokenizer."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._fields = fields
        self.tokens: list[str] = self._texts("tokens")
        self.kinds: list[int] = self.value("token_type", [NORMAL] * len(self.tokens))
        if len(self.kinds) != len(self.tokens):
            raise self.damaged(f"{len(self.tokens)} tokens, but {len(self.kinds)} token_type")

    @property
    def architecture(self) -> str:
        """Architecture of the model."""
        return str(metadata(self._fields, "general.architecture", self.where))

    @property
    def pre(self) -> str:
        """Name of the expressions that split a text; files from before April 2024 have none."""
        said = self.value("pre", "default")
        return _BY_ARCHITECTURE.get(self.architecture, _GPT2_NAME) if said == "default" else str(said)

    def value(self, key: str, *default: Any) -> Any:
        """Returns one of the tokenizer's values."""
        return metadata(self._fields, f"tokenizer.ggml.{key}", self.where, *default)

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens in the order in which they are merged."""
        found = []
        for line in self._texts("merges"):
            left, space, right = line.partition(" ") if not line.startswith(" ") else (" ", " ", line[2:])
            if not space or not right:
                raise self.damaged(f"a merge {line!r}")
            found.append((left, right))
        return found

    def roles(self) -> dict[str, str]:
        """Texts of the special tokens that the file names, by role: `bos_token` and so on."""
        found = {role: self.ids(key) for role, key in _ROLES.items()}
        if self.value("model", None) == _PIECES:
            for role, index in _USUAL_IDS.items():
                if not found[role] and self.kinds[index : index + 1] and self.kinds[index] in SPECIAL_KINDS:
                    found[role] = [index]
        return {role: self.tokens[ids[0]] for role, ids in found.items() if ids}

    def ids(self, *keys: str) -> list[int]:
        """Ids of the tokens under these keys, each once.

        Raises:
            CheckpointError: An id is beyond the vocabulary.
        """
        ids = [self.value(key, None) for key in keys]
        named = list(dict.fromkeys(token for token in ids if token is not None))
        for token in named:
            if not isinstance(token, int) or not 0 <= token < len(self.tokens):
                raise self.damaged(f"the special token {token!r} of {len(self.tokens)} tokens")
        return named

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"the tokenizer has {what}.", where=self.where, fix="download the file again.")

    def _texts(self, key: str) -> list[str]:
        found = self.value(key)
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.damaged(f"{key} that are not texts")
        return found


_PHI3: Final = "phi3"
_KEEP_SPACES: Final = {"<unk>", "<s>", "<|endoftext|>"}
"""Phi-3's special tokens consume the spaces behind them, except these; GGUF does not store that (llama-vocab.cpp)."""


def _of_pieces(reader: _Reader) -> Tokenizer:
    scores = reader.value("scores")
    if len(scores) != len(reader.tokens):
        raise reader.damaged(f"{len(reader.tokens)} tokens, but {len(scores)} scores")
    pieces = [Piece(*each) for each in zip(reader.tokens, scores, reader.kinds, strict=True)]
    special = {piece.text for piece in pieces if piece.kind in (*SPECIAL_KINDS, USER_DEFINED)}
    rules = PieceRules(
        dummy_prefix=bool(reader.value("add_space_prefix", True)),
        squeeze_spaces=bool(reader.value("remove_extra_whitespaces", False)),
        swallow_spaces=frozenset(special - _KEEP_SPACES) if reader.architecture == _PHI3 else frozenset(),
    )
    return pieces_tokenizer(pieces, rules, where=reader.where)


def _of_bytes(reader: _Reader) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = reader.pre
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedError(
            f"tokenizer.ggml.pre: expected one of {', '.join(sorted(_PRE_TOKENIZERS))}, got {pre!r}.",
            where=reader.where,
            fix="use the model's safetensors directory, whose tokenizer.json says how texts are split.",
        )
    vocabulary = {token: index for index, token in enumerate(reader.tokens)}
    if len(vocabulary) != len(reader.tokens):
        raise reader.damaged("tokens that occur twice")
    try:
        model = models.BPE(vocabulary, reader.merges(), ignore_merges=pre in _WHOLE_WORDS)
    except Exception as error:  # tokenizers raises plain exceptions
        raise reader.damaged(f"merges that do not fit its tokens ({error})") from error
    tokenizer = Tokenizer(model)
    if pre in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    steps = [make() for make in _PRE_TOKENIZERS[pre]]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    for kinds, add in ((SPECIAL_KINDS, tokenizer.add_special_tokens), ((USER_DEFINED,), tokenizer.add_tokens)):
        texts = [text for text, kind in zip(reader.tokens, reader.kinds, strict=True) if kind in kinds]
        add([AddedToken(text, normalized=False, special=kinds is SPECIAL_KINDS) for text in texts])
    return tokenizer


_Make = Callable[[], Any]


def _split(pattern: str) -> _Make:
    def make() -> Any:
        from tokenizers import Regex, pre_tokenizers

        return pre_tokenizers.Split(Regex(pattern), "isolated")

    return make


def _bytes(*, gpt2: bool) -> _Make:
    """The step that turns text into bytes; with GPT-2's own expression before it."""

    def make() -> Any:
        from tokenizers import pre_tokenizers

        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)

    return make


def _digits(*, individual: bool) -> _Make:
    def make() -> Any:
        from tokenizers import pre_tokenizers

        return pre_tokenizers.Digits(individual_digits=individual)

    return make


def _punctuation() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Punctuation("contiguous")


_GPT2: Final = (_bytes(gpt2=True),)
_DIGITS_GPT2: Final = (_digits(individual=True), _bytes(gpt2=True))
_LLAMA3: Final = (_split(_DIGITS_BY_THREE), _bytes(gpt2=False))
_QWEN2: Final = (_split(_SINGLE_DIGITS), _bytes(gpt2=False))
_DEEPSEEK_CODER: Final = (
    *map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_AND_KOREAN)),
    _digits(individual=True),
    _bytes(gpt2=False),
)

_GPT2_NAME: Final = "gpt-2"

_BY_ARCHITECTURE: Final = {"falcon": "falcon", "bloom": "bloom", "mpt": "mpt", "gptneox": "olmo"} | {
    **dict.fromkeys(("qwen2", "qwen3"), "qwen2")
}
"""How texts are split if the file does not say; GPT-2's expression for architectures that are missing here."""

_PRE_TOKENIZERS: Final[Mapping[str, tuple[_Make, ...]]] = {
    **dict.fromkeys((_GPT2_NAME, "mpt", "olmo", "phi-2", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    "tekken": (_split(_TEKKEN), _bytes(gpt2=False)),
    "gpt-4o": (_split(_O200K), _bytes(gpt2=False)),
    "falcon": (_punctuation, _bytes(gpt2=True), _digits(individual=False), _split("[0-9][0-9][0-9]")),
    "bloom": (_split(_BLOOM), _bytes(gpt2=False)),
    "deepseek-coder": _DEEPSEEK_CODER,
}
"""Maps `tokenizer.ggml.pre` to the steps of the tokenizer.json that it stands for."""

_WHOLE_WORDS: Final = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
"""Those in which words that are tokens stay whole, whatever the merges."""

_COMPOSED: Final = ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "mpt", "olmo")
"""Those that compose characters first (NFC)."""

_WITH_BOS: Final = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")
"""Those whose texts begin with BOS unless `add_bos_token` says otherwise."""
