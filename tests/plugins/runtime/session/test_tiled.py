"""Images in tiles in sessions of the C++ library: Python's prompts and answers."""

from __future__ import annotations

import json
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
    require_runtime_library,
)
from pictures import picture
from seen_answers import build_for_cpu
from tiny_llava_next import publish_llava_next
from tiny_lowered import replace_file
from tiny_smolvlm import FAKE_TOKEN, IMAGE_TOKEN, KINDS, PIECES, publish_smolvlm

from awq2trt.errors import Awq2trtError, UsageError
from awq2trt.runtime import Model, native_library, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel

CAPACITY = 520
SHAPES = [(60, 80), (80, 60), (24, 24), (9, 120), (300, 40), (31, 200)]
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate(SHAPES)]
FREE = GenerateOptions(max_tokens=12, ignore_model_stops=True)

MODELS: dict[str, Callable[[Path], Path]] = {
    **{kind: lambda directory, kind=kind: publish_smolvlm(directory, kind) for kind in KINDS},  # type: ignore[misc]
    "llava 1.6": lambda directory: publish_llava_next(directory, {"max_position_embeddings": CAPACITY}),
}


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder = tmp_path_factory.mktemp("tiled")
    MODELS[request.param](folder / "model")
    build_for_cpu(folder, CAPACITY)
    return folder


ASKED: dict[str, tuple[list[Any], list[int]]] = {
    "no image": ([user_message("hello")], []),
    **{f"{shape[0]} x {shape[1]}": ([user_message("What is it?")], [index]) for index, shape in enumerate(SHAPES)},
    "two before the text": ([user_message("What is it?")], [4, 1]),
    "placed": ([user_message("a <image> b\n<image>\nc")], [2, 3]),
    "side by side": ([user_message("<image><image>a")], [2, 2]),
}


@pytest.mark.parametrize("case", ASKED)
def test_prompts_and_answers_are_those_of_the_python_runtime(
    case: str, native: NativeModel, python: Model, tmp_path: Path
) -> None:
    messages, images = ASKED[case]
    assert_same(native, python, messages, [PICTURES[image] for image in images], tmp_path)


def test_advice_counts_what_is_written_around_tiles(native: NativeModel) -> None:
    assert_advice_counts_texts(native, PICTURES[0])


def test_golden_outputs_include_a_tile(changed: Path) -> None:
    name = "golden.vision.pixel_values.bin"
    assert_golden_finds(changed, name, (changed / name).read_bytes()[:-2], native_library.MALFORMED)


@pytest.mark.parametrize("built", ["smolvlm"], indirect=True)
def test_tiles_stand_apart_among_tokens(native: NativeModel) -> None:
    assert native.tokens_per_image == -1
    session = native.session()
    session.append_image(PICTURES[0])  # two rows of two tiles, and the whole
    tile = [FAKE_TOKEN, *[IMAGE_TOKEN] * PIECES]
    for tokens in (tile * 4, tile * 4 + [IMAGE_TOKEN] * (PIECES - 1), tile * 6):
        with pytest.raises(UsageError, match=r"a row for each tile of image 1, got [18]|waits? for one: 1"):
            session.append_tokens([1, *tokens])
    with pytest.raises(UsageError, match="places for images: 2; images that wait for one: 1"):
        session.append_text("<image><image>")
    with pytest.raises(UsageError, match="places for images: 0; images that wait for one: 1"):
        session.append_text("a")
    session.append_tokens(tile * 5)
    assert session.generate(FREE).tokens


@pytest.mark.parametrize("built", ["smolvlm"], indirect=True)
def test_scores_that_are_no_numbers_are_an_error_without_sampling_too(changed: Path) -> None:
    name = "preprocessor_config.json"
    config = {**json.loads((changed / name).read_text()), "image_mean": [1e300] * 3}  # infinite as float32
    replace_file(changed, name, json.dumps(config).encode())
    session = asked(NativeModel.load(changed), [user_message("a")], PICTURES[:1])
    with pytest.raises(Awq2trtError, match="the score of token 0 is not a number"):
        session.generate(FREE)


def _settings(value: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = value["contents"]["model"]["vision"]["settings"]
    return settings


def _outputs(value: dict[str, Any]) -> dict[str, Any]:
    output: dict[str, Any] = value["contents"]["graphs"]["vision"]["io"]["outputs"][0]
    return output


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no size": (lambda value: _settings(value).pop("image_size"), "image_size is missing"),
    "tiles of nothing": (lambda value: _settings(value).update(patch_size=400), "tiles of one piece or more"),
    "huge tiles": (lambda value: _settings(value).update(image_size=2**40), "at most 8192"),
    "larger tiles": (lambda value: _settings(value).update(image_size=400), "of these sizes"),
    "more pieces": (lambda value: _outputs(value)["shape"].__setitem__(1, 77), "of these sizes"),
    "rows of another width": (lambda value: _outputs(value)["shape"].__setitem__(2, 64), "of these sizes"),
}


@pytest.mark.parametrize("built", ["smolvlm", "llava 1.6"], indirect=True)
@pytest.mark.parametrize("case", CHANGES)
def test_manifests_that_are_refused(case: str, changed: Path) -> None:
    change, says = CHANGES[case]
    assert_refused(changed, change, says)


@pytest.mark.parametrize(
    ("built", "says"),
    [
        ("smolvlm", "the tower's image_size as its max_image_size, 24, got one of another kind"),
        ("llava 1.6", "the tower's image_size as its crop_size, 56, got one of another kind"),
    ],
    indirect=["built"],
)
def test_processors_of_another_kind_are_refused(says: str, changed: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (changed / name).is_file():
            replace_file(changed, name, b'{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(Awq2trtError, match=says):
        NativeModel.load(changed)
