"""Reads pictures with texts about them: a folder of pictures with captions, or a .jsonl file with messages.

In: a path. Out: `ImageText`s, whose texts have `MARKER` in place of each picture.

In a folder, a text file of the same name beside each picture has its caption, e.g. `cat.txt` for `cat.jpg`; if there
are no captions at all, the model is to describe the pictures itself. A line of a .jsonl file is `{"image": "cat.jpg",
"messages": [...]}`; the image may be a list. Messages have the keys `role` and `content`; a content is a text or, as
in transformers' chat templates, a list of `{"type": "image"}` and `{"type": "text", "text": ...}`. Instead of messages
there may be `"caption": ...`; or `"captions": [...]`, several people's captions of the picture; or `"question": ...,
"choices": [...], "answer": ...`, answers to choose from and the index of the right one, from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

from awq2trt.errors import CalibrationError, UsageError
from awq2trt.foreign_files import encoding_of, parse_json, reading

MARKER: Final = "<image>"
"""The marker for a picture in a text, as in LLaVA's own prompts."""

END_OF_CHUNK: Final = "<|endofchunk|>"
"""The end of what belongs to a picture, in the texts that OpenFlamingo was trained on."""

_DESCRIBE: Final = "Describe the image."
"""The question that is asked if there is only a caption."""

_QUESTION: Final = f"{MARKER}\n{_DESCRIBE}"

_USER: Final = "user"
_ASSISTANT: Final = "assistant"

_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_JSONL: Final = ".jsonl"
_IMAGE_KEYS: Final = ("image", "images")


@dataclass(frozen=True)
class ImageText:
    """A conversation about pictures.

    Attributes:
        images: The files of the pictures, in the order of the markers.
        messages: Role and text of each message.
        where: The file or line that it comes from.
        captions: What people say of the picture, if it is a caption that is asked for; the first ends the messages.
        choices: Answers to choose from; the right one ends the messages. None if the question is open.
        bare: Whether nothing is known of the picture, and the messages end with the request to describe it.
    """

    images: tuple[Path, ...]
    messages: tuple[tuple[str, str], ...]
    where: str
    captions: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    bare: bool = False

    @staticmethod
    def of_picture(image: Path) -> ImageText:
        """The request to describe a picture."""
        return ImageText((image,), ((_USER, _QUESTION),), str(image), bare=True)

    def described(self, caption: str) -> ImageText:
        """The same with an answer."""
        return replace(self, messages=(*self.messages, (_ASSISTANT, caption)), captions=(caption,), bare=False)

    @property
    def text(self) -> str:
        """Joins everything into one text, with each message behind its role."""
        return "\n".join(f"{role.upper()}: {text}" for role, text in self.messages)

    @property
    def chunks(self) -> str:
        """Joins everything into one text as OpenFlamingo's authors do (arXiv:2308.01390, appendix B).

        What belongs to a picture ends with `END_OF_CHUNK`, except for the last message.
        """
        parts = [_chunk(role, text) for role, text in self.messages]
        return "".join(parts).removesuffix(END_OF_CHUNK)

    def saying(self, answer: str) -> ImageText:
        """The same conversation with another last message."""
        return replace(self, messages=(*self.messages[:-1], (self.messages[-1][0], answer)))

    def behind(self, shots: Sequence[ImageText]) -> ImageText:
        """The same conversation behind others, in one."""
        images = tuple(image for shot in shots for image in shot.images)
        messages = tuple(message for shot in shots for message in shot.messages)
        return replace(self, images=images + self.images, messages=messages + self.messages)


def _chunk(role: str, text: str) -> str:
    """A message in OpenFlamingo's form: a question behind the pictures that it begins with, or a finished answer."""
    if role != _USER:
        return text + END_OF_CHUNK if role == _ASSISTANT else text
    question = text
    while question.startswith(MARKER):
        question = question.removeprefix(MARKER).removeprefix("\n")
    pictures = MARKER * (text.count(MARKER) - question.count(MARKER))
    return pictures + ("Output:" if question == _DESCRIBE else f"Question:{question} Short answer:")


