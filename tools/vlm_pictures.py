"""Pictures of coloured shapes and digits, with captions and questions whose answers are known.

    python tools/vlm_pictures.py OUTPUT [--pictures 256] [--seed 0] [--unseen] [--wording 0]

In: a seed. Out: `Drawing`s; or a folder of PNG files with a text file beside each, its caption, and three JSONL files:
`questions.jsonl` with `image` and `messages`, one question a line; `captions.jsonl` with `image` and `captions`; and
`choices.jsonl` with `image`, `question`, `choices` and `answer`, one question a picture.

A picture shows one to four equal shapes of one colour in one place, or a digit of a colour in one place. Pairs of
colour and shape (or digit) are split in two: `SEEN` ones are for training, `UNSEEN` ones for measuring, so that a model
is right about the latter only if it sees colour and shape, and does not remember pictures. Each colour and each shape
is in both.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

SIDE: Final = 64
"""Pixels of a picture's height and width."""

COLOURS: Final = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 180),
    "white": (245, 245, 245),
}
SHAPES: Final = ("circle", "square", "triangle", "cross")
DIGITS: Final = tuple("0123456789")
COUNTS: Final = ("one", "two", "three", "four")
PLACES: Final = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
"""Place -> column and row of the quarter."""

_ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "colour": tuple(COLOURS),
    "place": tuple(PLACES),
    "digit": DIGITS,
    "shape": SHAPES,
    "count": COUNTS,
}

_PAIRS: Final = tuple((colour, thing) for colour in COLOURS for thing in (*SHAPES, *DIGITS))
_ORDER: Final = {colour: index for index, colour in enumerate(COLOURS)}
_THINGS: Final = {thing: index for index, thing in enumerate((*SHAPES, *DIGITS))}
UNSEEN: Final = tuple(pair for pair in _PAIRS if (_ORDER[pair[0]] + _THINGS[pair[1]]) % len(COLOURS) == 0)
"""One colour in six of every thing."""

SEEN: Final = tuple(pair for pair in _PAIRS if pair not in UNSEEN)

WORDINGS: Final = 3
"""Ways to say what a picture shows. A model learns to use the first, unless what it read before has another one."""

_CHOICES: Final = 4
"""Answers to choose from, as far as there are so many."""

_BACKGROUND: Final = 50
"""Brightest grey behind; every colour is brighter in one channel at least."""

_CELLS: Final = ((-1, -1), (1, -1), (-1, 1), (1, 1))
"""Where up to four shapes lie within their quarter, from its middle."""

_SPREAD: Final = 8
"""Pixels from there to the middle of a shape: shapes reach 5 of them and stray by one, and must not touch."""


@dataclass(frozen=True)
class Question:
    """What is asked of a picture.

    Attributes:
        kind: `colour`, `shape`, `digit`, `count`, `place` or `caption`.
        text: The question.
        answer: The right answer.
    """

    kind: str
    text: str
    answer: str

    @property
    def answers(self) -> tuple[str, ...]:
        """All that there could be; of a caption, none but the right one."""
        return _ANSWERS.get(self.kind, (self.answer,))


