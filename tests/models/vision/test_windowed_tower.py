"""Qwen2.5-VL's tower, positions and decoder against transformers' own classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_qwen_vl import QWEN2_5_VL
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from awq2trt.models.decoder import BlockRunner, apply_norm
from awq2trt.models.families import RopeSpec, describe_model
from awq2trt.models.rotary import Rotary
from awq2trt.models.vision.mixed_positions import MixedPositions, mixed_rows
from awq2trt.models.vision.prepared import Grid
from awq2trt.models.vision.windowed import WindowedTowerSpec
from awq2trt.models.vision.windowed_tower import windowed_features

TEXT: dict[str, Any] = {**QWEN2_5_VL.text, "vocab_size": 120}
IMAGE_TOKEN, VISION_START = 100, 101

SPEC = WindowedTowerSpec(
    hidden_size=32,
    intermediate_size=44,
    num_layers=3,
    num_heads=2,
    patch_size=4,
    frames=2,
    merge=2,
    window_size=24,
    full_layers=frozenset([1]),
    out_features=48,
    activation="silu",
    norm_eps=1e-6,
    prefix="model.visual.",
)
GRIDS = (Grid(1, 10, 14), Grid(1, 6, 12), Grid(2, 4, 4))


@pytest.fixture(scope="module")
def theirs() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(1)
    config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=QWEN2_5_VL.tower, image_token_id=IMAGE_TOKEN)
    model: Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(std=0.2)
    return model


def _patches() -> torch.Tensor:
    count = sum(grid.cells for grid in GRIDS)
    return torch.randn(count, SPEC.patch_numbers, generator=torch.Generator().manual_seed(2))


def _seen(weights: dict[str, torch.Tensor], patches: torch.Tensor, grids: tuple[Grid, ...]) -> torch.Tensor:
    """What is seen in images, one after the other."""
    parts = patches.split([grid.cells for grid in grids])
    return torch.cat([windowed_features(SPEC, weights, part, grid) for part, grid in zip(parts, grids, strict=True)])


def test_shapes_are_the_models(theirs: Qwen2_5_VLForConditionalGeneration) -> None:
    found = {name: tuple(value.shape) for name, value in theirs.state_dict().items() if ".visual." in name}
    assert SPEC.shapes() == found


def test_pieces_are_those_of_transformers(theirs: Qwen2_5_VLForConditionalGeneration) -> None:
    patches = _patches()
    with torch.inference_mode():
        features = theirs.model.visual(patches, grid_thw=torch.tensor(GRIDS)).pooler_output
        ours = _seen(theirs.state_dict(), patches, GRIDS)
    assert ours.shape == (sum(SPEC.layout.pieces(grid).cells for grid in GRIDS), 48)
    torch.testing.assert_close(ours, features, atol=2e-4, rtol=0)


def _tokens() -> list[int]:
    tokens = [5, 6]
    for grid in GRIDS[:2]:
        tokens += [VISION_START, *[IMAGE_TOKEN] * SPEC.layout.pieces(grid).cells, 7, 8]
    return [*tokens, 9]


def test_positions_are_those_of_transformers(theirs: Qwen2_5_VLForConditionalGeneration) -> None:
    tokens = torch.tensor([_tokens()])
    kinds = (tokens == IMAGE_TOKEN).int()
    expected, _ = theirs.model.get_rope_index(tokens, kinds, image_grid_thw=torch.tensor(GRIDS[:2]))
    counted = MixedPositions(IMAGE_TOKEN, map(SPEC.layout.pieces, GRIDS[:2]))
    parts = (_tokens()[:11], _tokens()[11:12], _tokens()[12:])
    ours = np.concatenate([counted.of(part) for part in parts], axis=1)
    np.testing.assert_array_equal(ours, expected[:, 0].numpy())
    assert not counted.awaits


def test_a_text_has_one_number_three_times() -> None:
    np.testing.assert_array_equal(MixedPositions(IMAGE_TOKEN).of([1, IMAGE_TOKEN, 3]), [[0, 1, 2]] * 3)


def test_logits_are_those_of_transformers_by_a_table_of_cosines_and_sines(
    theirs: Qwen2_5_VLForConditionalGeneration,
) -> None:
    """A decoder that knows positions of one number, the rows of a table, reads images as theirs does."""
    tokens, grids, state = _tokens(), GRIDS[:2], theirs.state_dict()
    patches = _patches()[: sum(grid.cells for grid in grids)]
    config = {**TEXT, "architectures": ["Qwen2ForCausalLM"], "rope_parameters": {"rope_theta": 10000.0}}
    spec = describe_model(config)
    (rope,) = spec.ropes
    positions = MixedPositions(IMAGE_TOKEN, map(SPEC.layout.pieces, grids)).of(tokens)
    followed = RopeSpec(rope.inv_freq, sections=tuple(TEXT["rope_parameters"]["mrope_section"])).followed
    cos, sin = (torch.from_numpy(mixed_rows(table, followed, positions)) for table in rope.tables(len(tokens)))
    runner = BlockRunner(spec, {rope: Rotary(rope, (cos, sin))})
    with torch.inference_mode():
        ids = torch.tensor([tokens])
        hidden = state["model.language_model.embed_tokens.weight"][ids]
        hidden[ids == IMAGE_TOKEN] = _seen(state, patches, grids)
        for layer in range(spec.num_layers):
            prefix = f"model.language_model.layers.{layer}."
            weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            hidden = runner.run(weights, hidden, layer=layer)
        normed = apply_norm(spec.norm, hidden, state["model.language_model.norm.weight"])
        expected = theirs(
            input_ids=ids,
            pixel_values=patches,
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
        ).logits
        torch.testing.assert_close(normed @ state["lm_head.weight"].T, expected, atol=2e-4, rtol=0)
