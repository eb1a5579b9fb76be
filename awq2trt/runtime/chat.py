"""Text in and out: chat template, special tokens, and text that streams while tokens arrive.

In: a model's directory, a prompt, and later the tokens of the answer. Out: the prompt's tokens, and pieces of text.
transformers reads the tokenizer files that `quantize` saved beside the weights, only local files and no remote code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from awq2trt.artifact.records import TokensRecord
from awq2trt.errors import ArtifactError, UsageError
from awq2trt.foreign_files import read_json, reading
from awq2trt.images.pairs import MARKER
from awq2trt.models.sources.base import PROCESSOR_TEMPLATE_FILE
from awq2trt.models.sources.tokenizer_parts import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, reading_tokenizer
from awq2trt.models.vision.pooled import BEFORE_IMAGE
from awq2trt.runtime.template import render_template

GENERATION_CONFIG_FILE: Final = "generation_config.json"

Around = tuple[Sequence[int], Sequence[int]]
"""Tokens before and after something."""

NOTHING_AROUND: Final[Around] = ((), ())

Message = Mapping[str, str]
"""A message of a conversation: its `role` (`system`, `user` or `assistant`) and `content`."""

_PLAIN_CLASSES: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of the class that reads only tokenizer.json, before and since transformers 5."""

_QUESTION: Final = "question"
_ANSWER: Final = "answer"
"""The answer in a conversation that shows how a template ends a turn."""

_TEMPLATE_ERRORS: Final = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that a template may raise, since it is a program."""

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""The character that decoders print for bytes that do not form a complete character yet."""


