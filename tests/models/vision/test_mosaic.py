"""Mosaics as data: the order of their pieces, what a manifest says, and sizes that make no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llava_next import IMAGE_TOKEN, SIZES, save_llava_next
from transformers.models.llava_next.modeling_llava_next import unpad_image

from awq2trt.artifact.records import VisionRecord
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.arranging import arranged, require_settings, tokens_around
from awq2trt.models.vision.mosaic import MosaicLayout, MosaicSpec, sizes_in
from awq2trt.models.vision.prepared import Grid, Pixels

SETTINGS: dict[str, Any] = {"image_size": 22, "patch_size": 5, "image_grid_pinpoints": SIZES}


def _record(settings: dict[str, Any]) -> VisionRecord:
    return VisionRecord(family="llava_next", image_token=IMAGE_TOKEN, tokens_per_image=None, settings=settings)


def test_pieces_of_a_small_image_are_in_this_order() -> None:
    """Two tiles of 2 x 2 pieces beside each other, whose rows 0 to 4, 5 to 9 and 10 to 14 end with a newline."""
    layout = MosaicLayout(4, 2)
    whole = [0, 1, 2, 3]
    assert layout.order(Grid(1, 1, 2), (10, 20)).tolist() == [*whole, 5, 6, 10, 11, 4, 7, 8, 12, 13, 4]
    assert layout.order(Grid(1, 1, 2), (10, 10)).tolist() == [*whole, 6, 10, 4, 8, 12, 4], "a column on each side"
    assert layout.order(Grid(1, 2, 1), (10, 10)).tolist() == [*whole, 7, 8, 4, 10, 11, 4], "a row on each side"


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)], ids=str)
def test_margins_are_those_of_transformers(grid: tuple[int, int]) -> None:
    layout, rows, columns = MosaicLayout(22, 5), grid[0] * 4, grid[1] * 4
    sizes = [(height, width) for height in (1, 2, 3, 7, 20, 33, 64, 101) for width in (1, 2, 5, 19, 33, 65, 100)]
    for size in sizes:
        kept = unpad_image(torch.zeros(1, rows, columns), size)
        expected = kept.shape[1] * (kept.shape[2] + 1)
        order = layout.order(Grid(1, *grid), size)
        assert len(order) == 16 + expected, size
        assert (order[16:] == 16).sum() == kept.shape[1], size
    assert layout.most_pieces((grid[0] * 22, grid[1] * 22)) == 16 + rows * (columns + 1)


def test_an_image_is_seen_tile_by_tile() -> None:
    values = np.arange(3 * 3 * 22 * 22, dtype=np.float32).reshape(3, 3, 22, 22)
    image = arranged(_record(SETTINGS), Pixels(values, Grid(1, 1, 2), (22, 44)))
    assert (image.pieces, image.texts, image.grid) == (16 + 4 * 9, (), None)
    assert image.written("<image>") == "<image>"
    seen = [inputs["pixel_values"] for inputs in image.calls()]
    assert all(tile.shape == (1, 3, 22, 22) for tile in seen)
    np.testing.assert_array_equal(np.concatenate(seen), values)
    rows = [(tile + np.arange(17)[:, None] / 100).astype(np.float32) for tile in range(3)]
    joined = image.joined(rows)
    assert joined.shape == (image.pieces, 1)
    np.testing.assert_allclose(joined[16:25, 0], [1, 1.01, 1.02, 1.03, 2, 2.01, 2.02, 2.03, 0.16], atol=1e-6)


def test_the_description_is_of_all_its_tensors(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava_next(tmp_path))
    vision = source.vision
    assert isinstance(vision, MosaicSpec)
    source.require_tensors()
    assert vision.newline == "image_newline"
    assert vision.modules == ("vision_tower", "multi_modal_projector")
    assert vision.record() == _record(SETTINGS)
    assert vision.pieces_shape == (17, 48)
    assert tokens_around(vision.record()) == ([], [])


def test_sizes_are_transformers_own_if_none_are_given() -> None:
    assert sizes_in({}, 336) == ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    assert sizes_in({}, 384) == ()
    assert sizes_in({"image_grid_pinpoints": [[384, 768]]}, 384) == ((384, 768),)


@pytest.mark.parametrize(
    "settings",
    [
        {**SETTINGS, "patch_size": "a"},
        {**SETTINGS, "patch_size": 23},
        {**SETTINGS, "patch_size": 0},
        {"image_grid_pinpoints": SIZES},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, LookupError, ArithmeticError)):
        require_settings(_record(settings))
