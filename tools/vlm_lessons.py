"""What the small vision-language model is taught: conversations about pictures in batches of tokens and pixels.

In: drawings of `vlm_pictures`. Out: `Lesson`s: token ids in which each picture has its place, what is to be said at
which of them, and the pictures. A conversation has one or several turns, each about a picture of its own, as few-shot
prompts have; its text is that of `awq2trt.images.pairs.ImageText`, which is how LLaVA 1.5 is asked.

Behind each answer an end of text is learned, even where the conversation goes on: a model then ends its answers in any
place, and reads conversations in which no end of text stands.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor
from vlm_pictures import WORDINGS, Drawing, Question

from awq2trt.text.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKER: Final = "<image>"
TURNS: Final = (1, 2, 3, 5, 9)
"""Turns of a conversation, as likely as each other: up to eight shots before the question."""

_CAPTIONS_ALONE: Final = 0.5
"""Share of the conversations that are captions, all of one wording."""

_IGNORED: Final = -100
_BEGIN, _BETWEEN = "USER: ", "\nUSER: "
_DRAWN_AT_ONCE: Final = 256

MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's image processor takes off channels, and divides them by."""


@dataclass(frozen=True)
class Turn:
    """A question about a picture, and its answer.

    Attributes:
        picture: Its number in the `Gallery`.
        question: With the answer.
        learned: Whether a model shall say so; otherwise it only reads it.
    """

    picture: int
    question: Question
    learned: bool = True


@dataclass(frozen=True)
class Lesson:
    """A batch of conversations.

    Attributes:
        ids: int64 [conversations, longest], padded behind.
        labels: What comes next according to the lesson, or `_IGNORED`; same shape.
        pictures: Numbers of all pictures, int64, in the order of their places.
    """

    ids: Tensor
    labels: Tensor
    pictures: Tensor

    def said(self) -> tuple[Tensor, Tensor]:
        """Rows and columns where something is to be said, int64 [T] each."""
        rows, columns = (self.labels != _IGNORED).nonzero(as_tuple=True)
        return rows, columns


@dataclass(frozen=True)
class Gallery:
    """Pictures that lessons are about.

    Attributes:
        drawings: What they show.
        pixels: uint8 [pictures, height, width, 3].
    """

    drawings: tuple[Drawing, ...]
    pixels: Tensor

    @classmethod
    def draw(cls, drawings: Sequence[Drawing]) -> Gallery:
        """Draws pictures, with all cores: before a GPU is used, which child processes would not survive."""
        pieces = [drawings[start : start + _DRAWN_AT_ONCE] for start in range(0, len(drawings), _DRAWN_AT_ONCE)]
        with ProcessPoolExecutor(min(len(pieces), os.cpu_count() or 1)) as pool:
            drawn = np.concatenate(list(pool.map(_draw, pieces)))
        return cls(tuple(drawings), torch.from_numpy(drawn))

    def on(self, device: str) -> Gallery:
        """The same with pixels on a device."""
        return replace(self, pixels=self.pixels.to(device))

    def prepared(self, numbers: Tensor) -> Tensor:
        """Pictures as CLIP's processor makes them of pictures of the right size, fp32 [pictures, 3, height, width]."""
        chosen = self.pixels[numbers.to(self.pixels.device)].permute(0, 3, 1, 2).float() / 255
        mean, std = (chosen.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return (chosen - mean) / std


@dataclass(frozen=True)
class Teacher:
    """Makes lessons.

    Attributes:
        tokenizer: Tokenizer of the model.
        image_tokens: Tokens that stand for a picture.
    """

    tokenizer: PreTrainedTokenizerBase
    image_tokens: int
    _known: dict[tuple[str, str, bool], tuple[list[int], int, int]] = field(default_factory=dict)

    @cached_property
    def _marker(self) -> int:
        return int(self.tokenizer.get_vocab()[MARKER])

    def lessons(self, gallery: Gallery, count: int, pictures: int, seed: int) -> Iterator[Lesson]:
        """Random lessons.

        Args:
            gallery: What they are about.
            count: How many.
            pictures: In each, at most, but those of a conversation at least.
            seed: The same seed gives the same lessons.
        """
        chance = random.Random(seed)
        for _ in range(count):
            turns = chance.choice(TURNS)
            conversations = max(1, pictures // turns)
            yield self.lesson([_conversation(gallery, turns, chance) for _ in range(conversations)])

    def lesson(self, conversations: Sequence[Sequence[Turn]]) -> Lesson:
        """A lesson of conversations."""
        rows = [self._row(turns) for turns in conversations]
        longest = max(len(ids) for ids, _ in rows)
        # Padding stands behind, where causal attention lets nothing see it.
        ids = torch.full((len(rows), longest), int(self.tokenizer.eos_token_id))
        labels = torch.full((len(rows), longest), _IGNORED)
        for row, (tokens, said) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(said)] = torch.tensor(said)
        return Lesson(ids, labels, torch.tensor([turn.picture for turns in conversations for turn in turns]))

    def _row(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Tokens of a conversation, and what is to be said at each of them."""
        ids = encode(self.tokenizer, _BEGIN)
        labels: list[int] = []
        for number, turn in enumerate(turns, start=1):
            ids = [*ids, *[self._marker] * self.image_tokens]
            tokens, start, end = self._piece(turn.question, last=number == len(turns))
            labels += [_IGNORED] * (len(ids) - len(labels))
            ids = [*ids, *tokens]
            if turn.learned:
                said = [*tokens[start:end], int(self.tokenizer.eos_token_id)]
                labels += [*[_IGNORED] * (start - 1), *said]
        return ids, [*labels, *[_IGNORED] * (len(ids) - len(labels))]

    def _piece(self, question: Question, *, last: bool) -> tuple[list[int], int, int]:
        """Tokens from behind a picture to the next one or the end, and where among them the answer begins and ends."""
        key = (question.text, question.answer, last)
        if key not in self._known:
            asked = f"\n{question.text}\nASSISTANT:"
            told = f"{asked} {question.answer}"
            whole = encode(self.tokenizer, told if last else told + _BETWEEN)
            self._known[key] = (whole, len(encode(self.tokenizer, asked)), len(encode(self.tokenizer, told)))
        return self._known[key]


def _conversation(gallery: Gallery, turns: int, chance: random.Random) -> list[Turn]:
    """Turns about random pictures. A caption of another wording than the first is learned once one was read."""
    captions, wording = chance.random() < _CAPTIONS_ALONE, chance.randrange(WORDINGS) if turns > 1 else 0
    made = []
    for number in range(turns):
        picture = chance.randrange(len(gallery.drawings))
        drawing = gallery.drawings[picture]
        question = drawing.caption(wording) if captions else chance.choice(drawing.questions)
        made.append(Turn(picture, question, learned=number > 0 or not captions or wording == 0))
    return made


def _draw(drawings: Sequence[Drawing]) -> np.ndarray:
    """uint8 [pictures, height, width, 3]."""
    return np.stack([np.asarray(drawing.picture()) for drawing in drawings])
