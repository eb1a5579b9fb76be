"""LLaVA 1.6 in PyTorch against transformers' own class, tiny and at two blocks of real widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from tiny_llava_next import SIDE, save_llava_next, their_inputs
from transformers import LlavaNextForConditionalGeneration

from awq2trt.errors import UsageError
from awq2trt.images.processor import read_processor
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images, pieces_seen
from awq2trt.models.vision.tower import load_vision

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"text": {"model_type": "mistral"}},
    "several layers": {"vision_feature_layer": [-2, 1]},
    "no biases": {"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
    "no margins within tiles": {"tower": {"image_size": 24, "patch_size": 6}},
}
SHAPES = [(30, 40), (60, 20), (20, 90), (22, 22), (47, 45), (1, 60), (90, 1)]


def _compare(directory: Path, shape: tuple[int, int]) -> None:
    source = SafetensorsSource.open(directory)
    inputs = their_inputs(directory, [Image.fromarray(picture(*shape))], [1, 2, 3], [4, 5, 6])
    pixels = read_processor(directory).pixels(picture(*shape))
    np.testing.assert_array_equal(pixels.values, inputs["pixel_values"][0].numpy())
    tokens = inputs["input_ids"][0].tolist()
    model = LlavaNextForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    turned = Pixels(np.ascontiguousarray(pixels.values[..., ::-1, ::-1]), pixels.grid, pixels.size)
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        got = logits_of_text_and_images(source, tokens, [pixels])
        other = logits_of_text_and_images(source, tokens, [turned])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    assert (other - expected).abs().max() > 0.05  # the turned image makes a difference


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_those_of_transformers_whatever_the_proportion(shape: tuple[int, int], tmp_path: Path) -> None:
    _compare(save_llava_next(tmp_path), shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_variants_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    _compare(save_llava_next(tmp_path, **VARIANTS[variant]), (30, 40))


def test_two_images_in_a_text_are_seen_as_by_transformers(tmp_path: Path) -> None:
    directory, pictures = save_llava_next(tmp_path), [picture(30, 40), picture(60, 20)]
    inputs = their_inputs(directory, [Image.fromarray(one) for one in pictures], [1, 2], [4, 5])
    processor = read_processor(directory)
    model = LlavaNextForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        got = logits_of_text_and_images(
            SafetensorsSource.open(directory),
            inputs["input_ids"][0].tolist(),
            [processor.pixels(one) for one in pictures],
        )
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_two_blocks_of_real_widths_are_those_of_transformers(tmp_path: Path) -> None:
    """LLaVA-1.6-Mistral-7B: CLIP-L/14 at 336 pixels and Mistral-7B's widths, with a small vocabulary."""
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    text = {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
    }
    save_llava_next(tmp_path, tower={**tower, "image_size": 336, "patch_size": 14}, text=text)
    model = LlavaNextForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:  # as large as trained weights; those of tiny models are larger
                value.mul_(0.1)
    model.save_pretrained(tmp_path)
    inputs = their_inputs(tmp_path, [Image.fromarray(picture(60, 320))], [1, 2, 3], [4, 5, 6])
    pixels = read_processor(tmp_path).pixels(picture(60, 320))
    source = SafetensorsSource.open(tmp_path)
    with torch.inference_mode():
        expected = model(**inputs).logits[0]
        got = logits_of_text_and_images(source, inputs["input_ids"][0].tolist(), [pixels])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.01


def test_the_whole_image_alone_is_seen_as_by_transformers(tmp_path: Path) -> None:
    """transformers' class has a branch for it, though its processor always cuts tiles."""
    directory = save_llava_next(tmp_path)
    source = SafetensorsSource.open(directory)
    assert source.vision is not None
    values = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE), np.float32)
    model = LlavaNextForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).model
    with torch.inference_mode():
        states = model.vision_tower(torch.from_numpy(values), output_hidden_states=True).hidden_states[-2]
        features = model.multi_modal_projector(states[:, 1:])
        packed, _ = model.pack_image_features([features], [[SIDE, SIDE]], "default", model.image_newline)
        seen = pieces_seen(source.vision, load_vision(source), Pixels(values, Grid(1, 1, 1)))
    torch.testing.assert_close(seen, packed[0], rtol=0, atol=2e-4)


def test_tiles_of_another_size_are_refused(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava_next(tmp_path))
    assert source.vision is not None
    pixels = Pixels(np.zeros((3, 3, SIDE, SIDE + 1), np.float32), Grid(1, 1, 2), (20, 40))
    with pytest.raises(UsageError, match=r"expected images of \[3, 22, 22\], got \[3, 22, 23\]"):
        pieces_seen(source.vision, load_vision(source), pixels)
