"""Patches of the C++ library, and their windows: those of Python and of transformers, bit for bit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from native_images import divide
from native_text import UNSUPPORTED, NativeError
from pictures import picture
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.errors import UnsupportedError
from awq2trt.images.processor import describe_processor
from awq2trt.io_contract import PATCH_PLACES, PATCH_SLOTS, WINDOW_PATCHES
from awq2trt.models.vision.windowed import WindowLayout

QWEN: dict[str, Any] = {"image_processor_type": "Qwen2VLImageProcessor"}
SMALL = {**QWEN, "patch_size": 4, "size": {"shortest_edge": 256, "longest_edge": 1536}}

SHAPES = [(1, 1), (1, 200), (28, 28), (14, 42), (70, 70), (336, 337), (480, 640), (641, 479), (9, 1700), (1300, 1600)]


def check(config: dict[str, Any], image: np.ndarray[Any, Any], side: int) -> None:
    """Compares all that the library makes with what Python makes."""
    patch_size, merge = config.get("patch_size", 14), config.get("merge_size", 2)
    wanted = describe_processor(config, where="config").pixels(image)
    inputs = WindowLayout(patch_size, merge, side * merge * patch_size).prepared(wanted).inputs
    made = divide(config, image, side)
    for got, expected in zip(
        made, (wanted.values, *(inputs[name] for name in (PATCH_PLACES, WINDOW_PATCHES, PATCH_SLOTS))), strict=True
    ):
        np.testing.assert_array_equal(got, expected, err_msg=f"{config}, {image.shape}, {side}")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_images_of_all_sizes_are_divided_as_for_qwen(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    check(QWEN, image, 4)
    theirs: Any = Qwen2VLImageProcessorPil()(Image.fromarray(image), return_tensors="np")
    np.testing.assert_array_equal(divide(QWEN, image, 4)[0], theirs["pixel_values"])


def test_random_sizes_and_settings_are_divided_alike() -> None:
    random = np.random.default_rng(8)
    for _ in range(150):
        patch_size, merge = int(random.integers(1, 9)), int(random.integers(1, 4))
        fewest = int(random.integers(1, 3000))
        config = {
            **QWEN,
            "patch_size": patch_size,
            "merge_size": merge,
            "temporal_patch_size": int(random.integers(1, 4)),
            "resample": int(random.integers(0, 6)),
            "min_pixels": fewest,
            "max_pixels": fewest + int(random.integers(0, 9000)),
        }
        height, width = (int(length) for length in random.integers(1, 120, 2))
        check(config, random.integers(0, 256, (height, width, 3), np.uint8), int(random.integers(1, 6)))


CHANGES: list[dict[str, Any]] = [
    {"image_processor_type": "Qwen2VLImageProcessorFast"},
    {"do_resize": False},
    {"do_pad": True},
    {"size": None},
    {"size": {"shortest_edge": 256}},
    {"size": {"shortest_edge": 256, "longest_edge": 255}},
    {"size": {"shortest_edge": 256, "longest_edge": 1e3}},
    {"size": {"shortest_edge": 256, "longest_edge": 2**60}},
    {"size": {"shortest_edge": 0, "longest_edge": 300}},
    {"min_pixels": 0},
    {"min_pixels": 2000},
    {"max_pixels": 8192**2 + 1},
    {"max_pixels": None},
    {"patch_size": 0},
    {"patch_size": 2.0},
    {"merge_size": "2"},
    {"temporal_patch_size": 1},
    {"do_normalize": False},
    {"do_rescale": False},
    {"image_mean": 0.5, "image_std": 0.25},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_keys_are_read_and_refused_as_by_python(change: dict[str, Any]) -> None:
    config = {**SMALL, **change}
    image = picture(31, 50)
    try:
        describe_processor(config, where="config")
    except UnsupportedError as error:
        key = str(error).split(": ")[1]
        with pytest.raises(NativeError, match=re.escape(f"{key}: expected")) as caught:
            divide(config, image, 3)
        assert caught.value.code == UNSUPPORTED
        return
    check(config, image, 3)
