"""Images in tiles as data: what is written around their pieces, and what a manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_smolvlm import IMAGE_TOKEN, save_smolvlm
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from awq2trt.artifact.records import VisionRecord
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.arranging import arranged, require_settings, tokens_around
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.tiled import TiledVisionSpec

SETTINGS: dict[str, Any] = {"image_size": 24, "patch_size": 4, "scale_factor": 2}


def _record(settings: dict[str, Any]) -> VisionRecord:
    return VisionRecord(family="smolvlm", image_token=IMAGE_TOKEN, tokens_per_image=None, settings=settings)


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 3), (4, 4), (7, 1)], ids=str)
def test_an_image_is_written_as_by_transformers_processor(grid: tuple[int, int]) -> None:
    tiles = 1 if grid == (1, 1) else grid[0] * grid[1] + 1
    pixels = Pixels(np.arange(tiles * 3 * 24 * 24, dtype=np.float32).reshape(tiles, 3, 24, 24), Grid(1, *grid))
    image = arranged(_record(SETTINGS), pixels)
    rows, columns = (0, 0) if grid == (1, 1) else grid
    markers = ("<fake_token_around_image>", "<image>", "<global-img>")
    assert image.written("<image>") == get_image_prompt_string(rows, columns, 9, *markers)
    assert (image.pieces, image.tiles, image.grid) == (9 * tiles, tiles, None)
    seen = [inputs["pixel_values"] for inputs in image.calls()]
    assert all(tile.shape == (1, 3, 24, 24) for tile in seen)
    np.testing.assert_array_equal(np.concatenate(seen), pixels.values)
    together = [inputs["pixel_values"] for inputs in image.calls(3)]
    assert [len(call) for call in together] == [3] * (tiles // 3) + [tiles % 3] * (tiles % 3 > 0)
    np.testing.assert_array_equal(np.concatenate(together), pixels.values)


def test_the_description_is_of_all_its_tensors(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_smolvlm(tmp_path))
    vision = source.vision
    assert isinstance(vision, TiledVisionSpec)
    source.require_tensors()
    assert vision.modules == ("model.vision_model", "model.connector")
    assert vision.record() == _record(SETTINGS)
    assert vision.pieces_shape == (9, 48)
    assert tokens_around(vision.record()) == ([], [])


@pytest.mark.parametrize(
    "settings",
    [
        {**SETTINGS, "patch_size": "a"},
        {**SETTINGS, "scale_factor": 20},
        {"scale_factor": 2},
        {**SETTINGS, "scale_factor": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError, ArithmeticError)):
        require_settings(_record(settings))
