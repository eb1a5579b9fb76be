"""Images in sessions of the C++ library: Python's prompts and answers, and an error for each mistake."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import asked, assert_same, require_runtime_library, save_all
from numpy.typing import NDArray
from pictures import picture
from PIL import Image
from tiny_llava import MARKER_TOKEN, build_llava
from tiny_lowered import build_lowered, edit_manifest, replace_file

import awq2trt
from awq2trt.errors import Awq2trtError, ToolError, UnsupportedError, UsageError
from awq2trt.runtime import Model, Sampling, native_library, system_message, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel, NativeSession
from awq2trt.runtime.ort.loading import DeviceOptions

CAPACITY, PIECES = 160, 16
SHAPES = [(60, 80), (80, 60), (56, 56), (31, 200), (300, 40), (1, 1)]
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate(SHAPES)]
FREE = GenerateOptions(max_tokens=12, ignore_model_stops=True)

TEMPLATES = {
    "texts": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>",
    "texts or parts": "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}"
    "{% endfor %}>",
}
"""What templates take messages as; a text has its markers, and in parts, newlines beside images are gone."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder = build_llava(tmp_path_factory.mktemp("llava"), "cpu", capacity=CAPACITY)
    save_all(PICTURES, folder)
    return folder


@pytest.fixture(scope="module")
def native(built: Path) -> NativeModel:
    return NativeModel.load(built / "cpu")


@pytest.fixture(scope="module")
def python(built: Path) -> Model:
    return Model.load(built / "cpu", DeviceOptions("cpu"))


@pytest.fixture
def changed(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "cpu", tmp_path / "cpu"))


def code_of(call: Callable[[], object]) -> int:
    with pytest.raises(Awq2trtError) as caught:
        call()
    return int(vars(caught.value)["code"])


ASKED: dict[str, tuple[list[Any], list[int]]] = {
    "no image": ([user_message("hello")], []),
    "before the text": ([user_message("What is it?")], [0]),
    "three before the text": ([user_message("What is it?")], [4, 1, 0]),
    "placed": ([user_message("a <image> b\n<image>\nc")], [2, 3]),
    "in several messages": (
        [
            system_message("Be brief."),
            user_message("<image>\none"),
            {"role": "assistant", "content": "1"},
            user_message("and\n\n<image>"),
        ],
        [5, 1],
    ),
    "the last user's": ([user_message("x"), {"role": "assistant", "content": "1"}, user_message("y")], [2]),
    "other scripts": ([user_message("Zürich 🙂 <image>\n")], [1]),
}


@pytest.mark.parametrize("case", ASKED)
def test_prompts_and_answers_are_those_of_the_python_runtime(
    case: str, native: NativeModel, python: Model, tmp_path: Path
) -> None:
    messages, images = ASKED[case]
    tokens = assert_same(native, python, messages, [PICTURES[image] for image in images], tmp_path)
    assert tokens.count(MARKER_TOKEN) == PIECES * len(images)


def _without_marker_token(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    replace_file(directory, "tokenizer.json", json.dumps(tokenizer).encode())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in config.items() if "<image>" not in json.dumps(value)}
    replace_file(directory, "tokenizer_config.json", json.dumps(kept).encode())


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("knows_marker", [True, False], ids=["marker is a token", "marker is text"])
@pytest.mark.parametrize("case", ASKED)
def test_other_templates_give_the_prompts_of_the_python_runtime(
    case: str, knows_marker: bool, template: str, changed: Path, tmp_path: Path
) -> None:
    replace_file(changed, "chat_template.jinja", TEMPLATES[template].encode())
    if not knows_marker:
        _without_marker_token(changed)
    messages, images = ASKED[case]
    python = Model.load(changed, DeviceOptions("cpu"))
    assert_same(NativeModel.load(changed), python, messages, [PICTURES[image] for image in images], tmp_path)


def test_a_template_beside_the_processor_is_found(changed: Path, native: NativeModel) -> None:
    """Models that were published before transformers kept templates in files of their own have it there."""
    template = (changed / "chat_template.jinja").read_text()
    (changed / "chat_template.jinja").unlink()
    edit_manifest(changed, lambda value: value["files"].pop("chat_template.jinja"))
    replace_file(changed, "chat_template.json", json.dumps({"chat_template": template}).encode())
    found = asked(NativeModel.load(changed), [user_message("a")], PICTURES[:1])
    assert found.tokens == asked(native, [user_message("a")], PICTURES[:1]).tokens


