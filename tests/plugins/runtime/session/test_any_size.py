"""Images of any size in sessions of the C++ library: Python's prompts, positions and answers."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import asked, assert_golden_finds, assert_refused, assert_same, require_runtime_library
from pictures import picture
from seen_answers import build_for_cpu
from tiny_lowered import replace_file
from tiny_qwen_vl import PUBLISHED_IDS, QWEN2_5_VL, QWEN3_VL, publish_qwen_vl

from awq2trt.errors import UsageError
from awq2trt.runtime import Model, native_library, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel
from awq2trt.runtime.ort.loading import DeviceOptions

CAPACITY = 320
SHAPES = [(60, 80), (80, 60), (33, 41), (9, 120), (300, 40), (1, 1)]
PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate(SHAPES)]
FREE = GenerateOptions(max_tokens=24, ignore_model_stops=True)
IMAGE_TOKEN = PUBLISHED_IDS[2]


KINDS = {"windows": QWEN2_5_VL, "deepstack": QWEN3_VL}
"""What differs between Qwen2.5-VL and Qwen3-VL, whose sections of positions are interleaved, too."""


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder = tmp_path_factory.mktemp(request.param)
    publish_qwen_vl(folder / "model", KINDS[request.param])
    build_for_cpu(folder, CAPACITY)
    return folder


ASKED: dict[str, tuple[list[Any], list[int]]] = {
    "no image": ([user_message("hello")], []),
    **{f"{shape[0]} x {shape[1]}": ([user_message("What is it?")], [index]) for index, shape in enumerate(SHAPES)},
    "three before the text": ([user_message("What is it?")], [4, 1, 0]),
    "placed": ([user_message("a <image> b\n<image>\nc")], [2, 3]),
    "side by side": ([user_message("<image><image>a")], [3, 0]),
    "in several messages": (
        [user_message("<image>\none"), {"role": "assistant", "content": "1"}, user_message("and\n\n<image>")],
        [5, 1],
    ),
}
TEMPLATES = {
    "own": None,
    "texts": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>",
}
"""A template of texts leaves markers, which then get the tokens around an image."""


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
    assert_same(NativeModel.load(changed), python, messages, [PICTURES[image] for image in images], tmp_path)


def test_a_session_rewound_into_an_image_goes_on(native: NativeModel) -> None:
    session = asked(native, [user_message("<image>a<image>b")], [PICTURES[0], PICTURES[3]])
    prompt = session.tokens
    session.generate(FREE)
    session.rewind(prompt.index(IMAGE_TOKEN) + 1)  # a text behind a part of an image
    session.append_text("x" * (CAPACITY - len(session.tokens)))
    assert session.generate(FREE).finish_reason == "full"


def test_golden_outputs_include_an_image(changed: Path) -> None:
    name = "golden.vision.patch_places.bin"
    assert_golden_finds(changed, name, (changed / name).read_bytes()[:-4], native_library.MALFORMED)


def test_places_and_images_must_be_as_many(native: NativeModel) -> None:
    session = native.session()
    assert native.tokens_per_image == -1
    says = "places for images: 1; images that wait for one: 0"
    with pytest.raises(UsageError, match=says):
        session.append([user_message("a<image>")])
    with pytest.raises(UsageError, match=says):
        session.append_text("a<image>")
    with pytest.raises(UsageError, match=says):
        session.append_tokens([1, IMAGE_TOKEN, IMAGE_TOKEN])
    session.append_image(PICTURES[0])
    with pytest.raises(UsageError, match=r"\d image tokens in a row for image 1, got 1 "):
        session.append_tokens([IMAGE_TOKEN])
    with pytest.raises(UsageError, match="images that wait for a place in messages or text: 1"):
        session.generate()


def test_more_images_than_the_session_holds(native: NativeModel) -> None:
    count = asked(native, [user_message("a")], PICTURES[:1]).tokens.count(IMAGE_TOKEN)
    session = native.session(2 * count + 1)
    for _ in range(2):
        session.append_image(PICTURES[0])
    says = f"would need more than {3 * count} tokens, {3 * count} of them of images"
    with pytest.raises(UsageError, match=says) as caught:
        session.append_image(PICTURES[0])
    assert vars(caught.value)["code"] == native_library.TOO_LONG


def test_nothing_is_made_of_an_image_that_does_not_fit(changed: Path) -> None:
    name = "preprocessor_config.json"
    huge = {"size": {"shortest_edge": 8192**2, "longest_edge": 8192**2}}
    replace_file(changed, name, json.dumps({**json.loads((changed / name).read_text()), **huge}).encode())
    session = NativeModel.load(changed).session()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))  # its patches would take 1.6 GB
    try:
        with pytest.raises(UsageError, match="more than 1048576 tokens, 1048576 of them of images") as caught:
            session.append_image(PICTURES[5])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert vars(caught.value)["code"] == native_library.TOO_LONG


def _model(value: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = value["contents"]["model"]
    return model


def _io(value: dict[str, Any], graph: str, name: str) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = value["contents"]["graphs"][graph]["io"]["inputs"]
    return next(tensor for tensor in tensors if tensor["name"] == name)


Changes = dict[str, tuple[Callable[[dict[str, Any]], Any], str]]
CHANGES: Changes = {
    "patches of another size": (
        lambda value: _model(value)["vision"]["settings"].update(patch_size=5),
        "of these sizes",
    ),
    "patches of another size, in all": (
        lambda value: (
            _model(value)["vision"]["settings"].update(patch_size=2, temporal_patch_size=8, window_size=12),
        ),
        "the tower's patch_size, temporal_patch_size and merge_size, 2, 8, 2, got 4, 2, 2",
    ),
    "huge patches": (lambda value: _model(value)["vision"]["settings"].update(patch_size=2**40), "at most 8192"),
    "a token that is none": (
        lambda value: _model(value)["vision"]["settings"].update(vision_end_token_id=10**6),
        "the decoder has no token 1000000",
    ),
    "no sections": (lambda value: _model(value)["decoder"]["ropes"][0].pop("sections"), "of these sizes"),
    "too few sections": (
        lambda value: _model(value)["decoder"]["ropes"][0].update(sections=[8, 24]),
        "three sections of all frequencies",
    ),
    "shorter tables": (
        lambda value: _io(value, "decoder", "rotary_cos").update(shape=[8, 32]),
        "tables of these sizes",
    ),
    "unlike tables": (
        lambda value: _io(value, "decoder", "rotary_sin").update(shape=[CAPACITY, 16]),
        "tables of these sizes",
    ),
    "other indices": (lambda value: _io(value, "vision", "patch_places").update(name="places"), "of these sizes"),
}
OF_KIND: dict[str, Changes] = {
    "windows": {
        "no windows": (lambda value: _model(value)["vision"]["settings"].pop("window_size"), "window_size"),
        "windows of nothing": (
            lambda value: _model(value)["vision"]["settings"].update(window_size=7),
            "one piece or more",
        ),
        "too large sections": (
            lambda value: _model(value)["decoder"]["ropes"][0].update(sections=[2**31 - 1] * 3),
            "three sections of all frequencies",
        ),
        "slots by another name": (lambda value: _io(value, "vision", "patch_slots").update(name="a"), "of these sizes"),
    },
    "deepstack": {
        "less deepstack": (
            lambda value: _io(value, "decoder", "deepstack_embeds")["shape"].__setitem__(2, 128),
            "of these sizes",
        ),
        "deepstack of another type": (
            lambda value: _io(value, "decoder", "deepstack_embeds").update(dtype="bfloat16"),
            "embeddings of these sizes or of type bfloat16",
        ),
        "embeddings by another name": (
            lambda value: _io(value, "decoder", "inputs_embeds").update(name="embeds"),
            "with the input embeds",
        ),
        "nothing but deepstack": (
            lambda value: _io(value, "decoder", "inputs_embeds").update(name="input_ids", dtype="int64"),
            "deepstack_embeds before embeddings",
        ),
    },
}


@pytest.mark.parametrize(
    ("built", "case"),
    [(kind, case) for kind, more in OF_KIND.items() for case in (CHANGES | more)],
    indirect=["built"],
)
def test_manifests_that_are_refused(case: str, changed: Path) -> None:
    change, says = next(changes[case] for changes in (CHANGES, *OF_KIND.values()) if case in changes)
    assert_refused(changed, change, says)