class ChatTokenizer:
    """A tokenizer with its chat template and special tokens.

    Attributes:
        special: Its special tokens. An answer ends at those of generation_config.json, at its own end token, and at the
            one that its chat template writes behind an answer.
    """

    def __init__(self, tokenizer: Any, special: TokensRecord) -> None:
        self._tokenizer = tokenizer
        self.special = special

    @staticmethod
    def load(directory: Path) -> ChatTokenizer:
        """Reads the tokenizer files of a directory.

        Raises:
            ArtifactError: The files are missing or cannot be read.
        """
        fix = "put the model's tokenizer files into the directory, or export the model again."
        with reading_tokenizer(directory, fix=fix, error=ArtifactError):
            tokenizer = _tokenizer_class(directory).from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            tokenizer.chat_template = tokenizer.chat_template or _processors_template(directory)
            special = TokensRecord(
                bos=tokenizer.bos_token_id,
                eos=tokenizer.eos_token_id,
                pad=tokenizer.pad_token_id,
                unk=tokenizer.unk_token_id,
                stop=_stop_tokens(directory, tokenizer),
            )
        return ChatTokenizer(tokenizer, special)

    def encode(
        self,
        text: str,
        image_token: int | None = None,
        around: Around = NOTHING_AROUND,
        spell: Callable[[str], str] = str,
    ) -> list[int]:
        """Returns the tokens of plain text that the model will continue.

        Args:
            text: The text; for a model that sees, with a `MARKER` where an image stands.
            image_token: Token that each marker becomes; None for a model of text.
            around: Tokens that go before and after it.
            spell: Writes what stands for images in the place of markers, where that is more than a token.
        """
        return self._tokens(spell(text), image_token, around, add_special_tokens=True)

    def encode_messages(
        self,
        messages: Sequence[Message],
        image_token: int | None = None,
        around: Around = NOTHING_AROUND,
        spell: Callable[[str], str] = str,
    ) -> list[int]:
        """Returns the tokens of a conversation in the model's chat template, up to the start of the assistant's turn.

        Args:
            messages: The messages so far, in order; with markers like those of `encode`.
            image_token: Token that each marker becomes; None for a model of text.
            around: Tokens that go before and after it where the template has left the marker as it is.
            spell: As of `encode`.

        Raises:
            UsageError: The model has no chat template, or its template refuses the messages or has no place for images.
        """
        if not self._tokenizer.chat_template:
            raise no_template()
        if image_token is None:
            plain = self._render([dict(message) for message in messages])
            return self._tokens(plain, None, around, add_special_tokens=False)
        parts = self._takes_parts(image_token)
        text = self._render([in_parts(message) if parts else dict(message) for message in messages])
        wanted = sum(message["content"].count(MARKER) for message in messages)
        if sum(map(text.count, self._places(image_token))) < wanted:
            raise UsageError(
                f"the model's chat template has no place for {wanted} images.",
                where="chat template",
                fix=f"write the prompt as the model wants it, with {MARKER} where an image stands, and use --raw.",
            )
        return self._tokens(spell(text), image_token, around, add_special_tokens=False)

    def _places(self, image_token: int) -> set[str]:
        """Texts that stand for an image: our marker, the model's own token, and what Gemma 3's template writes."""
        return {MARKER, BEFORE_IMAGE, str(self._tokenizer.convert_ids_to_tokens(image_token))}

    def _takes_parts(self, image_token: int) -> bool:
        """Whether the chat template takes a message as a list of images and texts, as well or only."""

        def rendered(message: Mapping[str, Any]) -> str:
            try:
                return self._render([message])
            except UsageError:
                return ""

        seen = rendered(in_parts(user_message(f"{MARKER}{_QUESTION}")))
        if _QUESTION in seen and any(place in seen for place in self._places(image_token)):
            return True
        return _QUESTION not in rendered(user_message(_QUESTION))

    def _render(self, conversation: Sequence[Mapping[str, Any]]) -> str:
        """Text of a conversation in the chat template."""
        with reading("a chat template", "chat template", fix="use --raw.", error=UsageError):
            template = self._tokenizer.get_chat_template()
        variables = {
            **self._tokenizer.special_tokens_map,
            "messages": [*conversation],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        return render_template(template, variables)

    def _tokens(self, text: str, image_token: int | None, around: Around, *, add_special_tokens: bool) -> list[int]:
        """Tokens of a text; where the tokenizer does not know the marker, of the texts between markers."""

        def encoded(piece: str, *, special: bool = False) -> list[int]:
            return list(self._tokenizer(piece, add_special_tokens=special).input_ids)

        with reading("a tokenizer that accepts this text", self._tokenizer.name_or_path, error=ArtifactError):
            tokens = encoded(text, special=add_special_tokens)
            if image_token is None:
                return tokens
            before, after = around
            known = self._tokenizer.convert_tokens_to_ids(MARKER) == image_token  # else the text may spell others
            if known and tokens.count(image_token) == text.count(MARKER) and not before and not after:
                return tokens
            first, *rest = text.split(MARKER)
            tokens = encoded(first, special=add_special_tokens)
            for piece in rest:
                tokens += [*before, image_token, *after, *encoded(piece)]
            return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        with reading("a tokenizer of this model", self._tokenizer.name_or_path, error=ArtifactError):
            text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)


def no_template() -> UsageError:
    """The error that says that a model cannot be asked in messages."""
    return UsageError(
        "this model has no chat template.", where="--prompt", fix="use --raw to continue plain text instead."
    )


def user_message(content: str) -> Message:
    """Makes a message from the user."""
    return {"role": "user", "content": content}


def system_message(content: str) -> Message:
    """Makes a message that tells the model its role."""
    return {"role": "system", "content": content}


