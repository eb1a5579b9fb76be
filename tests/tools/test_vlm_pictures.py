"""The generated pictures show what their captions say, and what is measured is not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from vlm_pictures import COLOURS, DIGITS, PLACES, SEEN, SHAPES, SIDE, UNSEEN, Drawing, drawings, write_pictures

from awq2trt.images.pairs import is_image_text, read_pairs


def _pixels(drawing: Drawing) -> np.ndarray:
    return np.asarray(drawing.picture())


def _islands(drawn: np.ndarray) -> int:
    """How many connected regions a mask [rows, columns] has, neighbours being the eight around a pixel."""
    left = set(zip(*np.nonzero(drawn), strict=True))
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            row, column = edge.pop()
            around = {(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)}
            edge.extend(left & around)
            left -= around
    return count


@pytest.mark.parametrize("pairs", [SEEN, UNSEEN])
def test_pictures_show_what_they_say(pairs: tuple[tuple[str, str], ...]) -> None:
    for drawing in drawings(80, seed=3, pairs=pairs):
        pixels = _pixels(drawing)
        drawn = (pixels != pixels[SIDE // 2, 0]).any(axis=-1)  # nothing lies at the left edge
        rows, columns = np.nonzero(drawn)
        place = (int(columns.mean() >= SIDE / 2), int(rows.mean() >= SIDE / 2))
        assert place == PLACES[drawing.place], drawing
        assert (pixels[drawn] == COLOURS[drawing.colour]).all(axis=-1).any(), drawing
        if not drawing.is_digit:
            assert _islands(drawn) == drawing.count, drawing


def test_shapes_and_digits_look_different() -> None:
    looks = {_pixels(Drawing("red", thing, 1, "top left", seed=5)).tobytes() for thing in (*SHAPES, *DIGITS)}
    assert len(looks) == len(SHAPES) + len(DIGITS)


def test_a_seed_gives_the_same_pictures() -> None:
    first, second = list(drawings(20, seed=7)), list(drawings(20, seed=7))
    assert first == second
    assert all((_pixels(one) == _pixels(other)).all() for one, other in zip(first, second, strict=True))
    assert first != list(drawings(20, seed=8))


def test_what_is_measured_is_not_trained_on() -> None:
    assert not set(SEEN) & set(UNSEEN)
    for pairs in (SEEN, UNSEEN):
        assert {thing for _, thing in pairs} == {*SHAPES, *DIGITS}
        assert {colour for colour, _ in pairs} == set(COLOURS)
    assert {(drawing.colour, drawing.thing) for drawing in drawings(300, seed=1, pairs=SEEN)} <= set(SEEN)


def test_captions_and_answers_in_words() -> None:
    several = Drawing("blue", "cross", 3, "bottom left", seed=0)
    assert several.captions[:2] == (
        "Three blue crosses at the bottom left.",
        "There are three blue crosses at the bottom left.",
    )
    assert {question.kind: question.answer for question in several.questions} == {
        "caption": "Three blue crosses at the bottom left.",
        "colour": "blue",
        "place": "bottom left",
        "shape": "cross",
        "count": "three",
    }
    digit = Drawing("white", "7", 1, "top right", seed=0)
    assert digit.captions[0] == "A white digit 7 at the top right."
    assert digit.questions[-1].answer == "7"


def test_calibration_reads_the_folder_and_its_questions(tmp_path: Path) -> None:
    shown = list(drawings(5, seed=2))
    write_pictures(tmp_path / "pictures", shown)
    assert [pair.messages[-1][1] for pair in read_pairs(tmp_path / "pictures")] == [one.captions[0] for one in shown]
    questions = tmp_path / "pictures" / "questions.jsonl"
    assert is_image_text(questions)
    assert len(read_pairs(questions)) == sum(len(one.questions) for one in shown)
    rows = [json.loads(line) for line in (tmp_path / "pictures" / "captions.jsonl").read_text().splitlines()]
    assert [row["captions"] for row in rows] == [[one.captions[0]] for one in shown]


def test_a_folder_has_one_wording(tmp_path: Path) -> None:
    shown = list(drawings(5, seed=2))
    write_pictures(tmp_path, shown, wording=2)
    wanted = [one.captions[2] for one in shown]
    assert [pair.captions for pair in read_pairs(tmp_path / "captions.jsonl")] == [(caption,) for caption in wanted]
    assert [pair.messages[-1][1] for pair in read_pairs(tmp_path)] == wanted
    questions = [pair.messages[-1][1] for pair in read_pairs(tmp_path / "questions.jsonl")]
    assert [answer for answer in questions if answer.endswith(".")] == wanted


def test_choices_hold_the_right_answer_once(tmp_path: Path) -> None:
    shown = list(drawings(40, seed=4))
    write_pictures(tmp_path, shown)
    pairs = read_pairs(tmp_path / "choices.jsonl")
    places, kinds = set(), set()
    for pair, drawing in zip(pairs, shown, strict=True):
        answer = pair.messages[-1][1]
        (question,) = [one for one in drawing.questions if f"<image>\n{one.text}" == pair.messages[0][1]]
        assert answer == question.answer
        assert len(set(pair.choices)) == len(pair.choices) == 4
        assert set(pair.choices) <= set(question.answers)
        places.add(pair.choices.index(answer))
        kinds.add(question.kind)
    assert places == {0, 1, 2, 3}
    assert kinds == {"colour", "place", "digit", "shape", "count"}
