"""Writes tokenizer.json and tokenizer_config.json for a tokenizer that was stored in another form.

In: the parts of a tokenizer, as tokenizer.model or a GGUF file has them. Out: files that all our runtimes read, with
the ids of the source. The `tokenizers` library builds and saves them; transformers is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from awq2trt.errors import CheckpointError
from awq2trt.models.sources.tokenizer_parts import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"

SPACE: Final = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character that SentencePiece writes for a space."""

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
BYTE: Final = 6
"""Kinds of pieces, as SentencePiece and GGUF number them."""

SPECIAL_KINDS: Final = (UNKNOWN, CONTROL)

_PLAIN_CLASS: Final = "PreTrainedTokenizerFast"
"""transformers' class that reads tokenizer.json and adds nothing of its own."""


@dataclass(frozen=True)
class Piece:
    """A token of a SentencePiece model.

    Attributes:
        text: The token's text.
        score: Pieces with higher scores are merged earlier.
        kind: `NORMAL` and so on.
    """

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class PieceRules:
    """How SentencePiece splits a text into pieces.

    Attributes:
        unigram: Whether the likeliest split is chosen, instead of merging pairs.
        dummy_prefix: Whether a space is put before the text.
        prefix_every_part: Whether one is also put behind each special token (transformers' `legacy`).
        squeeze_spaces: Whether spaces at the ends are removed, and several in a row become one.
        swallow_spaces: Special tokens that consume the spaces behind them.
        charsmap: SentencePiece's compiled table of replacements; empty without one.
    """

    unigram: bool = False
    dummy_prefix: bool = True
    prefix_every_part: bool = True
    squeeze_spaces: bool = False
    swallow_spaces: frozenset[str] = frozenset()
    charsmap: bytes = b""


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens and the chat template, as tokenizer_config.json stores them.

    Attributes:
        roles: The texts of special tokens by role, such as `bos_token`.
        add_bos: Whether the BOS token is put before a text.
        add_eos: Whether the EOS token is put behind a text.
        chat_template: A Jinja template; None without one.
    """

    roles: Mapping[str, str]
    add_bos: bool
    add_eos: bool = False
    chat_template: str | None = None


def pieces_tokenizer(pieces: Sequence[Piece], rules: PieceRules, *, where: str) -> Tokenizer:
    """Makes the tokenizer of a SentencePiece model.

    Args:
        pieces: The pieces in the order of their ids.
        rules: How texts are split into them.
        where: The file, for errors.

    Raises:
        CheckpointError: A piece occurs twice, or there is no unknown piece.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    unknown = next((index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    has_bytes = any(piece.kind == BYTE for piece in pieces)
    if len(vocabulary) != len(pieces) or (unknown is None and not has_bytes):
        raise CheckpointError(
            f"expected {len(pieces)} different tokens, one for the unknown, got {len(vocabulary)} different ones.",
            where=where,
            fix="it is damaged; download it again.",
        )
    model: models.Model
    if rules.unigram:
        model = models.Unigram([(piece.text, piece.score) for piece in pieces], unknown, has_bytes)
    else:
        name = None if unknown is None else pieces[unknown].text
        merges = _merges(pieces)
        model = models.BPE(vocabulary, merges, unk_token=name, fuse_unk=True, byte_fallback=has_bytes)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(rules)
    if rules.dummy_prefix and not rules.prefix_every_part:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if rules.dummy_prefix else []))
    special = [piece.text for piece in pieces if piece.kind in SPECIAL_KINDS]
    own = [piece.text for piece in pieces if piece.kind == USER_DEFINED and SPACE not in piece.text]
    for texts, add in ((special, tokenizer.add_special_tokens), (own, tokenizer.add_tokens)):
        add([AddedToken(text, normalized=False, rstrip=text in rules.swallow_spaces) for text in texts])
    return tokenizer


def _normalizer(rules: PieceRules) -> Any:
    """The changes that SentencePiece makes to a text before it splits it."""
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if rules.charsmap:
        steps.append(normalizers.Precompiled(rules.charsmap))
    if rules.squeeze_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.dummy_prefix and rules.prefix_every_part:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs that pieces consist of, highest score first, which is the order in which SentencePiece merges them."""
    known = {piece.text: index for index, piece in enumerate(pieces) if piece.kind in (NORMAL, USER_DEFINED)}
    found = [
        (-pieces[index].score, index, text[:cut], text[cut:])
        for text, index in known.items()
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def save_tokenizer_files(tokenizer: Tokenizer, special: SpecialTokens, directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template.

    Raises:
        CheckpointError: A special token is not in the vocabulary.
    """
    from tokenizers import processors

    for role, text in special.roles.items():
        if tokenizer.token_to_id(text) is None:
            raise CheckpointError(
                f"{role}: the vocabulary has no token {text!r}.",
                where=str(directory),
                fix="the tokenizer is damaged; download it again.",
            )
    before = [special.roles["bos_token"]] if special.add_bos and "bos_token" in special.roles else []
    after = [special.roles["eos_token"]] if special.add_eos and "eos_token" in special.roles else []
    if before or after:
        added = [(text, tokenizer.token_to_id(text)) for text in {*before, *after}]
        template = processors.TemplateProcessing(single=" ".join([*before, "$A", *after]), special_tokens=added)
        tokenizer.post_processor = template
    tokenizer.save(str(directory / TOKENIZER_FILE))
    config = {"tokenizer_class": _PLAIN_CLASS, "clean_up_tokenization_spaces": False, **special.roles}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (directory / TOKENIZER_CONFIG_FILE).write_text(text, encoding="utf-8")
    if special.chat_template is not None:
        (directory / CHAT_TEMPLATE_FILE).write_text(special.chat_template, encoding="utf-8")