def stream_text(
    tokens: Iterable[int], decode: Callable[[Sequence[int]], str], stop_strings: Sequence[str] = ()
) -> Iterator[str]:
    """Turns tokens into pieces of text, each as soon as it is certain.

    It holds back characters whose bytes are incomplete, and an ending that may be the beginning of a stop string. It
    ends before the stop string that is completed first; if several are completed there, before the longest.
    """
    if "" in stop_strings:
        raise UsageError("an empty stop string would end every answer.", where="--stop")
    pending = ""
    for piece in _decoded_pieces(tokens, decode):
        pending += piece
        found = [(begin + len(stop), begin) for stop in stop_strings if (begin := pending.find(stop)) >= 0]
        if found:
            _, begin = min(found)
            if begin:
                yield pending[:begin]
            return
        certain = len(pending) - _held_back(pending, stop_strings)
        if certain:
            yield pending[:certain]
            pending = pending[certain:]
    if pending:
        yield pending


def _decoded_pieces(tokens: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Yields the text of each token in its context: what it adds to the text of the tokens before it.

    A token's text depends on its neighbours (spaces, characters of several bytes), so the tokens of the last piece
    are decoded again together with the new ones.
    """
    context: list[int] = []
    fresh: list[int] = []
    for token in tokens:
        fresh.append(token)
        before, whole = decode(context), decode(context + fresh)
        if whole.endswith(_INCOMPLETE) or len(whole) <= len(before):
            continue
        yield whole[len(before) :]
        context, fresh = fresh, []
    if fresh:
        tail = decode(context + fresh)[len(decode(context)) :]
        if tail:
            yield tail


def in_parts(message: Message) -> dict[str, Any]:
    """A message as a list of images and texts, as transformers' templates of models that see want it."""
    texts = message["content"].split(MARKER)
    parts: list[dict[str, str]] = []
    for index, text in enumerate(texts):
        parts += [{"type": "image"}] * (index > 0)
        spoken = text.strip("\n") if len(texts) > 1 else text
        parts += [{"type": "text", "text": spoken}] if spoken else []
    return {**message, "content": parts}


def _held_back(text: str, stop_strings: Sequence[str]) -> int:
    """Length of the longest ending of `text` with which a stop string begins."""
    longest = max((len(stop) - 1 for stop in stop_strings), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_strings):
            return length
    return 0


def _tokenizer_class(directory: Path) -> Any:
    """Returns the class that reads the tokenizer.

    `AutoTokenizer` takes three seconds to import PyTorch and finds the same class; if tokenizer_config.json names the
    plain class, that class is used directly.
    """
    path = directory / TOKENIZER_CONFIG_FILE
    named = read_json(path, error=ArtifactError).get("tokenizer_class") if path.is_file() else None
    if named in _PLAIN_CLASSES and (directory / TOKENIZER_FILE).is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _processors_template(directory: Path) -> str | None:
    """The chat template of a processor, where older models that see have theirs; None if there is no such template."""
    path = directory / PROCESSOR_TEMPLATE_FILE
    template = read_json(path, error=ArtifactError).get("chat_template") if path.is_file() else None
    return template if isinstance(template, str) else None


def _turn_end(tokenizer: Any) -> int | None:
    """Returns the added token that the chat template writes right behind an answer; None if there is none.

    Models that were tuned on the template end their turns with it, even if their configs do not say so.
    """
    if not tokenizer.chat_template:
        return None
    conversation = [user_message(_QUESTION), {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except _TEMPLATE_ERRORS:
        return None  # the template does not accept this conversation; a real one is refused with the reason
    _, found, rest = text.rpartition(_ANSWER)
    following = tokenizer(rest.lstrip(), add_special_tokens=False).input_ids if found else []
    return int(following[0]) if following and following[0] in tokenizer.added_tokens_decoder else None


def _stop_tokens(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """Returns the tokens that end an answer for generation_config.json, the tokenizer or the chat template."""
    stops: set[int] = set()
    path = directory / GENERATION_CONFIG_FILE
    if path.is_file():
        configured = read_json(path, error=ArtifactError, fix="export the model again.").get("eos_token_id")
        if configured is not None:
            stops.update([configured] if isinstance(configured, int) else configured)
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    turn_end = _turn_end(tokenizer)
    if turn_end is not None:
        stops.add(turn_end)
    return tuple(sorted(stops))