@pytest.mark.parametrize("prompt", ["<image>a", "a<image> b<image>", "a"])
def test_plain_text_is_continued_as_by_the_python_runtime(
    prompt: str, native: NativeModel, python: Model, built: Path
) -> None:
    images = [3, 1][: prompt.count("<image>")]
    files = [built / f"{image}.png" for image in images]
    wanted = python.generate_text(prompt, images=files, raw=True, max_new_tokens=9)
    assert native.generate_text(prompt, images=files, raw=True, max_new_tokens=9) == wanted
    assert awq2trt.load(built / "cpu").generate_text(prompt, images=files, raw=True, max_new_tokens=9) == wanted


@pytest.mark.parametrize(
    ("prompt", "images", "raw"),
    [("a", 1, True), ("<image>a", 0, True), ("<image>a", 0, False), ("<image>a<image>", 1, False)],
)
def test_commands_say_what_the_python_runtime_says(
    prompt: str, images: int, raw: bool, native: NativeModel, python: Model, built: Path
) -> None:
    refusals = []
    for model in (native, python):
        with pytest.raises(UsageError, match="places for images in the prompt") as caught:
            model.generate_text(prompt, images=[built / "0.png"] * images, raw=raw)
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


def test_tokens_with_image_tokens_are_continued(native: NativeModel) -> None:
    session = asked(native, [user_message("<image>a<image>")], PICTURES[:2])
    again = native.session()
    for image in (0, 1):
        again.append_image(PICTURES[image])
    again.append_tokens(session.tokens)
    assert again.generate(FREE).tokens == session.generate(FREE).tokens


def test_another_image_in_the_same_place_is_run(native: NativeModel) -> None:
    """The tokens are the same; what they stand for is not."""
    answers = [asked(native, [user_message("a")], [image]).generate(FREE).tokens for image in PICTURES[:2]]
    assert answers[0] != answers[1]
    session = native.session()
    for image in (0, 1):
        session.rewind(0)
        session.append_image(PICTURES[image])
        session.append([user_message("a")])
        assert session.generate(FREE).tokens == answers[image]


def test_a_session_rewound_into_an_image_goes_on(native: NativeModel) -> None:
    session = asked(native, [user_message("a")], PICTURES[:1])
    prompt = session.tokens
    session.generate(FREE)
    inside = prompt.index(MARKER_TOKEN) + 3
    session.rewind(inside)
    session.append_text("x", allow_special=True)
    assert session.tokens == [*prompt[:inside], *native.encode("x")]
    assert session.generate(FREE).tokens
    session.rewind(0)
    session.append_image(PICTURES[0])
    session.append([user_message("a")])
    assert session.tokens == prompt


def test_what_the_model_writes_is_no_place_for_an_image(native: NativeModel) -> None:
    session = asked(native, [user_message("a")], PICTURES[:1])
    session.append_tokens([])  # nothing, and the conversation goes on
    marker = native.encode("<image>")
    forced = GenerateOptions(
        max_tokens=len(marker), sampling=Sampling(logit_bias={marker[0]: 1e4}), ignore_model_stops=True
    )
    session.generate(forced)
    session.append([user_message("b")])
    assert session.tokens.count(MARKER_TOKEN) == PIECES


def test_pixels_may_be_freed_and_rows_need_not_be_contiguous(native: NativeModel) -> None:
    session = native.session()
    turned: NDArray[np.uint8] = np.repeat(PICTURES[0], 2, axis=1)[:, ::2]
    session.append_image(turned)
    session.append([user_message("a")])
    assert session.generate(FREE).tokens == asked(native, [user_message("a")], PICTURES[:1]).generate(FREE).tokens


def test_golden_outputs_include_an_image(changed: Path) -> None:
    worst, allowed = NativeModel.load(changed).check()
    assert 0.0 <= worst <= allowed
    name = "golden.vision.image_embeddings.bin"
    pieces = np.fromfile(changed / name, np.float32)
    replace_file(changed, name, (-pieces).tobytes())
    model = NativeModel.load(changed)
    with pytest.raises(ToolError, match=r"the image: relative error of its pieces 2\.\d+"):
        model.check()
    replace_file(changed, name, pieces[:-1].tobytes())
    assert code_of(model.check) == native_library.MALFORMED
    replace_file(changed, name, pieces.tobytes())
    replace_file(changed, "golden.vision.pixel_values.bin", bytes(100))
    assert code_of(model.check) == native_library.MALFORMED


# Bad input, each with its own message.


def raw_image(session: NativeSession, pixels: bytes | None, width: int, height: int) -> int:
    append = native_library.library().awq2trt_session_append_image
    return int(append(session._handle, pixels, width, height))


