"""Qwen3-VL in PyTorch against transformers' own class: its tower, positions and logits, tiny and at real widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_qwen_vl import IMAGE_TOKEN, VISION_END, VISION_START, save_qwen3_vl
from transformers import Qwen3VLForConditionalGeneration

from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.mixed_positions import MixedPositions
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.models.vision.stacked import StackedVisionSpec
from awq2trt.models.vision.stacked_tower import stacked_features

GRIDS = (Grid(1, 4, 6), Grid(1, 10, 2), Grid(1, 2, 14))
"""Less and more than the table's five rows and columns, and one piece high."""

REAL: dict[str, Any] = {
    "text": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    },
    "tower": {
        "depth": 2,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": 2560,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [0, 1],
    },
    "std": 0.02,
}
"""Two blocks each of Qwen3-VL-4B's tower and decoder."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("models") / "tiny")


def _theirs(directory: Path) -> Qwen3VLForConditionalGeneration:
    model: Qwen3VLForConditionalGeneration = Qwen3VLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    return model


def _opened(directory: Path) -> tuple[ModelSource, StackedVisionSpec]:
    source = open_source(str(directory))
    assert isinstance(source.vision, StackedVisionSpec)
    return source, source.vision


def _patches(vision: StackedVisionSpec) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(grid.cells, vision.tower.patch_numbers, generator=random) for grid in GRIDS]


def _tokens() -> list[int]:
    tokens = [5, 6, 7]
    for grid in GRIDS:
        tokens += [VISION_START, *[IMAGE_TOKEN] * (grid.cells // 4), VISION_END, 11, 12]
    return tokens


def test_pieces_are_those_of_transformers_with_all_that_blocks_add(tiny: Path) -> None:
    theirs, (_, vision) = _theirs(tiny), _opened(tiny)
    patches = _patches(vision)
    with torch.inference_mode():
        seen = theirs.model.visual(torch.cat(patches), grid_thw=torch.tensor(GRIDS))
        expected = torch.cat((seen.pooler_output, *seen.deepstack_features), dim=-1)
        weights = theirs.state_dict()
        ours = [stacked_features(vision.tower, weights, *each) for each in zip(patches, GRIDS, strict=True)]
    torch.testing.assert_close(torch.cat(ours), expected, atol=2e-4, rtol=0)


def test_frames_do_not_see_each_other(tiny: Path) -> None:
    theirs, (_, vision), grid = _theirs(tiny), _opened(tiny), Grid(2, 4, 6)
    patches = torch.randn(grid.cells, vision.tower.patch_numbers, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = theirs.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
        ours = stacked_features(vision.tower, theirs.state_dict(), patches, grid)[:, : expected.shape[-1]]
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


def test_positions_are_those_of_transformers(tiny: Path) -> None:
    tokens, layout = torch.tensor([_tokens()]), _opened(tiny)[1].tower.layout
    kinds = (tokens == IMAGE_TOKEN).int()
    expected, _ = _theirs(tiny).model.get_rope_index(tokens, kinds, image_grid_thw=torch.tensor(GRIDS))
    ours = MixedPositions(IMAGE_TOKEN, map(layout.pieces, GRIDS)).of(_tokens())
    np.testing.assert_array_equal(ours, expected[:, 0].numpy())


@pytest.mark.parametrize("sizes", [{}, REAL], ids=["tiny", "real"])
def test_logits_are_those_of_transformers(sizes: dict[str, Any], tmp_path: Path) -> None:
    save_qwen3_vl(tmp_path, **sizes)
    source, vision = _opened(tmp_path)
    ids, patches = torch.tensor([_tokens()]), _patches(vision)
    pixels = [Pixels(each.numpy(), grid) for each, grid in zip(patches, GRIDS, strict=True)]
    with torch.inference_mode():
        expected = _theirs(tmp_path)(
            input_ids=ids,
            pixel_values=torch.cat(patches),
            image_grid_thw=torch.tensor(GRIDS),
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
        ).logits[0]
        ours = logits_of_text_and_images(source, _tokens(), pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)
