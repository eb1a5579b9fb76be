"""Patches of images of any size against transformers' own processor, and limits of their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import UnsupportedError
from awq2trt.images.patches import Patches
from awq2trt.images.processor import limit_pieces_, read_processor
from awq2trt.models.vision.windowed import WindowLayout

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "published": {"min_pixels": 3136, "max_pixels": 12845056},
    "Qwen3-VL": {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "small": {"size": {"shortest_edge": 4 * 784, "longest_edge": 20 * 784}},
    "other patches": {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 1, "max_pixels": 100_000},
    "other colours": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5},
    "plain": {"do_normalize": False, "resample": 2},
}
SIZES = [(224, 224), (28, 28), (30, 25), (1, 200), (200, 1), (9, 700), (431, 387), (900, 1200), (42, 70)]


def _grid(height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns by transformers."""
    seen: Any = Qwen2VLImageProcessorPil(**settings)(Image.new("RGB", (width, height)), return_tensors="np")
    _, rows, columns = seen["image_grid_thw"][0]
    return int(rows), int(columns)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_patches_are_those_of_transformers(settings: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = Qwen2VLImageProcessorPil(**SETTINGS[settings])
    theirs.save_pretrained(tmp_path)
    image = picture(*size)
    expected: Any = theirs(Image.fromarray(image), return_tensors="np")
    values, grid = read_processor(tmp_path).pixels(image)[:2]
    assert grid is not None
    assert [*grid] == expected["image_grid_thw"][0].tolist()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected["pixel_values"])


def test_a_published_file_has_its_numbers_beside_no_size(tmp_path: Path) -> None:
    published = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    found = read_processor(tmp_path)
    assert isinstance(found, Patches)
    assert (found.fewest, found.most, found.patch_size, found.frames, found.merge) == (3136, 12845056, 14, 2, 2)
    kind = {"image_processor_type": "Qwen2VLImageProcessorFast"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**kind, **SETTINGS["Qwen3-VL"]}))
    found = read_processor(tmp_path)
    assert isinstance(found, Patches)
    assert (found.fewest, found.most, found.patch_size, found.frames, found.merge) == (65536, 16777216, 16, 2, 2)


@pytest.mark.parametrize("nested", [False, True])
def test_a_limit_is_one_for_transformers_too(nested: bool, tmp_path: Path) -> None:
    settings = Qwen2VLImageProcessorPil(**SETTINGS["published"]).to_dict()
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": settings} if nested else settings))
    vision = VisionRecord(family="qwen2_5_vl", image_token=1, tokens_per_image=None, settings={})
    limited = limit_pieces_(tmp_path, vision, 30)
    assert isinstance(limited, Patches)
    assert limited == read_processor(tmp_path)
    image = picture(600, 800)
    values, grid = limited.pixels(image)[:2]
    assert grid is not None
    assert grid.cells <= 30 * 4
    written = json.loads((tmp_path / name).read_text())
    theirs: Any = Qwen2VLImageProcessorPil(**written["image_processor"] if nested else written)
    np.testing.assert_array_equal(values, theirs(Image.fromarray(image), return_tensors="np")["pixel_values"])
    before = (tmp_path / name).read_bytes()
    assert limit_pieces_(tmp_path, vision, 4000) == limited, "a limit is never raised"
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(("fewest", "most"), [(4, 24), (4, 1280), (16, 16), (1, 3), (1, 1)])
def test_no_image_has_more_pieces_or_windows_than_engines_are_built_for(fewest: int, most: int) -> None:
    layout = WindowLayout(patch_size=14, merge=2, window_size=112)
    settings = {"min_pixels": fewest * 784, "max_pixels": most * 784}
    pieces = layout.most_pieces(fewest * 784, most * 784)
    windows = layout.most_windows(pieces)
    sizes = [
        (1, 200),
        (200, 1),
        (30, 6000),
        (43, 8600),
        (41, 8190),
        (500, 500),
        (40, 50),
        (55, 70),
        (1, 1),
        (900, 1200),
    ]
    for size in sizes:
        rows, columns = (length // 2 for length in _grid(*size, settings))
        assert rows * columns <= pieces, size
        assert -(-rows // 4) * -(-columns // 4) <= windows, size


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no resizing": ({"do_resize": False}, "do_resize: expected true"),
    "size": ({"size": {"height": 3, "width": 3}}, "size: expected numbers under shortest_edge and longest_edge"),
    "most": ({"max_pixels": "many"}, "max_pixels: expected a whole number from 1 to 67108864, got 'many'"),
    "order": ({"min_pixels": 5000, "max_pixels": 4000}, r"max_pixels: expected min_pixels \(5000\) to"),
    "order in size": (
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 5000, "longest_edge": 4000}},
        r"size: expected longest_edge from min_pixels \(5000\) to .*got {'shortest_edge': 5000, 'longest_edge': 4000}",
    ),
    "patch": ({"patch_size": 0}, "patch_size: expected a whole number from 1 to 8192, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused(case: str, tmp_path: Path) -> None:
    changes, says = BAD[case]
    config = {**Qwen2VLImageProcessorPil().to_dict(), **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=says) as raised:
        read_processor(tmp_path)
    assert raised.value.where is not None
    assert raised.value.where.endswith("preprocessor_config.json")