def last_error() -> str:
    return str(native_library.library().awq2trt_last_error().decode())


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (0, 2, "1 x 1 pixels or more, got 0 x 2"),
        (2, -1, "1 x 1 pixels or more, got 2 x -1"),
        (20_000, 1, "sides at most 200 times as long as each other, got 20000 x 1"),
        (2**31 - 1, 2**31 - 1, "at most 134217728 pixels, got 2147483647 x 2147483647"),
    ],
)
def test_sizes_that_make_no_sense(width: int, height: int, says: str, native: NativeModel) -> None:
    session = native.session()
    assert raw_image(session, bytes(60_000), width, height) == native_library.BAD_ARGUMENT
    assert says in last_error()
    assert raw_image(session, None, 2, 2) == native_library.BAD_ARGUMENT
    assert "there are no pixels" in last_error()
    session.append([user_message("a")])  # without an image that waits
    call = native_library.library().awq2trt_session_append_image
    assert call(None, bytes(12), 2, 2) == native_library.BAD_ARGUMENT


@pytest.mark.parametrize(
    ("shape", "dtype"), [((9, 9), "uint8"), ((9, 9, 4), "uint8"), ((3, 9, 9), "uint8"), ((9, 9, 3), "float32")]
)
def test_arrays_that_are_no_rgb_of_8_bits(shape: tuple[int, ...], dtype: str, native: NativeModel) -> None:
    with pytest.raises(UsageError, match=rf"got {dtype} {re.escape(str(list(shape)))}"):
        native.session().append_image(np.zeros(shape, dtype))


def refuses(session: NativeSession, places: int, waiting: int) -> None:
    """Appends so many places for images in all three ways."""
    says = f"places for images: {places}; images that wait for one: {waiting}"
    with pytest.raises(UsageError, match=says):
        session.append([system_message("a" + "<image>" * places)])
    with pytest.raises(UsageError, match=says):
        session.append_text("a" + "<image>" * places)
    with pytest.raises(UsageError, match=says):
        session.append_tokens([1, *[MARKER_TOKEN] * PIECES * places])
    assert session.tokens == []


def test_images_and_places_must_be_as_many(native: NativeModel) -> None:
    session = native.session()
    refuses(session, 1, 0)
    session.append_image(PICTURES[0])
    refuses(session, 2, 1)
    refuses(session, 0, 1)
    with pytest.raises(UsageError, match=f"expected {PIECES} image tokens in a row"):
        session.append_tokens([MARKER_TOKEN] * (PIECES - 1))
    with pytest.raises(UsageError, match="images that wait for a place in messages or text: 1"):
        session.generate()
    with pytest.raises(UsageError, match="images that wait for a place in messages or text: 1"):
        session.logits()
    session.append([user_message("a")])  # the image still waits
    assert session.tokens.count(MARKER_TOKEN) == PIECES
    session.append_image(PICTURES[0])
    session.rewind(len(session.tokens))  # forgets what waits
    assert session.generate(FREE).tokens


def test_more_images_than_the_session_holds(native: NativeModel) -> None:
    session = native.session(40)
    for _ in range(2):
        session.append_image(PICTURES[0])
    with pytest.raises(
        UsageError, match=r"would need more than 48 tokens, 48 of them of images, but it holds at most 40"
    ) as caught:
        session.append_image(PICTURES[0])
    assert vars(caught.value)["code"] == native_library.TOO_LONG
    with pytest.raises(UsageError, match=r"tokens, 32 of them of images, but it holds at most 40"):
        session.append([user_message("a" * 20)])
    session.append_text("<image><image>" + "a" * 8)
    assert len(session.tokens) == 40
    assert session.generate(FREE).finish_reason == "full"


def test_a_template_without_a_place_for_images(changed: Path) -> None:
    replace_file(changed, "chat_template.jinja", b"{% for m in messages %}{{ m.role }}{% endfor %}")
    session = NativeModel.load(changed).session()
    session.append_image(PICTURES[0])
    with pytest.raises(UsageError, match="places for images: 0; images that wait for one: 1"):
        session.append([user_message("a")])


def test_a_model_of_text_takes_markers_as_text(tmp_path: Path) -> None:
    build_lowered(tmp_path, "cpu")
    model = NativeModel.load(tmp_path / "cpu")
    assert model.tokens_per_image == 0
    session = model.session()
    session.append([user_message("<image>")])
    assert "<image>" in model.decode(session.tokens)
    with pytest.raises(UnsupportedError, match="does not see"):
        session.append_image(PICTURES[0])
    Image.fromarray(PICTURES[0]).save(tmp_path / "0.png")
    with pytest.raises(UsageError, match="does not see"):
        model.generate_text("a", images=[tmp_path / "0.png"])