def is_image_text(path: Path) -> bool:
    """Whether `read_pairs` accepts a path: a folder, or a .jsonl file whose first line names a picture."""
    if path.is_dir():
        return True
    if path.suffix != _JSONL or not path.is_file():
        return False
    with path.open(encoding=encoding_of(path), errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and any(key in row for key in _IMAGE_KEYS)


def read_pairs(path: Path) -> tuple[ImageText, ...]:
    """Reads a folder or a .jsonl file.

    Raises:
        UsageError: There is no such path; a line, a caption or a picture is missing or makes no sense.
        CalibrationError: It is empty.
    """
    if not path.is_dir() and not path.is_file():
        raise UsageError(
            "there is no such folder or file.",
            where=str(path),
            fix="name a folder of pictures with captions, or a .jsonl file.",
        )
    with reading("captions of images", path, fix="check the file, and its permissions.", error=UsageError):
        pairs = tuple(_in_folder(path) if path.is_dir() else _in_jsonl(path))
    if not pairs:
        raise CalibrationError(
            "expected pictures with captions, found none.",
            where=str(path),
            fix="put a text file with a caption beside each picture, cat.jpg and cat.txt, or name a .jsonl file.",
        )
    return pairs


def _in_folder(folder: Path) -> Iterator[ImageText]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    bare = not any(image.with_suffix(".txt").is_file() for image in images)
    for image in images:
        pair, caption = ImageText.of_picture(image), image.with_suffix(".txt")
        if bare:
            yield pair
            continue
        if not caption.is_file():
            raise UsageError(
                f"expected the picture's caption in {caption.name}, but there is no such file.",
                where=str(image),
                fix="write one, or remove the picture; or remove all captions, and the model describes the pictures.",
            )
        with reading("a caption in UTF-8", caption, fix="save it as UTF-8.", error=UsageError):
            yield pair.described(caption.read_text(encoding=encoding_of(caption)).strip())


def _in_jsonl(path: Path) -> Iterator[ImageText]:
    with reading("text in UTF-8", path, fix="save it as UTF-8.", error=UsageError):
        lines = path.read_text(encoding=encoding_of(path)).split("\n")  # JSON may hold other ends of lines
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _pair(line, path.parent, f"{path}, line {number}")


def _pair(line: str, folder: Path, where: str) -> ImageText:
    with reading("JSON", where, fix="mend the line.", error=UsageError):
        row = parse_json(line)
    if not isinstance(row, dict):
        raise _refusal("a JSON object", row, where)
    given = next((row[key] for key in _IMAGE_KEYS if key in row), None)
    several = given if isinstance(given, list) else [given]
    names = [name for name in several if isinstance(name, str) and name]
    if not names or len(names) != len(several):
        raise _refusal("the name of a picture, or a list of them, under `image`", given, where)
    messages, captions, choices = _conversation(row, where)
    markers = sum(text.count(MARKER) for _, text in messages)
    if markers == 0:  # the pictures come first, as in LLaVA's own data
        (role, text), *rest = messages
        messages = ((role, f"{MARKER}\n" * len(names) + text), *rest)
    elif markers != len(names):
        raise _refusal(f"as many {MARKER} as pictures ({len(names)})", markers, where)
    return ImageText(tuple(folder / name for name in names), messages, where, captions, choices)


def _conversation(
    row: Mapping[str, Any], where: str
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...]]:
    """Messages, captions and choices of a row."""
    if "choices" in row:
        question, choices, answer = row.get("question"), row["choices"], row.get("answer")
        if not isinstance(question, str) or not _are_texts(choices):
            raise _refusal("a text as `question`, and a list of texts as `choices`", (question, choices), where)
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise _refusal(f"the place of the right choice, 0 to {len(choices) - 1}, as `answer`", answer, where)
        return ((_USER, question), (_ASSISTANT, choices[answer])), (), tuple(choices)
    captions = row.get("captions", [row["caption"]] if isinstance(row.get("caption"), str) else None)
    if captions is not None:
        if not _are_texts(captions):
            raise _refusal("a list of texts as `captions`", captions, where)
        return ((_USER, _QUESTION), (_ASSISTANT, captions[0])), tuple(captions), ()
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _refusal("a list under `messages`, or `caption`, `captions` or `choices`", messages, where)
    return tuple(_message(message, where) for message in messages), (), ()


def _are_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) and value for value in values)


def _message(message: object, where: str) -> tuple[str, str]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str):
        raise _refusal("messages with `role` and `content`", message, where)
    return role, _text(message.get("content"), where)


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _refusal("a text, or a list of pictures and texts, as `content`", content, where)
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            parts.append(f"{MARKER}\n")
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            raise _refusal('{"type": "image"} or {"type": "text", "text": ...}', part, where)
    return "".join(parts)


def _refusal(expected: str, got: object, where: str) -> UsageError:
    return UsageError(f"expected {expected}, got {str(got)[:80]!r}.", where=where, fix="correct the line.")
