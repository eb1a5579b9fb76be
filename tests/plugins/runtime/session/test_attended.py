"""Images that a decoder attends to (OpenFlamingo) in sessions of the C++ library: Python's prompts and answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import (
    answered,
    asked,
    assert_golden_finds,
    assert_refused,
    continued,
    require_runtime_library,
    save_all,
    shorten_calls,
)
from pictures import picture
from seen_answers import build_for_cpu
from tiny_flamingo import END_OF_CHUNK, IMAGE_TOKEN, TEXT_CONFIGS, save_flamingo
from tiny_lowered import replace_file

from awq2trt.errors import Awq2trtError, UsageError
from awq2trt.runtime import Model, native_library, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel

CAPACITY, MOST_IMAGES = 160, 8
SHAPES = [(60, 80), (80, 60), (20, 20), (9, 120), (300, 40)]
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate(SHAPES)]
FREE = GenerateOptions(max_tokens=24, ignore_model_stops=True)


@pytest.fixture(scope="module", params=TEXT_CONFIGS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder = tmp_path_factory.mktemp(request.param)
    save_flamingo(folder / "model", request.param)
    build_for_cpu(folder, CAPACITY)
    save_all(PICTURES, folder)
    return folder


ASKED: dict[str, tuple[str, list[int]]] = {
    "no image": ("hello, what", []),
    **{f"{shape[0]} x {shape[1]}": ("<image>What?", [index]) for index, shape in enumerate(SHAPES)},
    "shots": ("<image>Output:one<|endofchunk|><image>Output:two<|endofchunk|><image>Output:", [0, 1, 2]),
    "text first": ("a text <image> and more", [3]),
    "side by side": ("<image><image>a", [4, 0]),
    "as many as possible": ("<image>a" * MOST_IMAGES, [0, 1, 2, 3, 4, 3, 2, 1]),
}


@pytest.mark.parametrize("case", ASKED)
def test_prompts_and_answers_are_those_of_the_python_runtime(
    case: str, native: NativeModel, python: Model, built: Path
) -> None:
    text, images = ASKED[case]
    files = [built / f"{image}.png" for image in images]
    tokens, answer = answered(python, text, files, FREE.max_tokens)
    session = asked(native, text, [PICTURES[image] for image in images])
    assert session.tokens == tokens
    assert tokens.count(IMAGE_TOKEN) == len(images) * native.tokens_per_image
    assert session.generate(FREE).tokens == answer
    wanted = python.generate_text(text, images=files, raw=True, max_new_tokens=9)
    assert native.generate_text(text, images=files, raw=True, max_new_tokens=9) == wanted


def test_images_change_answers(native: NativeModel) -> None:
    scores = [asked(native, "<image>What?", [PICTURES[image]]).logits() for image in (0, 1)]
    assert np.abs(scores[0] - scores[1]).max() > 0.05


@pytest.mark.parametrize("longest", [1, 3])
def test_calls_may_begin_at_an_image(longest: int, native: NativeModel, changed: Path) -> None:
    shorten_calls(changed, longest)
    text, images = ASKED["shots"][0], PICTURES[:3]
    short = asked(NativeModel.load(changed), text, images)
    np.testing.assert_allclose(short.logits(), asked(native, text, images).logits(), rtol=1e-4, atol=1e-4)


def test_images_and_texts_may_come_one_after_the_other(native: NativeModel, python: Model, built: Path) -> None:
    session = native.session()
    for image, text in ((0, "<image>Output:one"), (1, "<|endofchunk|><image>Output:")):
        session.append_image(PICTURES[image])
        session.append_text(text, allow_special=True)
        answer = session.generate(FREE).tokens
        session.rewind(len(session.tokens) - len(answer))
    assert session.tokens.count(END_OF_CHUNK) == 1
    files = [built / "0.png", built / "1.png"]
    assert answer == continued(python, session.tokens, files, FREE.max_tokens)
    session.append_text("xyz")  # attends to the second image, as what follows does
    assert continued(python, session.tokens, files, FREE.max_tokens) == session.generate(FREE).tokens


def test_rewound_and_forked_sessions_keep_their_images(native: NativeModel, python: Model, built: Path) -> None:
    session = asked(native, "<image>a<image>b", PICTURES[:2])
    prompt, answer = session.tokens, session.generate(FREE).tokens
    copy = session.fork()
    copy.rewind(len(prompt))
    assert copy.generate(FREE).tokens == answer
    session.rewind(prompt.index(IMAGE_TOKEN, prompt.index(IMAGE_TOKEN) + 1))  # without the second image
    session.append_image(PICTURES[2])
    session.append_text("<image>b")
    assert session.tokens == prompt
    other = session.generate(FREE).tokens
    assert other == continued(python, prompt, [built / "0.png", built / "2.png"], FREE.max_tokens)
    session.rewind(0)
    session.append_text("text alone")
    assert session.generate(FREE).tokens == asked(native, "text alone", []).generate(FREE).tokens
    copy.rewind(len(prompt))
    assert copy.generate(FREE).tokens == answer


def test_more_images_than_the_decoder_takes(native: NativeModel, python: Model, built: Path) -> None:
    session = native.session()
    for _ in range(2):
        session.append_image(PICTURES[0])
    session.append_text("<image><image>")
    for _ in range(MOST_IMAGES - 2):
        session.append_image(PICTURES[1])
    says = r"may have 8 images, got 9"
    with pytest.raises(UsageError, match=rf"{says}.*--max-images 9 or more") as caught:
        session.append_image(PICTURES[0])
    assert vars(caught.value)["code"] == native_library.TOO_LONG
    with pytest.raises(UsageError, match=says):
        python.generate_text("<image>" * 9, images=[built / "0.png"] * 9, raw=True)
    session.append_text("<image>" * (MOST_IMAGES - 2))
    session.rewind(1)  # an image is left
    for _ in range(MOST_IMAGES - 1):
        session.append_image(PICTURES[1])
    session.append_tokens([IMAGE_TOKEN] * (MOST_IMAGES - 1))
    assert session.generate(FREE).tokens


def test_images_and_places_must_be_as_many(native: NativeModel) -> None:
    session = native.session()
    says = "places for images: 1; images that wait for one: 0"
    with pytest.raises(UsageError, match=says):
        session.append_text("<image>a")
    with pytest.raises(UsageError, match=says):
        session.append_tokens([IMAGE_TOKEN, 5])
    session.append_image(PICTURES[0])
    with pytest.raises(UsageError, match="places for images: 2; images that wait for one: 1"):
        session.append_tokens([IMAGE_TOKEN] * 2)
    with pytest.raises(UsageError, match="images that wait for a place in messages or text: 1"):
        session.generate()


def test_it_has_no_chat_template(native: NativeModel) -> None:
    with pytest.raises(Awq2trtError, match="no chat template") as caught:
        asked(native, [user_message("a")], PICTURES[:1])
    assert vars(caught.value)["code"] == native_library.NO_TEMPLATE


def test_both_runtimes_say_what_to_do_without_a_chat_template(native: NativeModel, python: Model, built: Path) -> None:
    for model in (native, python):
        with pytest.raises(UsageError, match="use --raw"):
            model.generate_text("a", images=[built / "0.png"])


def test_a_golden_image_of_several_is_refused(changed: Path) -> None:
    """More than the decoder has memory for."""
    for name in ("pixel_values", "image_embeddings"):
        file = f"golden.vision.{name}.bin"
        replace_file(changed, file, (changed / file).read_bytes() * (MOST_IMAGES + 1))
    with pytest.raises(Awq2trtError, match=r"an image of [0-9]+ pieces is expected") as caught:
        NativeModel.load(changed).check()
    assert vars(caught.value)["code"] == native_library.MALFORMED


def test_golden_outputs_attend_to_an_image(changed: Path) -> None:
    golden = json.loads((changed / "golden.json").read_text())
    assert golden["vision"].pop("attended") is True
    says = "call prefill: relative error of the scores"
    assert_golden_finds(changed, "golden.json", json.dumps(golden).encode(), native_library.WRONG_ANSWERS, says)


def _table(value: dict[str, Any], name: str) -> dict[str, Any]:
    inputs = value["contents"]["graphs"]["decoder"]["io"]["inputs"]
    return next(tensor for tensor in inputs if tensor["name"] == name)


def _without_slots(value: dict[str, Any]) -> None:
    value["contents"]["graphs"]["decoder"]["io"]["inputs"].remove(_table(value, "image_of_slot"))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "several tokens for an image": (
        lambda value: value["contents"]["model"]["vision"].update(tokens_per_image=2),
        "of these sizes",
    ),
    "one table": (_without_slots, "a decoder with the tables attended_images"),
    "numbers of images as halves": (
        lambda value: _table(value, "image_of_slot").update(dtype="float16"),
        "of type float16",
    ),
    "whole images": (lambda value: _table(value, "attended_images").update(dtype="int64"), "of type int64"),
    "images without pieces": (
        lambda value: _table(value, "attended_images").update(shape=[MOST_IMAGES, 0, 8]),
        "tables of these sizes",
    ),
    "too many images": (
        lambda value: _table(value, "attended_images")["shape"].__setitem__(0, 2**30),
        "tables of these sizes",
    ),
    "other pieces": (
        lambda value: _table(value, "attended_images")["shape"].__setitem__(1, 9),
        "of these sizes",
    ),
    "other channels": (
        lambda value: _table(value, "attended_images")["shape"].__setitem__(2, 9),
        "of these sizes",
    ),
    "another family": (
        lambda value: value["contents"]["model"]["vision"].update(family="gemma3-vision"),
        "of these sizes",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_manifests_that_are_refused(case: str, changed: Path) -> None:
    change, says = CHANGES[case]
    assert_refused(changed, change, says)
