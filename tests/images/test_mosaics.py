"""Mosaics of images against transformers' own processor, limits of their size, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import UnsupportedError
from awq2trt.images.mosaics import Mosaics
from awq2trt.images.processor import limit_pieces_, read_processor
from awq2trt.models.vision.prepared import Grid

PUBLISHED: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
"""As llava-hf/llava-v1.6-mistral-7b-hf has it, with the class's own heights and widths."""

SMALL: dict[str, Any] = {
    "size": {"shortest_edge": 14},
    "crop_size": {"height": 14, "width": 14},
    "image_grid_pinpoints": [[14, 28], [28, 14], [28, 28], [42, 14], [14, 42]],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "small": SMALL,
    "one tile": {**SMALL, "image_grid_pinpoints": [[14, 14]]},
    "twice the same": {**SMALL, "image_grid_pinpoints": [[14, 28], [28, 14], [28, 14]]},
    "height and width": {**SMALL, "size": {"height": 14, "width": 14}},
    "cut out of larger tiles": {**SMALL, "size": {"height": 20, "width": 16}},
    "not resized": {**SMALL, "do_resize": False, "do_pad": False},
    "other colours": {**SMALL, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "resample": 2},
}
SIZES = [(64, 64), (30, 25), (1, 200), (200, 1), (9, 90), (41, 80), (1, 1), (14, 28), (28, 28), (33, 34)]


def _theirs(processor: Any, image: np.ndarray) -> np.ndarray:
    tiles: np.ndarray = processor([Image.fromarray(image)], return_tensors="np")["pixel_values"][0]
    return tiles


@pytest.mark.parametrize(
    ("settings", "size"),
    [*((PUBLISHED, size) for size in ((431, 387), (300, 25))), *itertools.product(SETTINGS.values(), SIZES)],
    ids=str,
)
def test_tiles_are_those_of_transformers(settings: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    theirs: Any = LlavaNextImageProcessorPil(**settings)
    theirs.save_pretrained(tmp_path)
    image = picture(*size)
    values, grid, shape = read_processor(tmp_path).pixels(image)
    assert values.dtype == np.float32
    assert grid is not None
    assert len(values) == grid.cells + 1
    assert shape == size
    np.testing.assert_array_equal(values, _theirs(theirs, image))


def test_a_limit_is_one_for_transformers_too(tmp_path: Path) -> None:
    """The published heights and widths, as tokens of an image that fills them: 1752, 1776, 2928, 2376 and 2340."""
    LlavaNextImageProcessorPil(**PUBLISHED).save_pretrained(tmp_path)
    numbers: dict[str, Any] = {"image_size": 336, "patch_size": 14, "image_grid_pinpoints": []}
    vision = VisionRecord(family="llava_next", image_token=1, tokens_per_image=None, settings=numbers)
    assert limit_pieces_(tmp_path, vision, 2928) == read_processor(tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_bytes()
    limited = limit_pieces_(tmp_path, vision, 2375)
    assert isinstance(limited, Mosaics)
    assert limited.sizes == ((336, 672), (672, 336), (336, 1008))
    assert limited.settings() == {"image_grid_pinpoints": [[336, 672], [672, 336], [336, 1008]]}
    assert limited.largest == "336 x 1008 pixels, 4 tiles in all"
    assert limited == read_processor(tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_bytes() != before
    image = picture(300, 320)
    values, grid, _ = limited.pixels(image)
    assert grid == Grid(1, 1, 2)
    np.testing.assert_array_equal(values, _theirs(LlavaNextImageProcessorPil.from_pretrained(tmp_path), image))
    assert limit_pieces_(tmp_path, vision, 4000) == limited, "a limit is never raised"
    smallest = limit_pieces_(tmp_path, vision, 1)
    assert isinstance(smallest, Mosaics)
    assert smallest.sizes == ((336, 672),)


SIZES_WANTED = "image_grid_pinpoints: expected heights and widths that are multiples of the tower's 14 pixels"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "the class's own": ({"image_grid_pinpoints": None}, SIZES_WANTED),
    "none": ({"image_grid_pinpoints": []}, SIZES_WANTED),
    "ragged": ({"image_grid_pinpoints": [[14, 28], [14, 29]]}, SIZES_WANTED),
    "one number": ({"image_grid_pinpoints": [14, 28]}, SIZES_WANTED),
    "three numbers": ({"image_grid_pinpoints": [[14, 28, 14]]}, SIZES_WANTED),
    "words": ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, SIZES_WANTED),
    "nothing": ({"image_grid_pinpoints": [[0, 14]]}, SIZES_WANTED),
    "true": ({"image_grid_pinpoints": [[True, 14]]}, SIZES_WANTED),
    "a wall": ({"image_grid_pinpoints": [[14 * 33, 14 * 33]]}, "1024 tiles at most"),
    "crop": ({"crop_size": {"height": 14, "width": 28}}, "crop_size: expected a square, to which size 14 x 14"),
    "not cut": ({"do_center_crop": False, "size": {"height": 14, "width": 28}}, "crop_size: expected a square"),
    "size": ({"size": {"longest_edge": 14}}, "size: expected"),
    "filter": ({"resample": 9}, "resample: expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused(case: str, tmp_path: Path) -> None:
    changes, says = BAD[case]
    config = {**LlavaNextImageProcessorPil(**SMALL).to_dict(), **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=says) as raised:
        read_processor(tmp_path)
    assert raised.value.where is not None
    assert raised.value.where.endswith("preprocessor_config.json")
