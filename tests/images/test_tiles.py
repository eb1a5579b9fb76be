"""Tiles of images against transformers' own processor, and limits of their number."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import UnsupportedError
from awq2trt.images.processor import limit_pieces_, read_processor
from awq2trt.images.tiles import Tiles
from awq2trt.models.vision.prepared import Grid

PUBLISHED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "SmolVLM-256M": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "SmolVLM-Instruct": {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
    "larger than 4096": {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 2048}},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "odd": {"size": {"longest_edge": 45}, "max_image_size": {"longest_edge": 15}},
    "one tile": {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}},
    "not split": {"do_image_splitting": False, "max_image_size": {"longest_edge": 70}, "size": {"longest_edge": 100}},
    "other colours": {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "rescale_factor": 1 / 127.5,
        "size": {"longest_edge": 200},
        "max_image_size": {"longest_edge": 64},
    },
    "plain": {"do_normalize": False, "do_pad": False, "resample": 2, "size": {"longest_edge": 500}},
}
SIZES = [(64, 64), (30, 25), (1, 200), (200, 1), (9, 700), (431, 387), (1, 1), (333, 334)]


@pytest.mark.parametrize(
    ("settings", "size"),
    [*((name, (300, 25)) for name in PUBLISHED), ("SmolVLM-256M", (431, 387)), *itertools.product(SETTINGS, SIZES)],
    ids=str,
)
def test_tiles_are_those_of_transformers(settings: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs: Any = Idefics3ImageProcessorPil(**(PUBLISHED | SETTINGS)[settings])
    theirs.save_pretrained(tmp_path)
    image = picture(*size)
    expected = theirs([[Image.fromarray(image)]], return_tensors="np", return_row_col_info=True)
    processor = read_processor(tmp_path)
    assert isinstance(processor, Tiles)
    values, grid = processor.pixels(image)[:2]
    rows, columns = expected["rows"][0][0], expected["cols"][0][0]
    assert grid == Grid(1, max(1, rows), max(1, columns))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected["pixel_values"][0])
    assert len(values) <= processor.most


def test_smolvlms_class_is_the_same(tmp_path: Path) -> None:
    theirs: Any = SmolVLMImageProcessorPil(**PUBLISHED["SmolVLM-256M"])
    theirs.save_pretrained(tmp_path)
    image = picture(300, 500)
    values, grid = read_processor(tmp_path).pixels(image)[:2]
    assert grid == Grid(1, 3, 4)
    np.testing.assert_array_equal(values, theirs([[Image.fromarray(image)]], return_tensors="np")["pixel_values"][0])


def test_no_image_has_more_tiles_than_is_said(tmp_path: Path) -> None:
    """Sides in all proportions; an odd side that becomes even may need a tile more."""
    for longest, side in ((45, 15), (60, 15), (50, 15), (16, 16), (21, 7), (7, 7)):
        settings: dict[str, Any] = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}}
        Idefics3ImageProcessorPil(**settings).save_pretrained(tmp_path)
        processor = read_processor(tmp_path)
        assert isinstance(processor, Tiles)
        shapes = [(60, width) for width in range(1, 121)]
        counts = [len(processor.pixels(np.zeros((*shape, 3), np.uint8)).values) for shape in shapes]
        assert max(counts) == processor.most, (longest, side)


@pytest.mark.parametrize("nested", [False, True])
def test_a_limit_is_one_for_transformers_too(nested: bool, tmp_path: Path) -> None:
    settings = Idefics3ImageProcessorPil(**PUBLISHED["SmolVLM-256M"]).to_dict()
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": settings} if nested else settings))
    numbers: dict[str, Any] = {"image_size": 512, "patch_size": 16, "scale_factor": 4}
    vision = VisionRecord(family="smolvlm", image_token=1, tokens_per_image=None, settings=numbers)
    limited = limit_pieces_(tmp_path, vision, 16 * 64)
    assert limited == read_processor(tmp_path)
    assert isinstance(limited, Tiles)
    assert (limited.longest, limited.most) == (1536, 10), "the longest side is a multiple of a tile's"
    image = picture(600, 800)
    values, _ = limited.pixels(image)[:2]
    written = json.loads((tmp_path / name).read_text())
    theirs: Any = Idefics3ImageProcessorPil(**written["image_processor"] if nested else written)
    np.testing.assert_array_equal(values, theirs([[Image.fromarray(image)]], return_tensors="np")["pixel_values"][0])
    before = (tmp_path / name).read_bytes()
    assert limit_pieces_(tmp_path, vision, 40 * 64) == limited, "a limit is never raised"
    assert (tmp_path / name).read_bytes() == before
    smallest = limit_pieces_(tmp_path, vision, 1)
    assert isinstance(smallest, Tiles)
    assert (smallest.longest, smallest.most) == (512, 1)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no resizing": ({"do_resize": False}, "do_resize: expected true"),
    "size": ({"size": {"height": 3, "width": 3}}, "size: expected a number from 1 to 8192 under longest_edge"),
    "tile": ({"max_image_size": 364}, "max_image_size: expected a number from 1 to 8192 under longest_edge, got 364"),
    "nothing": ({"max_image_size": {"longest_edge": 0}}, "max_image_size: expected a number from 1 to 8192"),
    "crumbs": (
        {"max_image_size": {"longest_edge": 1}},
        "tiles of which a square image of 1456 pixels has 1024 at most",
    ),
    "splitting": ({"do_image_splitting": "yes"}, "do_image_splitting: expected true or false, got 'yes'"),
    "filter": ({"resample": 9}, "resample: expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused(case: str, tmp_path: Path) -> None:
    changes, says = BAD[case]
    config = {**Idefics3ImageProcessorPil().to_dict(), **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=says) as raised:
        read_processor(tmp_path)
    assert raised.value.where is not None
    assert raised.value.where.endswith("preprocessor_config.json")
