"""Prepared images of the C++ library: those of Python's own preparation, which are transformers', bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_images import prepare, prepared_size
from native_text import MALFORMED, UNSUPPORTED, NativeError
from pictures import picture
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from awq2trt.errors import UnsupportedError
from awq2trt.images import read
from awq2trt.images.processor import describe_processor
from awq2trt.models.vision.prepared import MOST_ELONGATED

CLIP: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor"}
GEMMA: dict[str, Any] = {"image_processor_type": "Gemma3ImageProcessor"}
LLAVA: dict[str, Any] = {**CLIP, "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}

SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (7, 7), (24, 24), (25, 23), (37, 1000), (1000, 37), (199, 1), (1, 20_000)]
SIZES += [(20_000, 1), (336, 336), (337, 335), (480, 640), (641, 479), (335, 2001), (1536, 2048)]

SETTINGS: dict[str, dict[str, Any]] = {
    "CLIP's defaults": {},
    "small": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "crop beyond the image": {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 24}},
    "no resizing": {"do_resize": False, "crop_size": {"height": 51, "width": 40}},
    "both sides": {"size": {"height": 30, "width": 44}, "do_center_crop": False},
    "one side": {"size": {"height": 24, "width": 37}, "crop_size": 24},
    "no normalising": {"do_normalize": False, "size": 30, "crop_size": 31},
    "other colours": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5},
    "one colour for all": {"image_mean": 0.5, "image_std": 0.25, "size": 30, "crop_size": 30},
    "no scaling": {"do_rescale": False, "size": 30, "crop_size": 30},
    "neither": {"do_rescale": False, "do_normalize": False, "size": 30, "crop_size": 30},
    **{
        f"filter {number}": {
            "resample": number,
            "size": {"shortest_edge": 29},
            "crop_size": {"height": 30, "width": 29},
        }
        for number in range(6)
    },
}


def expected(config: dict[str, Any], image: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
    return describe_processor(config, where="config").pixels(image).values


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_images_of_all_sizes_are_prepared_as_for_llava(size: tuple[int, int]) -> None:
    image = picture(*size)
    got = prepare(LLAVA, image)
    if max(size) > 200 * min(size):  # the whole resized image, which this library never makes, has gigabytes
        small = {**CLIP, "size": {"shortest_edge": 5}, "crop_size": {"height": 5, "width": 6}}
        np.testing.assert_array_equal(prepare(small, image), expected(small, image))
        assert np.isfinite(got).all()
        return
    np.testing.assert_array_equal(got, expected(LLAVA, image))
    theirs = CLIPImageProcessorPil(size=LLAVA["size"], crop_size=LLAVA["crop_size"])
    np.testing.assert_array_equal(got, theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize("settings", SETTINGS)
def test_all_settings_give_the_same_pixels(settings: str) -> None:
    config = {**CLIP, **SETTINGS[settings]}
    for size in [(1, 1), (3, 2), (24, 24), (30, 44), (29, 29), (25, 23), (60, 13), (97, 150)]:
        image = picture(*size)
        np.testing.assert_array_equal(prepare(config, image), expected(config, image), err_msg=str(size))


def test_random_sizes_and_settings_give_the_same_pixels() -> None:
    random = np.random.default_rng(7)
    for _ in range(300):
        edge, height, width, rows, columns = (int(side) for side in random.integers(1, 90, 5))
        size: dict[str, int] = {"shortest_edge": edge} if random.random() < 0.7 else {"height": edge, "width": height}
        config = {
            **CLIP,
            "size": size,
            "crop_size": {"height": height, "width": width},
            "resample": int(random.integers(0, 6)),
        }
        image = random.integers(0, 256, (rows, columns, 3), np.uint8)
        np.testing.assert_array_equal(
            prepare(config, image), expected(config, image), err_msg=f"{config}, {rows} x {columns}"
        )


@pytest.mark.parametrize("size", SIZES[:10], ids=lambda size: f"{size[0]}x{size[1]}")
def test_images_are_prepared_as_for_gemma(size: tuple[int, int]) -> None:
    image = picture(*size)
    config = {**GEMMA, "size": {"height": 56, "width": 56}}
    got = prepare(config, image)
    np.testing.assert_array_equal(got, expected(config, image))
    theirs = Gemma3ImageProcessorPil(size=config["size"])
    np.testing.assert_array_equal(got, theirs(Image.fromarray(image), return_tensors="np")["pixel_values"][0])


CHANGES: list[dict[str, Any]] = [
    {"image_processor_type": "CLIPImageProcessorFast"},
    {"image_processor_type": "CLIPImageProcessorPil"},
    {"image_processor_type": "SiglipImageProcessor"},
    {"image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor"},
    {"image_processor_type": None},
    {"do_pad": True},
    {"do_pad": None},
    {"do_resize": "yes"},
    {"do_center_crop": None},
    {"size": {"longest_edge": 3}},
    {"size": {"shortest_edge": 3, "longest_edge": 3}},
    {"size": {"shortest_edge": 0}},
    {"size": 0},
    {"size": None},
    {"size": 8192},
    {"size": 8193},
    {"size": 33.0},
    {"size": [3, 4]},
    {"crop_size": {"height": -1, "width": 3}},
    {"crop_size": {"height": 7, "width": 3}},
    {"crop_size": {"height": 7}},
    {"crop_size": 10**30},
    {"resample": 9},
    {"resample": -1},
    {"resample": 2.5},
    {"resample": 2.0},
    {"resample": None},
    {"resample": "3"},
    {"image_mean": [0.5]},
    {"image_mean": [0.5, "a", 1]},
    {"image_mean": None},
    {"image_std": [0.5, 0, 1]},
    {"image_std": -1},
    {"image_std": [0.5, 0, 1], "do_normalize": False},
    {"rescale_factor": None},
    {"rescale_factor": 0},
    {"rescale_factor": 1},
    {"rescale_factor": True},
    {"rescale_factor": None, "do_rescale": False},
]


GEMMA_CHANGES: list[dict[str, Any]] = [
    {},
    {"image_processor_type": "Gemma3ImageProcessorFast"},
    {"do_pan_and_scan": True},
    {"do_pan_and_scan": False},
    {"do_pan_and_scan": None},
    {"do_pad": True},
    {"do_center_crop": True, "crop_size": 7},
    {"size": 33},
    {"size": {"height": 30, "width": 44}},
    {"size": {"shortest_edge": 30}},
    {"size": None},
    {"resample": 3},
    {"resample": 9},
    {"image_mean": [0.5, 0.4, 0.3]},
    {"image_std": 0},
    {"do_normalize": False},
    {"do_rescale": False},
]


@pytest.mark.parametrize(
    "config",
    [{**CLIP, **change} for change in CHANGES] + [{**GEMMA, **change} for change in GEMMA_CHANGES],
    ids=lambda config: json.dumps(config)[25:85],
)
def test_descriptions_are_taken_and_refused_as_by_python(config: dict[str, Any]) -> None:
    image = picture(9, 8)
    try:
        wanted = None if "8192" in str(config) else expected(config, image)
    except UnsupportedError as error:
        with pytest.raises(NativeError) as caught:
            prepared_size(config)
        assert caught.value.code == UNSUPPORTED
        (key,) = re.findall(r"^(\w+): expected", error.what)
        assert f": {key}: expected " in str(caught.value)
        return
    size = prepared_size(config)
    assert wanted is None or size == wanted.shape[1:]
    if wanted is not None:
        np.testing.assert_array_equal(prepare(config, image), wanted)


def test_a_processor_of_another_kind_is_refused_by_name() -> None:
    expected = 'Idefics3ImageProcessor or Gemma3ImageProcessor, got "BlipImageProcessorFast"'
    with pytest.raises(NativeError, match=expected) as caught:
        prepared_size({"image_processor_type": "BlipImageProcessorFast"})
    assert caught.value.code == UNSUPPORTED


def test_what_is_made_of_any_size_has_none() -> None:
    assert prepared_size({**GEMMA, "do_resize": False}) is None
    assert prepared_size({**CLIP, "do_center_crop": False}) is None
    assert prepared_size({**CLIP, "do_center_crop": False, "size": {"height": 3, "width": 4}}) == (3, 4)


def test_a_part_of_a_complete_processor_is_read() -> None:
    assert prepared_size({"image_processor": {**CLIP, "crop_size": 7}, "image_token": "<image>"}) == (7, 7)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b'{"image_processor": []}', b"[" * 100_000, b'{"a": 1e999}'])
def test_what_is_no_description(text: bytes) -> None:
    with pytest.raises(NativeError) as caught:
        prepared_size(text)
    assert caught.value.code == MALFORMED


def test_limits_of_sizes_are_those_of_python() -> None:
    source = (Path(__file__).parents[4] / "plugins" / "runtime" / "images" / "processor.h").read_text()
    assert f"kMostPixels = int64_t{{1}} << {read.MOST_PIXELS.bit_length() - 1};" in source
    assert f"kMostElongated = {MOST_ELONGATED};" in source
