"""Tiles of the C++ library, seen alone or side by side: those of Python and of transformers, bit for bit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from native_images import order, pixels, prepared_size
from native_text import UNSUPPORTED, NativeError
from numpy.typing import NDArray
from pictures import picture
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from awq2trt.errors import UnsupportedError
from awq2trt.images.processor import describe_processor
from awq2trt.models.vision.mosaic import MosaicLayout
from awq2trt.models.vision.prepared import Grid

SMOLVLM: dict[str, Any] = {
    "image_processor_type": "SmolVLMImageProcessor",
    "size": {"longest_edge": 2048},
    "max_image_size": {"longest_edge": 512},
}
LLAVA_NEXT: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "do_pad": True,
}
SMALL_TILES = {**SMOLVLM, "size": {"longest_edge": 45}, "max_image_size": {"longest_edge": 15}}
SMALL_MOSAIC = {
    **LLAVA_NEXT,
    "size": {"shortest_edge": 14},
    "crop_size": {"height": 14, "width": 14},
    "image_grid_pinpoints": [[14, 28], [28, 14], [28, 28], [42, 14], [14, 42]],
}
THEIRS = {"SmolVLMImageProcessor": Idefics3ImageProcessorPil, "LlavaNextImageProcessor": LlavaNextImageProcessorPil}


def check(config: dict[str, Any], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compares what the library makes with what Python makes, and returns it."""
    wanted = describe_processor(config, where="config").pixels(image)
    tiles, grid = pixels(config, image)
    assert wanted.grid is not None
    assert (1, *grid) == wanted.grid
    np.testing.assert_array_equal(tiles, wanted.values, err_msg=f"{config}, {image.shape}")
    return tiles


@pytest.mark.parametrize("config", [SMOLVLM, LLAVA_NEXT], ids=lambda config: config["image_processor_type"])
@pytest.mark.parametrize("shape", [(431, 387), (300, 25)], ids=str)
def test_published_models_see_these_tiles(config: dict[str, Any], shape: tuple[int, int]) -> None:
    image = picture(*shape)
    settings = {key: value for key, value in config.items() if key != "image_processor_type"}
    theirs: Any = THEIRS[config["image_processor_type"]](**settings)
    expected = theirs([[Image.fromarray(image)]], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(check(config, image), expected[0])


SHAPES = [(64, 64), (30, 25), (1, 200), (200, 1), (9, 700), (431, 387), (1, 1), (333, 334)]
SETTINGS: dict[str, dict[str, Any]] = {
    "tiles": SMALL_TILES,
    "by default": {"image_processor_type": "Idefics3ImageProcessorFast"},
    "larger than 4096": {**SMOLVLM, "size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 2048}},
    "one tile": {**SMOLVLM, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}},
    "not split": {**SMALL_TILES, "do_image_splitting": False},
    "not normalised": {**SMALL_TILES, "do_normalize": False, "do_pad": True, "resample": 2},
    "side by side": SMALL_MOSAIC,
    "one side by side": {**SMALL_MOSAIC, "image_grid_pinpoints": [[14, 14]]},
    "twice the same": {**SMALL_MOSAIC, "image_grid_pinpoints": [[14, 28], [28, 14], [28, 14]]},
    "height and width": {**SMALL_MOSAIC, "size": {"height": 14, "width": 14}},
    "cut out of larger tiles": {**SMALL_MOSAIC, "size": {"height": 20, "width": 16}},
    "not resized": {**SMALL_MOSAIC, "do_resize": False},
    "other colours": {**SMALL_MOSAIC, "image_mean": [0.5, 0.4, 0.3], "image_std": 0.2, "resample": 2},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_images_of_all_sizes_are_cut_as_by_python(settings: str) -> None:
    for shape in SHAPES if settings != "larger than 4096" else SHAPES[3:4]:
        check(SETTINGS[settings], picture(*shape))


def test_random_sizes_are_cut_alike() -> None:
    random = np.random.default_rng(9)
    for _ in range(100):
        side, longest = (int(length) for length in random.integers((3, 1), (20, 90)))
        tiles = {**SMOLVLM, "max_image_size": {"longest_edge": side}, "size": {"longest_edge": longest}}
        lengths = (side * random.integers(1, 5, (4, 2))).tolist()
        mosaic = {**SMALL_MOSAIC, "crop_size": side, "size": side, "image_grid_pinpoints": lengths}
        height, width = (int(length) for length in random.integers(1, 120, 2))
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        for config in (tiles, mosaic):
            check({**config, "resample": int(random.integers(0, 6))}, image)


def test_pieces_side_by_side_are_in_pythons_order() -> None:
    random = np.random.default_rng(10)
    for _ in range(2000):
        side, rows, columns, height, width = (int(length) for length in random.integers(1, (7, 5, 5, 90, 90)))
        wanted = MosaicLayout(side, 1).order(Grid(1, rows, columns), (height, width))
        got = order(side, (rows, columns), (height, width))
        assert got.tolist() == wanted.tolist(), (side, rows, columns, height, width)


CHANGES: list[dict[str, Any]] = [
    {"do_resize": False},
    {"do_resize": None},
    {"size": {"height": 3, "width": 3}},
    {"size": None},
    {"size": {"longest_edge": 14}},
    {"size": {"longest_edge": 14, "shortest_edge": 14}},
    {"max_image_size": 364},
    {"max_image_size": {"longest_edge": 0}},
    {"max_image_size": {"longest_edge": 1}},
    {"max_image_size": {"longest_edge": 8193}},
    {"max_image_size": None},
    {"do_image_splitting": "yes"},
    {"resample": 9},
    {"image_grid_pinpoints": None},
    {"image_grid_pinpoints": []},
    {"image_grid_pinpoints": [[14, 28], [14, 29]]},
    {"image_grid_pinpoints": [14, 28]},
    {"image_grid_pinpoints": [[14, 28, 14]]},
    {"image_grid_pinpoints": "(1x1),...,(6x6)"},
    {"image_grid_pinpoints": [[0, 14]]},
    {"image_grid_pinpoints": [[True, 14]]},
    {"image_grid_pinpoints": [[14.0, 14]]},
    {"image_grid_pinpoints": [[14 * 2**60, 14]]},
    {"image_grid_pinpoints": [[14 * 33, 14 * 33]]},
    {"crop_size": {"height": 14, "width": 28}},
    {"do_center_crop": False, "size": {"height": 14, "width": 28}},
    {"do_center_crop": False, "size": {"height": 14, "width": 14}},
    {"do_center_crop": False},
    {"image_std": 0},
]


@pytest.mark.parametrize("config", [SMALL_TILES, SMALL_MOSAIC], ids=["tiles", "side by side"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_keys_are_read_and_refused_as_by_python(change: dict[str, Any], config: dict[str, Any]) -> None:
    changed = {**config, **change}
    try:
        describe_processor(changed, where="config")
    except UnsupportedError as error:
        key = str(error).split(": ")[1]
        with pytest.raises(NativeError, match=re.escape(f"{key}: expected")) as caught:
            prepared_size(changed)
        assert caught.value.code == UNSUPPORTED
        return
    check(changed, picture(31, 50))
