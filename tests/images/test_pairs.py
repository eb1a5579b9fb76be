"""Pictures with captions: folders, lines of JSON, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image

from awq2trt.errors import CalibrationError, UsageError
from awq2trt.images.pairs import is_image_text, read_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg"):
        Image.fromarray(picture(8, 8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"It is {name}.\n")
    return tmp_path


def _lines(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n\n")
    return path


def test_a_folder_has_a_caption_beside_each_picture(folder: Path) -> None:
    first, second = read_pairs(folder)
    assert (first.images, second.images) == ((folder / "a.jpg",), (folder / "b.png",))
    assert first.text == "USER: <image>\nDescribe the image.\nASSISTANT: It is a.jpg."
    assert is_image_text(folder)


@pytest.mark.parametrize(
    ("first", "seen"),
    [({"images": ["a.jpg"], "caption": "A."}, True), ({"text": "an image"}, False), ("an image", False), ("{", False)],
)
def test_the_first_line_tells_pictures_from_text(folder: Path, first: object, *, seen: bool) -> None:
    assert is_image_text(_lines(folder, json.dumps(first))) is seen


def test_lines_of_messages_and_captions(folder: Path) -> None:
    path = _lines(
        folder,
        {"image": "a.jpg", "messages": [{"role": "user", "content": "What is <image>?"}]},
        {"image": "b.png", "caption": "A square."},
        {"image": ["a.jpg", "b.png"], "messages": [{"role": "user", "content": "Compare."}]},
        {
            "image": "a.jpg",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]},
                {"role": "assistant", "content": "I see."},
            ],
        },
    )
    pairs = read_pairs(path)
    assert is_image_text(path)
    assert [pair.text for pair in pairs] == [
        "USER: What is <image>?",
        "USER: <image>\nDescribe the image.\nASSISTANT: A square.",
        "USER: <image>\n<image>\nCompare.",
        "USER: Look: <image>\n\nASSISTANT: I see.",
    ]
    assert [len(pair.images) for pair in pairs] == [1, 1, 2, 1]
    assert pairs[0].images == (folder / "a.jpg",)


def test_lines_of_several_captions_and_of_choices(folder: Path) -> None:
    path = _lines(
        folder,
        {"image": "a.jpg", "captions": ["A dog.", "There is a dog."]},
        {"image": "b.png", "question": "What is it?", "choices": ["a cat", "a dog"], "answer": 1},
        {"image": "b.png", "caption": "A dog."},
    )
    several, choice, one = read_pairs(path)
    assert several.text == "USER: <image>\nDescribe the image.\nASSISTANT: A dog."
    assert (several.captions, several.choices) == (("A dog.", "There is a dog."), ())
    assert choice.text == "USER: <image>\nWhat is it?\nASSISTANT: a dog"
    assert (choice.captions, choice.choices) == ((), ("a cat", "a dog"))
    assert one.captions == ("A dog.",)
    assert read_pairs(folder)[0].captions == ("It is a.jpg.",)


def test_a_conversation_behind_others(folder: Path) -> None:
    first, second = read_pairs(folder)
    both = second.behind([first])
    assert both.text == f"{first.text}\n{second.text}"
    assert both.images == (*first.images, *second.images)
    assert both.captions == second.captions
    assert second.saying("So be it.").text == "USER: <image>\nDescribe the image.\nASSISTANT: So be it."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"captions": []}, "a list of texts as `captions`"),
        ({"captions": "A dog."}, "a list of texts as `captions`"),
        ({"captions": ["A dog.", ""]}, "a list of texts as `captions`"),
        ({"choices": ["a", "b"], "answer": 0}, "a text as `question`"),
        ({"question": "Which?", "choices": [], "answer": 0}, "a list of texts as `choices`"),
        ({"question": "Which?", "choices": ["a", "b"]}, "0 to 1, as `answer`, got 'None'"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 2}, "0 to 1, as `answer`, got '2'"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": True}, "0 to 1, as `answer`, got 'True'"),
    ],
)
def test_captions_and_choices_that_make_no_sense(folder: Path, row: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=f"line 1: expected .*{expected}"):
        read_pairs(_lines(folder, {"image": "a.jpg", **row}))


def test_texts_are_not_taken_for_pictures(tmp_path: Path) -> None:
    assert not is_image_text(_lines(tmp_path, {"text": "no picture"}))
    assert not is_image_text(_lines(tmp_path, "not JSON"))
    assert not is_image_text(_lines(tmp_path, "7"))
    assert not is_image_text(tmp_path / "missing.jsonl")
    (tmp_path / "text.txt").write_text('{"image": "a.jpg"}')
    assert not is_image_text(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 1: cannot be read as JSON"),
        ("[1]", "expected a JSON object, got"),
        ('{"image": "a.jpg", "caption": "\\ud800"}', "has bytes that are not UTF-8"),
        ({"image": 3, "caption": "x"}, "expected the name of a picture"),
        ({"image": [], "caption": "x"}, "expected the name of a picture"),
        ({"image": ["a.jpg", ""], "caption": "x"}, "expected the name of a picture"),
        ({"image": "a.jpg"}, "expected a list under `messages`, or `caption`, `captions` or `choices`, got 'None'"),
        ({"image": "a.jpg", "messages": []}, "expected a list under `messages`"),
        ({"image": "a.jpg", "messages": ["hello"]}, "expected messages with `role` and `content`"),
        ({"image": "a.jpg", "messages": [{"role": "user", "content": 3}]}, "expected a text, or a list of pictures"),
        ({"image": "a.jpg", "messages": [{"role": "user", "content": [{"type": "video"}]}]}, '"type": "image"'),
        (
            {"image": "a.jpg", "messages": [{"role": "user", "content": "<image><image>"}]},
            "expected as many <image> as pictures (1), got '2'",
        ),
    ],
)
def test_lines_that_make_no_sense_are_named(row: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_pairs(_lines(tmp_path, row))
    assert says in str(caught.value)
    assert "rows.jsonl, line 1" in str(caught.value)


def test_a_picture_without_a_caption_and_a_caption_that_is_no_text(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(UsageError, match=r"a\.txt: cannot be read as a caption in UTF-8"):
        read_pairs(folder)
    (folder / "a.txt").unlink()
    with pytest.raises(UsageError, match=r"a\.jpg: expected the picture's caption in a\.txt, but"):
        read_pairs(folder)


def test_pictures_without_any_captions_are_to_be_described(folder: Path) -> None:
    for caption in folder.glob("*.txt"):
        caption.unlink()
    first, *_ = pairs = read_pairs(folder)
    assert all(pair.bare for pair in pairs)
    assert first.messages == (("user", "<image>\nDescribe the image."),)
    said = first.described("A dog.")
    assert (said.bare, said.captions, said.messages[1]) == (False, ("A dog.",), ("assistant", "A dog."))
    assert said.text == "USER: <image>\nDescribe the image.\nASSISTANT: A dog."


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_say_the_encoding(encoding: str, folder: Path) -> None:
    (folder / "a.txt").write_text("\u00dcber uns", encoding=encoding)
    assert read_pairs(folder)[0].messages[1] == ("assistant", "\u00dcber uns")
    path = folder / "rows.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "\u00dcber uns"}', encoding=encoding)
    assert is_image_text(path)
    assert read_pairs(path)[0].messages[1] == ("assistant", "\u00dcber uns")


def test_separators_of_lines_and_paragraphs_are_characters_of_a_caption(folder: Path) -> None:
    said = "one\u2028two\u2029three\x85four"
    (pair,) = read_pairs(_lines(folder, json.dumps({"image": "a.jpg", "caption": said}, ensure_ascii=False)))
    assert pair.messages[1] == ("assistant", said)


def test_a_pipe_is_no_file_of_captions(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="no such folder or file"):
        read_pairs(tmp_path / "rows.jsonl")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="expected pictures with captions, found none"):
        read_pairs(tmp_path)


def test_a_path_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="none: there is no such folder or file"):
        read_pairs(folder / "none")
