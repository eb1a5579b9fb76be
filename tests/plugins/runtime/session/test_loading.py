"""Directories of models that see which the C++ library refuses to load, each with its own message."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_sessions import require_runtime_library
from tiny_llava import build_llava
from tiny_lowered import edit_manifest, replace_file

from awq2trt.runtime import native_library


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    return build_llava(tmp_path_factory.mktemp("llava"), "cpu") / "cpu"


@pytest.fixture
def changed(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cpu"))


def last_error() -> str:
    return str(native_library.library().awq2trt_last_error().decode())


def _family(value: dict[str, Any]) -> None:
    value["contents"]["model"]["vision"] = {"family": "another", "window": 8}


def _other_pieces(value: dict[str, Any]) -> None:
    value["contents"]["model"]["vision"]["tokens_per_image"] = 15


def _many_heads(value: dict[str, Any]) -> None:
    """More than 64 bits count the bytes of a cache."""
    io = value["contents"]["graphs"]["decoder"]["io"]
    for tensor in (*io["inputs"], *io["outputs"]):
        if tensor["name"].startswith(("past_", "present_")):
            tensor["shape"][1] = 2**24


def _high_token(value: dict[str, Any]) -> None:
    value["contents"]["model"]["vision"]["image_token"] = 10**6


def _negative_token(value: dict[str, Any]) -> None:
    value["contents"]["model"]["vision"]["image_token"] = -1


def _no_vision(value: dict[str, Any]) -> None:
    value["contents"]["model"]["vision"] = None


def _no_graph(value: dict[str, Any]) -> None:
    del value["contents"]["graphs"]["vision"]


def _unlisted(value: dict[str, Any]) -> None:
    del value["files"]["vision.onnx"]


def _more_inputs(value: dict[str, Any]) -> None:
    inputs = value["contents"]["graphs"]["vision"]["io"]["inputs"]
    inputs.append({**inputs[0], "name": "grid"})


def _other_side(value: dict[str, Any]) -> None:
    value["contents"]["graphs"]["vision"]["io"]["inputs"][0]["shape"] = ["images", 3, 58, 58]


def _other_width(value: dict[str, Any]) -> None:
    value["contents"]["graphs"]["embedding"]["io"]["outputs"][0]["shape"][2] = 64


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (
            _family,
            native_library.UNSUPPORTED,
            "the family 'another', only to those of 'gemma3-vision', 'llava', 'llava_next', 'openflamingo', "
            "'qwen2_5_vl', 'qwen3_vl', 'smolvlm'",
        ),
        (_other_pieces, native_library.UNSUPPORTED, "of these sizes"),
        (_many_heads, native_library.UNSUPPORTED, "a cache of these sizes"),
        (_high_token, native_library.UNSUPPORTED, "the image token 1000000 is not one of"),
        (_negative_token, native_library.MALFORMED, "a token is expected"),
        (_no_vision, native_library.UNSUPPORTED, "reads embeddings, and no graph makes them"),
        (_no_graph, native_library.MALFORMED, "the field vision is missing"),
        (_unlisted, native_library.MALFORMED, "'vision.onnx' of a graph is not among the files"),
        (_more_inputs, native_library.UNSUPPORTED, "without exactly the tensor pixel_values"),
        (_other_side, native_library.UNSUPPORTED, "makes 56 x 56 pixels, and the vision graph takes 58 x 58"),
        (_other_width, native_library.UNSUPPORTED, "of these sizes"),
    ],
)
def test_manifests_that_are_refused(
    change: Callable[[dict[str, Any]], None], code: int, says: str, changed: Path
) -> None:
    edit_manifest(changed, change)
    assert load_code(changed) == code
    assert says in last_error()


def load_code(directory: Path) -> int:
    """The error code of the C call itself, before Python's own look at the manifest."""
    structure = native_library.LoadOptionsStructure(size=ctypes.sizeof(native_library.LoadOptionsStructure))
    handle = ctypes.c_void_p()
    load = native_library.library().awq2trt_model_load
    return int(load(str(directory).encode(), ctypes.byref(structure), ctypes.byref(handle)))


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (None, native_library.NOT_FOUND, "expected an image processor in preprocessor_config.json"),
        ("{}", native_library.NOT_FOUND, "expected an image processor in preprocessor_config.json"),
        ("{", native_library.MALFORMED, "not JSON"),
        ('{"image_processor_type": "BlipImageProcessor"}', native_library.UNSUPPORTED, '"BlipImageProcessor"'),
        (
            '{"image_processor_type": "Gemma3ImageProcessor"}',
            native_library.UNSUPPORTED,
            "makes 224 x 224 pixels, and the vision graph takes 56 x 56",
        ),
        ('{"image_processor_type": "Idefics3ImageProcessor"}', native_library.UNSUPPORTED, "makes images of any size"),
        ('{"image_processor_type": "Qwen2VLImageProcessor"}', native_library.UNSUPPORTED, "makes images of any size"),
        (
            '{"image_processor_type": "CLIPImageProcessor"}',
            native_library.UNSUPPORTED,
            "makes 224 x 224 pixels, and the vision graph takes 56 x 56",
        ),
        (
            '{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}',
            native_library.UNSUPPORTED,
            "makes images of any size",
        ),
    ],
)
def test_processors_that_are_refused(text: str | None, code: int, says: str, changed: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (changed / name).is_file():
            (changed / name).unlink()
            edit_manifest(changed, lambda value, name=name: value["files"].pop(name))  # type: ignore[misc]
    if text is not None:
        replace_file(changed, "preprocessor_config.json", text.encode())
    assert load_code(changed) == code
    assert says in last_error()
