"""Images whose tokens see each other (Gemma 3) in sessions of the C++ library: Python's prompts and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import (
    asked,
    assert_advice_counts_texts,
    assert_golden_finds,
    assert_refused,
    assert_same,
    continued,
    require_runtime_library,
    save_all,
    shorten_calls,
)
from pictures import picture
from seen_answers import build_for_cpu
from tiny_gemma3 import IMAGE_TOKEN, PIECES, publish_gemma3
from tiny_lowered import replace_file

from awq2trt.errors import UsageError
from awq2trt.runtime import Model, Sampling, native_library, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel
from awq2trt.runtime.ort.loading import DeviceOptions

CAPACITY = 400
SHAPES = [(60, 80), (80, 60), (24, 24), (9, 120), (300, 40)]
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate(SHAPES)]
FREE = GenerateOptions(max_tokens=24, ignore_model_stops=True)
ROW = [IMAGE_TOKEN] * PIECES


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder = tmp_path_factory.mktemp("whole")
    publish_gemma3(folder / "model")
    build_for_cpu(folder, CAPACITY)
    save_all(PICTURES, folder)
    return folder


ASKED: dict[str, tuple[Any, list[int]]] = {
    "no image": ([user_message("hello")], []),
    **{f"{shape[0]} x {shape[1]}": ([user_message("What is it?")], [index]) for index, shape in enumerate(SHAPES)},
    "three before the text": ([user_message("What is it?")], [4, 1, 0]),
    "placed": ([user_message("a <image> b\n<image>\nc")], [2, 3]),
    "side by side": ([user_message("<image><image>a")], [3, 0]),
    "in several messages": (
        [user_message("<image>\none"), {"role": "assistant", "content": "1"}, user_message("and\n\n<image>")],
        [1, 2],
    ),
    "plain text": ("a<image> b <start_of_image>c", [0, 4]),
    "plain text without images": ("abc", []),
}
TEMPLATES = {
    "own": None,
    "texts": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>",
}
"""A template of texts leaves markers."""


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", ASKED)
def test_prompts_and_answers_are_those_of_the_python_runtime(
    case: str, template: str, changed: Path, tmp_path: Path
) -> None:
    text = TEMPLATES[template]
    if text is not None:
        replace_file(changed, "chat_template.jinja", text.encode())
    messages, images = ASKED[case]
    python = Model.load(changed, DeviceOptions("cpu"))
    tokens = assert_same(NativeModel.load(changed), python, messages, [PICTURES[image] for image in images], tmp_path)
    assert tokens.count(IMAGE_TOKEN) == PIECES * len(images)


@pytest.mark.parametrize("longest", range(PIECES, 3 * PIECES, 4))
def test_no_call_cuts_an_image(longest: int, native: NativeModel, changed: Path) -> None:
    shorten_calls(changed, longest)
    messages, images = [user_message("<image>a<image>b<image>")], PICTURES[:3]
    short = asked(NativeModel.load(changed), messages, images)
    np.testing.assert_allclose(short.logits(), asked(native, messages, images).logits(), rtol=1e-4, atol=1e-4)


def test_an_image_that_no_call_can_hold_is_refused(changed: Path) -> None:
    shorten_calls(changed, PIECES - 1)
    session = NativeModel.load(changed).session()
    session.append_image(PICTURES[0])
    appends: list[Callable[[], None]] = [
        lambda: session.append([user_message("a")]),
        lambda: session.append_text("<image>a"),
        lambda: session.append_tokens([1, *ROW]),
    ]
    for append in appends:
        with pytest.raises(UsageError, match=rf"more than {PIECES - 1} image tokens stand side by side, .* takes 8"):
            append()
        assert session.tokens == []
    with pytest.raises(UsageError, match="images that wait for a place in messages or text: 1"):
        session.generate(FREE)


@pytest.mark.parametrize("kept", [1, 2, PIECES - 1, PIECES, PIECES + 1])
def test_what_a_rewind_leaves_of_an_image_sees_only_itself(
    kept: int, native: NativeModel, python: Model, built: Path
) -> None:
    session = asked(native, [user_message("<image>a")], PICTURES[:1])
    prompt = session.tokens
    session.generate(FREE)
    session.rewind(prompt.index(IMAGE_TOKEN) + kept)
    session.append_text("bcd")
    tokens = [*prompt[: prompt.index(IMAGE_TOKEN) + kept], *native.encode("bcd")]
    assert session.tokens == tokens
    files = [built / "0.png"]
    assert session.generate(FREE).tokens == continued(python, tokens, files, FREE.max_tokens)


def test_a_part_of_an_image_may_be_the_last_that_a_session_has(native: NativeModel, python: Model, built: Path) -> None:
    session = asked(native, [user_message("<image>a")], PICTURES[:1])
    session.generate(FREE)
    session.rewind(session.tokens.index(IMAGE_TOKEN) + 4)
    wanted = continued(python, session.tokens, [built / "0.png"], FREE.max_tokens)
    assert session.fork().generate(FREE).tokens == wanted
    assert session.generate(FREE).tokens == wanted


def test_text_behind_forgotten_images_is_that_of_a_new_session(native: NativeModel) -> None:
    session = asked(native, [user_message("<image>a<image>")], PICTURES[:2])
    session.generate(FREE)
    session.rewind(0)
    session.append_text("x" * 40)
    assert session.generate(FREE).tokens == asked(native, "x" * 40, []).generate(FREE).tokens


def test_images_side_by_side_are_seen_together_also_if_one_comes_later(
    native: NativeModel, python: Model, built: Path
) -> None:
    session = native.session()
    session.append_image(PICTURES[0])
    session.append_tokens([1, *ROW])
    assert session.generate(GenerateOptions(max_tokens=1)).tokens  # the first image is in the cache
    session.rewind(1 + PIECES)
    copy = session.fork()
    for each in (session, copy):
        each.append_image(PICTURES[1])
        each.append_tokens([*ROW, 5, 6])
    tokens = [1, *ROW, *ROW, 5, 6]
    assert session.tokens == tokens
    answer = session.generate(FREE)
    assert answer.prompt_tokens == len(tokens) - 1
    wanted = continued(python, tokens, [built / "0.png", built / "1.png"], FREE.max_tokens)
    assert answer.tokens == copy.generate(FREE).tokens == wanted


def test_another_second_image_beside_the_first_changes_what_the_first_sees(native: NativeModel) -> None:
    session, again = native.session(), native.session()
    for each, second in ((session, 2), (again, 1)):
        for image in (0, second):
            each.append_image(PICTURES[image])
        each.append_tokens([1, *ROW, *ROW, 5])
    session.logits()
    session.rewind(1 + PIECES)
    session.append_image(PICTURES[1])
    session.append_tokens([*ROW, 5])
    np.testing.assert_allclose(session.logits(), again.logits(), rtol=1e-4, atol=1e-4)


def test_places_of_both_spellings_must_be_as_many_as_images(native: NativeModel, python: Model, built: Path) -> None:
    session = native.session()
    assert native.tokens_per_image == PIECES
    for text, places in (("a<image>", 1), ("<start_of_image>", 1), ("<image>b<start_of_image>", 2)):
        with pytest.raises(UsageError, match=f"places for images: {places}; images that wait for one: 0"):
            session.append_text(text)
    files = [built / "0.png"]
    for prompt in ("<start_of_image>a", "<image>a"):
        wanted = python.generate_text(prompt, images=files, raw=True, max_new_tokens=9)
        assert native.generate_text(prompt, images=files, raw=True, max_new_tokens=9) == wanted
    for model in (native, python):
        with pytest.raises(UsageError, match="places for images"):
            model.generate_text("What is <start_of_image>?", max_new_tokens=2)


@pytest.mark.parametrize("between", ["", "x"])
def test_image_tokens_that_a_text_spells_are_no_places(
    between: str, native: NativeModel, python: Model, built: Path
) -> None:
    """As many as the marker stands for: they must not be taken for its own."""
    spelled = "<image_soft_token>"
    text = "<image>" + spelled * (PIECES - 1) + between + spelled
    session = native.session()
    session.append_image(PICTURES[0])
    with pytest.raises(UsageError, match=f"places for images: {2 * PIECES}; images that wait for one: 1"):
        session.append_text(text, allow_special=True)
    session.append_text(text)  # no tokens are read there
    assert session.tokens.count(IMAGE_TOKEN) == PIECES
    with pytest.raises(UsageError, match=f"places for images in the prompt: {2 * PIECES}; images given: 1"):
        python.generate_text(text, images=[built / "0.png"], raw=True)


def test_what_the_model_writes_is_no_place_for_an_image(native: NativeModel) -> None:
    session = asked(native, [user_message("a")], PICTURES[:1])
    written = native.encode("<start_of_image>x<image>")
    for token in written:
        forcing = Sampling(logit_bias={token: 1e4})
        forced = GenerateOptions(max_tokens=1, ignore_model_stops=True, sampling=forcing)
        assert session.generate(forced).tokens == [token]
    session.append([user_message("b")])
    assert session.tokens.count(IMAGE_TOKEN) == PIECES


@pytest.mark.parametrize(("room", "shorter"), [(CAPACITY + 1, "shorten the text"), (CAPACITY, "show fewer images")])
def test_advice_is_about_what_is_too_long(
    room: int, shorter: str, native: NativeModel, python: Model, built: Path
) -> None:
    text = "<image>" + "a" * (room - len(asked(native, "<image>", PICTURES[:1]).tokens) + PIECES)
    for model in (native, python):
        with pytest.raises(UsageError, match=rf" {room + PIECES} tokens, {PIECES} of them of .* {shorter}, "):
            model.generate_text(text, images=[built / "0.png"], raw=True)


def test_advice_counts_images_before_a_conversation(native: NativeModel) -> None:
    session = asked(native, "<image>b", PICTURES[:1])
    with pytest.raises(UsageError, match=f", {PIECES} of them of images, .* shorten the text"):
        session.append([user_message("a" * CAPACITY)])


def test_advice_counts_what_is_written_around_images(native: NativeModel) -> None:
    assert_advice_counts_texts(native, PICTURES[0])


def test_golden_outputs_include_an_image(changed: Path) -> None:
    name, says = "golden.vision.image_embeddings.bin", "the image: relative error of its pieces"
    negative = -np.fromfile(changed / name, np.float32)
    assert_golden_finds(changed, name, negative.tobytes(), native_library.WRONG_ANSWERS, says)


def _table(value: dict[str, Any]) -> dict[str, Any]:
    inputs = value["contents"]["graphs"]["decoder"]["io"]["inputs"]
    return next(tensor for tensor in inputs if tensor["name"] == "visible_end")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another number of pieces": (
        lambda value: value["contents"]["model"]["vision"].update(tokens_per_image=PIECES + 1),
        "of these sizes",
    ),
    "no pieces": (lambda value: value["contents"]["model"]["vision"].update(tokens_per_image=0), "at least 1"),
    "another table": (lambda value: _table(value).update(name="image_of_slot"), "with the tables image_of_slot"),
    "a table of halves": (lambda value: _table(value).update(dtype="float16"), "of type float16"),
    "a short table": (lambda value: _table(value).update(shape=[CAPACITY - 1]), "tables of these sizes"),
    "a table of two axes": (lambda value: _table(value).update(shape=[CAPACITY, 2]), "tables of these sizes"),
    "a family without the table": (
        lambda value: value["contents"]["model"]["vision"].update(family="llava"),
        "of these sizes",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_manifests_that_are_refused(case: str, changed: Path) -> None:
    change, says = CHANGES[case]
    assert_refused(changed, change, says)
