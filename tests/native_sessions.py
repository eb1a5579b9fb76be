"""What tests of the C++ library share: that it is built, and what both runtimes make of messages and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_lowered import edit_manifest, replace_file

from awq2trt.errors import Awq2trtError, ToolError, UsageError
from awq2trt.machine.runtime_library import find_runtime_library
from awq2trt.runtime import Model, Sampler, Sampling, generate, native_library
from awq2trt.runtime.native import GenerateOptions, NativeModel, NativeSession

Pictures = Sequence[NDArray[np.uint8]]


def require_runtime_library() -> None:
    """Skips a test, or all tests of a fixture, where `make runtime` has not built the library."""
    try:
        find_runtime_library()
    except ToolError:
        pytest.skip("the C++ library is not built: make runtime")


def save_all(pictures: Pictures, folder: Path) -> None:
    """Saves pictures, RGB uint8 [height, width, 3], as `0.png` and so on."""
    for index, image in enumerate(pictures):
        Image.fromarray(image).save(folder / f"{index}.png")


def asked(model: NativeModel, messages: Sequence[Any], images: Pictures, room: int = 0) -> NativeSession:
    """A session of the C++ library with images and messages, or a text; `room` is its capacity, 0 for the model's."""
    session = model.session(room)
    for image in images:
        session.append_image(image)
    if isinstance(messages, str):
        session.append_text(messages, allow_special=True)
    else:
        session.append(messages)
    return session


def answered(
    model: Model, messages: Sequence[Any], files: Sequence[Path], count: int | None
) -> tuple[list[int], list[int]]:
    """The Python runtime's prompt and greedy answer of so many tokens; None for all that fit."""
    assert model.sight is not None
    tokens = model._tokens(model.sight, messages, model.sight.prepare(files))
    return tokens, continued(model, tokens, files, count)


def continued(model: Model, tokens: Sequence[int], files: Sequence[Path], count: int | None) -> list[int]:
    """The Python runtime's greedy answer to tokens with images, as of `answered`."""
    assert model.sight is not None
    options: dict[str, Any] = {"max_new_tokens": count, "images": model.sight.prepare(files)}
    return list(generate(model.backend, tokens, Sampler(Sampling()), **options))


def assert_same(
    native: NativeModel, python: Model, messages: Sequence[Any], pictures: Sequence[NDArray[np.uint8]], folder: Path
) -> list[int]:
    """Asserts that both runtimes make the same prompt of messages, or a text, and pictures, and answer the same.

    Args:
        native: In the C++ library.
        python: In Python's runtime.
        messages: The messages.
        pictures: The pictures, in their order.
        folder: Where their files may be written.

    Returns:
        The prompt.
    """
    save_all(pictures, folder)
    files = [folder / f"{index}.png" for index in range(len(pictures))]
    options = GenerateOptions(max_tokens=24, ignore_model_stops=True)
    tokens, answer = answered(python, messages, files, options.max_tokens)
    session = asked(native, messages, pictures)
    assert session.tokens == tokens
    assert session.generate(options).tokens == answer
    assert len(set(answer)) > 3, "an answer of one token again and again would be no proof"
    return tokens


def assert_advice_counts_texts(native: NativeModel, image: NDArray[np.uint8]) -> None:
    """Asserts that an image too many is refused with the tokens of all images and of what is written around them."""
    one = len(asked(native, "a<image>", [image]).tokens) - len(native.encode("a"))
    session, shown = native.session(), 0
    with pytest.raises(UsageError, match="would need more than") as caught:
        while shown <= native.capacity:
            session.append_image(image)
            shown += 1
    assert f"with a --max-seq-len of more than {one * (shown + 1)}, for the text" in str(caught.value)


def assert_refused(directory: Path, change: Callable[[dict[str, Any]], Any], says: str) -> None:
    """Asserts that a model is refused once its manifest is changed, with a message that matches `says`."""
    edit_manifest(directory, change)
    with pytest.raises(Awq2trtError, match=says) as caught:
        NativeModel.load(directory)
    assert vars(caught.value)["code"] in (native_library.MALFORMED, native_library.UNSUPPORTED)


def assert_golden_finds(directory: Path, name: str, content: bytes, code: int, says: str | None = None) -> None:
    """Asserts that golden outputs pass, and no longer when one of their files has another content."""
    worst, allowed = NativeModel.load(directory).check()
    assert 0.0 <= worst <= allowed
    replace_file(directory, name, content)
    with pytest.raises(Awq2trtError, match=says) as caught:
        NativeModel.load(directory).check()
    assert vars(caught.value)["code"] == code


def shorten_calls(directory: Path, longest: int) -> None:
    """Makes a lowered model say that a call of its decoder takes so many tokens at most."""

    def change(value: dict[str, Any]) -> None:
        for profile in value["contents"]["lowered"]["profiles"]["decoder"]:
            profile["axes"]["sequence"]["longest"] = longest

    edit_manifest(directory, change)
