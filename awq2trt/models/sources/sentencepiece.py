"""Makes tokenizer.json from tokenizer.model, a SentencePiece model as Llama 1, Vicuna and Gemma have it.

In: a directory with tokenizer.model and the files that name its special tokens. Out: a tokenizer with the same ids. The
file is a protobuf message, whose classes transformers carries; the sentencepiece package is not needed.

Source: https://github.com/google/sentencepiece/blob/v0.2.0/src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import read_json
from awq2trt.models.sources.tokenizer_json import (
    CHAT_TEMPLATE_FILE,
    Piece,
    PieceRules,
    SpecialTokens,
    pieces_tokenizer,
    save_tokenizer_files,
)
from awq2trt.models.sources.tokenizer_parts import TOKENIZER_CONFIG_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_FILE: Final = "tokenizer.model"

_UNIGRAM: Final = 1
_BPE: Final = 2
"""Values of the trainer's `model_type`."""

_ROLES: Final = ("bos_token", "eos_token", "unk_token", "pad_token")

_USE_JSON: Final = "put a tokenizer.json of the model beside its weights."


def convert_sentencepiece(source: Path, destination: Path) -> None:
    """Makes tokenizer.json and tokenizer_config.json from a directory's tokenizer.model.

    Raises:
        CheckpointError: The file is not a SentencePiece model, or contradicts the files beside it.
        UnsupportedError: It splits texts in a way that tokenizer.json cannot express.
    """
    path = source / MODEL_FILE
    model = _parse(path)
    said = {**_read_json(source / "special_tokens_map.json"), **_read_json(source / TOKENIZER_CONFIG_FILE)}
    rules = _rules(model, path)
    rules = replace(
        rules,
        dummy_prefix=rules.dummy_prefix and said.get("add_prefix_space") is not False,
        prefix_every_part=said.get("legacy") is not False,
    )
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in model.pieces]
    tokenizer = pieces_tokenizer(pieces, rules, where=str(path))
    _add_tokens(tokenizer, len(pieces), said, source)
    special = SpecialTokens(
        roles=_roles(model, said),
        add_bos=said.get("add_bos_token") is not False,
        add_eos=said.get("add_eos_token") is True,
        chat_template=_chat_template(source, said),
    )
    save_tokenizer_files(tokenizer, special, destination)


def _parse(path: Path) -> Any:
    """Parses the message in the file."""
    from google.protobuf.message import DecodeError
    from transformers.utils import sentencepiece_model_pb2_new as messages

    model: Any = getattr(messages, "ModelProto")()  # noqa: B009  (protobuf makes it when the module is imported)
    try:
        model.ParseFromString(path.read_bytes())
        reason = "" if model.pieces else "it has no tokens"
    except DecodeError as error:
        reason = str(error)
    if reason:
        raise CheckpointError(
            f"not a SentencePiece model ({reason}).",
            where=str(path),
            fix=f"it is damaged, or in another format, such as tiktoken's; {_USE_JSON}",
        )
    return model


def _rules(model: Any, path: Path) -> PieceRules:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    wanted = {
        "model_type": (trainer.model_type, (_UNIGRAM, _BPE)),
        "treat_whitespace_as_suffix": (trainer.treat_whitespace_as_suffix, (False,)),
        "escape_whitespaces": (normalizer.escape_whitespaces, (True,)),
    }
    for name, (found, known) in wanted.items():
        if found not in known:
            raise UnsupportedError(
                f"{name}: expected {' or '.join(map(str, known))}, got {found}.", where=str(path), fix=_USE_JSON
            )
    return PieceRules(
        unigram=trainer.model_type == _UNIGRAM,
        dummy_prefix=normalizer.add_dummy_prefix,
        squeeze_spaces=normalizer.remove_extra_whitespaces,
        charsmap=normalizer.precompiled_charsmap,
    )


def _roles(model: Any, said: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the files name, or else those that the model was trained with."""
    trainer, count = model.trainer_spec, len(model.pieces)
    ids = {role: getattr(trainer, role.replace("_token", "_id")) for role in _ROLES}
    roles = {role: model.pieces[index].piece for role, index in ids.items() if 0 <= index < count}
    for role in _ROLES:
        if role in said:
            text = _text(said[role])
            roles = {name: value for name, value in roles.items() if name != role}
            roles |= {} if text is None else {role: text}
    return roles


def _text(token: object) -> str | None:
    """The text of a special token, which a config stores alone or, like Vicuna's, with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_tokens(tokenizer: Tokenizer, count: int, said: Mapping[str, Any], source: Path) -> None:
    """Adds the tokens that the model's directory has besides tokenizer.model, with the ids that it gives them."""
    from tokenizers import AddedToken

    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    named: dict[str, tuple[int, dict[str, bool]]] = {
        text: (index, {}) for text, index in _read_json(source / "added_tokens.json").items()
    }
    for index, token in (said.get("added_tokens_decoder") or {}).items():
        named[str(token.get("content"))] = (int(index), {flag: bool(token.get(flag)) for flag in flags})
    specials = {_text(said[role]) for role in _ROLES if role in said}
    for text, (index, settings) in sorted(named.items(), key=lambda item: item[1][0]):
        special = settings.pop("special", text in specials)
        token = AddedToken(text, **({"normalized": False} | settings))
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(text) != index:
            raise CheckpointError(
                f"the token {text!r} should have the id {index}, but gets {tokenizer.token_to_id(text)}, since "
                f"{MODEL_FILE} has {count} tokens.",
                where=str(source),
                fix="its tokenizer files belong to different models; download them together.",
            )


def _chat_template(source: Path, said: Mapping[str, Any]) -> str | None:
    path = source / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = said.get("chat_template")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file; empty if there is no file."""
    return read_json(path) if path.is_file() else {}
