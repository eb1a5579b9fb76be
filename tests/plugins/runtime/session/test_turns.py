"""Sessions of the C++ library that go on behind images: further turns, chunks, rewinding, for images of all kinds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from native_sessions import answered, asked, require_runtime_library, save_all, shorten_calls
from pictures import picture
from seen_answers import build_for_cpu
from tiny_flamingo import IMAGE_TOKEN as FLAMINGO_TOKEN
from tiny_flamingo import save_flamingo
from tiny_gemma3 import IMAGE_TOKEN as GEMMA_TOKEN
from tiny_gemma3 import publish_gemma3
from tiny_llava import MARKER_TOKEN, build_llava
from tiny_llava_next import publish_llava_next
from tiny_qwen_vl import PUBLISHED_IDS, QWEN2_5_VL, QWEN3_VL, Kind, publish_qwen_vl
from tiny_smolvlm import IMAGE_TOKEN as SMOLVLM_TOKEN
from tiny_smolvlm import publish_smolvlm

from awq2trt.runtime import Model, user_message
from awq2trt.runtime.native import GenerateOptions, NativeModel
from awq2trt.runtime.ort.loading import DeviceOptions

PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate([(60, 80), (80, 60), (9, 120)])]
FREE = GenerateOptions(max_tokens=24, ignore_model_stops=True)


def _build_llava(folder: Path) -> Path:
    return build_llava(folder, "cpu") / "cpu"


def _build(folder: Path, capacity: int = 320) -> Path:
    build_for_cpu(folder, capacity)
    return folder / "built" / "cpu"


def _build_qwen_vl(folder: Path, kind: Kind = QWEN2_5_VL) -> Path:
    publish_qwen_vl(folder / "model", kind)
    return _build(folder)


def _build_llava_next(folder: Path) -> Path:
    publish_llava_next(folder / "model", {"max_position_embeddings": 400})
    return _build(folder, 400)


def _build_smolvlm(folder: Path) -> Path:
    publish_smolvlm(folder / "model", "smolvlm")
    return _build(folder, 520)


def _build_gemma3(folder: Path) -> Path:
    publish_gemma3(folder / "model")
    return _build(folder)


def _build_flamingo(folder: Path) -> Path:
    """Models of this kind have no chat template; this one has, so that it can be asked in turns."""
    save_flamingo(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    )
    return _build(folder, 200)


KINDS: dict[str, tuple[int, Callable[[Path], Path]]] = {
    "one size": (MARKER_TOKEN, _build_llava),
    "any size": (PUBLISHED_IDS[2], _build_qwen_vl),
    "deepstack": (PUBLISHED_IDS[2], lambda folder: _build_qwen_vl(folder, QWEN3_VL)),
    "tiles": (SMOLVLM_TOKEN, _build_smolvlm),
    "side by side": (MARKER_TOKEN, _build_llava_next),
    "seeing each other": (GEMMA_TOKEN, _build_gemma3),
    "attended": (FLAMINGO_TOKEN, _build_flamingo),
}
"""An image token, and what builds a model."""


@dataclass(frozen=True)
class Built:
    """A model for the CPU, in both runtimes.

    Attributes:
        directory: Where it is.
        files: The pictures.
        image_token: Stands for a piece of an image.
        native: In the C++ library.
        python: In Python's runtime.
    """

    directory: Path
    files: list[Path]
    image_token: int
    native: NativeModel
    python: Model


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    require_runtime_library()
    image_token, build = KINDS[request.param]
    folder = tmp_path_factory.mktemp("built")
    directory = build(folder)
    save_all(PICTURES, folder)
    files = [folder / f"{index}.png" for index in range(len(PICTURES))]
    python = Model.load(directory, DeviceOptions("cpu"))
    return Built(directory, files, image_token, NativeModel.load(directory), python)


@pytest.mark.parametrize("prompt", ["<image>a", "a<image> b<image>", "a"])
def test_plain_text_is_continued_as_by_the_python_runtime(prompt: str, built: Built) -> None:
    files = [built.files[2], built.files[1]][: prompt.count("<image>")]
    wanted = built.python.generate_text(prompt, images=files, raw=True, max_new_tokens=9)
    assert built.native.generate_text(prompt, images=files, raw=True, max_new_tokens=9) == wanted


def test_chunks_may_begin_and_end_within_an_image(built: Built, tmp_path: Path) -> None:
    short = Path(shutil.copytree(built.directory, tmp_path / "cpu"))
    shorten_calls(short, 10)
    messages, images = [user_message("<image>a<image>")], PICTURES[:2]
    chunked = asked(NativeModel.load(short), messages, images)
    assert chunked.generate(FREE).tokens == asked(built.native, messages, images).generate(FREE).tokens


def test_a_second_turn_sees_a_further_image_and_runs_only_what_is_new(built: Built) -> None:
    session = asked(built.native, [user_message("one")], [PICTURES[2]])
    first = session.generate(FREE)
    before = session.tokens
    session.append_image(PICTURES[1])
    session.append([user_message("two")])
    answer = session.generate(FREE)
    shared = next(i for i, (old, new) in enumerate(zip(before, session.tokens, strict=False)) if old != new)
    assert shared > before.count(built.image_token) > 0
    assert answer.prompt_tokens == len(session.tokens) - len(answer.tokens) - shared
    said = {"role": "assistant", "content": first.text}
    whole = [user_message("<image>\none"), said, user_message("<image>\ntwo")]
    in_turn = answered(built.python, whole, [built.files[2], built.files[1]], FREE.max_tokens)[1]
    assert answer.tokens == asked(built.native, whole, [PICTURES[2], PICTURES[1]]).generate(FREE).tokens == in_turn
    assert answer.tokens != asked(built.native, whole, [PICTURES[1], PICTURES[2]]).generate(FREE).tokens


def test_rewound_and_forked_sessions_keep_their_images(built: Built) -> None:
    native = built.native
    session = asked(native, [user_message("<image>a<image>b")], PICTURES[:2])
    prompt, answer = session.tokens, session.generate(FREE).tokens
    copy = session.fork()
    copy.rewind(len(prompt))
    assert copy.generate(FREE).tokens == answer
    second = len(prompt) - prompt[::-1].index(built.image_token)  # the first token behind the second image
    for kept in (second, second - 1, second - 5):
        copy = session.fork()
        copy.rewind(kept)
        again = native.session()
        for image in PICTURES[:2]:
            again.append_image(image)
        again.append_tokens(prompt)
        again.rewind(kept)
        np.testing.assert_allclose(copy.logits(), again.logits(), rtol=1e-4, atol=1e-4)
    waiting = native.session()
    waiting.append_image(PICTURES[2])
    copy = waiting.fork()
    copy.append([user_message("a")])
    assert copy.generate(FREE).tokens == asked(native, [user_message("a")], [PICTURES[2]]).generate(FREE).tokens