@dataclass(frozen=True)
class Drawing:
    """What a picture shows.

    Attributes:
        colour: In `COLOURS`.
        thing: In `SHAPES` or `DIGITS`.
        count: How many, from 1 to 4; a digit is alone.
        place: In `PLACES`.
        seed: Seed of everything without a name: sizes, positions within the place, the grey behind, noise.
    """

    colour: str
    thing: str
    count: int
    place: str
    seed: int

    @property
    def is_digit(self) -> bool:
        """Whether it shows a digit."""
        return self.thing in DIGITS

    @property
    def captions(self) -> tuple[str, ...]:
        """Sentences that say the same, one in each of the `WORDINGS` ways."""
        if self.is_digit:
            what = f"{self.colour} digit {self.thing}"
            return (
                f"A {what} at the {self.place}.",
                f"The {what} is at the {self.place}.",
                f"At the {self.place} there is a {what}.",
            )
        what = f"{COUNTS[self.count - 1]} {self.colour} {_plural(self.thing, self.count)}"
        verb = "is" if self.count == 1 else "are"
        return (
            f"{what.capitalize()} at the {self.place}.",
            f"There {verb} {what} at the {self.place}.",
            f"At the {self.place} there {verb} {what}.",
        )

    def caption(self, wording: int) -> Question:
        """The question for a caption, answered in one of the `WORDINGS` ways."""
        return Question("caption", "Describe the image.", self.captions[wording])

    @property
    def questions(self) -> tuple[Question, ...]:
        """Everything that can be asked of it, its caption first."""
        common = (
            self.caption(0),
            Question("colour", "Which colour is it?", self.colour),
            Question("place", "Where is it?", self.place),
        )
        if self.is_digit:
            return (*common, Question("digit", "Which digit is it?", self.thing))
        return (
            *common,
            Question("shape", "Which shape is it?", self.thing),
            Question("count", "How many shapes are there?", COUNTS[self.count - 1]),
        )

    def picture(self) -> Image.Image:
        """Draws it, `SIDE` by `SIDE` pixels of RGB; the same drawing gives the same pixels."""
        chance = random.Random(self.seed)
        grey = chance.randrange(_BACKGROUND)
        image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
        pen = ImageDraw.Draw(image)
        column, row = PLACES[self.place]
        quarter = SIDE // 2
        middle = (column * quarter + quarter // 2, row * quarter + quarter // 2)
        colour = COLOURS[self.colour]
        if self.is_digit:
            at = (middle[0] + chance.randint(-3, 3), middle[1] + chance.randint(-3, 3))
            pen.text(at, self.thing, fill=colour, font=ImageFont.load_default(chance.randint(20, 26)), anchor="mm")
            return image
        for across, down in chance.sample(_CELLS, self.count):
            x = middle[0] + _SPREAD * across + chance.randint(-1, 1)
            y = middle[1] + _SPREAD * down + chance.randint(-1, 1)
            _draw_shape(pen, self.thing, (x, y), chance.randint(4, 5), colour)
        return image


def drawings(count: int, seed: int, pairs: tuple[tuple[str, str], ...] = SEEN) -> Iterator[Drawing]:
    """Random drawings, half of shapes and half of digits.

    Args:
        count: How many.
        seed: The same seed gives the same drawings.
        pairs: Colours and things to draw from: `SEEN` or `UNSEEN`.
    """
    chance = random.Random(seed)
    shapes = [pair for pair in pairs if pair[1] in SHAPES]
    digits = [pair for pair in pairs if pair[1] in DIGITS]
    for _ in range(count):
        shows_shapes = chance.random() < 0.5
        colour, thing = chance.choice(shapes if shows_shapes else digits)
        number = chance.randint(1, len(COUNTS)) if shows_shapes else 1
        yield Drawing(colour, thing, number, chance.choice(list(PLACES)), chance.randrange(2**32))


def write_pictures(folder: Path, shown: Sequence[Drawing], wording: int = 0) -> None:
    """Writes pictures, captions and questions into a folder, which is made.

    Args:
        folder: Where to.
        shown: What the pictures show.
        wording: Number of the captions' wording, below `WORDINGS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions: list[Mapping[str, object]] = []
    captions: list[Mapping[str, object]] = []
    choices: list[Mapping[str, object]] = []
    for number, drawing in enumerate(shown):
        name, caption = f"{number:05}.png", drawing.captions[wording]
        drawing.picture().save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
        captions.append({"image": name, "captions": [caption]})
        choices.append({"image": name, **_choice(drawing, number)})
        for question in (drawing.caption(wording), *drawing.questions[1:]):
            messages = [
                {"role": "user", "content": f"<image>\n{question.text}"},
                {"role": "assistant", "content": question.answer},
            ]
            questions.append({"image": name, "kind": question.kind, "messages": messages})
    for file, rows in (("questions.jsonl", questions), ("captions.jsonl", captions), ("choices.jsonl", choices)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _choice(drawing: Drawing, number: int) -> dict[str, object]:
    """A question with answers to choose from; pictures one after another are asked different ones."""
    asked = [question for question in drawing.questions if len(question.answers) > 1]
    question, chance = asked[number % len(asked)], random.Random(drawing.seed)
    wrong = [answer for answer in question.answers if answer != question.answer]
    choices = [question.answer, *chance.sample(wrong, min(_CHOICES, len(question.answers)) - 1)]
    chance.shuffle(choices)
    return {"question": question.text, "choices": choices, "answer": choices.index(question.answer)}


def _plural(thing: str, count: int) -> str:
    if count == 1:
        return thing
    return thing + ("es" if thing.endswith("s") else "s")


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, at: tuple[int, int], reach: int, colour: tuple[int, int, int]
) -> None:
    x, y = at
    box = (x - reach, y - reach, x + reach, y + reach)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - reach), (x - reach, y + reach), (x + reach, y + reach)], fill=colour)
    else:
        pen.line((x - reach, y - reach, x + reach, y + reach), fill=colour, width=2)
        pen.line((x - reach, y + reach, x + reach, y - reach), fill=colour, width=2)


def main() -> None:
    """Writes a folder of pictures."""
    parser = argparse.ArgumentParser(description="Pictures of coloured shapes and digits, with captions and questions.")
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--pictures", type=int, default=256, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures")
    parser.add_argument("--unseen", action="store_true", help="pairs of colour and thing that training leaves out")
    parser.add_argument("--wording", type=int, choices=range(WORDINGS), default=0, help="of the captions")
    arguments = parser.parse_args()
    if arguments.pictures < 1:
        parser.error(f"--pictures: expected 1 or more, got {arguments.pictures}")
    pairs = UNSEEN if arguments.unseen else SEEN
    write_pictures(arguments.output, list(drawings(arguments.pictures, arguments.seed, pairs)), arguments.wording)


if __name__ == "__main__":
    main()
