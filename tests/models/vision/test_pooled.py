"""Gemma 3 in PyTorch against transformers' own class, tiny and at two blocks of real widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gemma3 import END_OF_IMAGE, IMAGE_TOKEN, PIECES, SIDE, START_OF_IMAGE, save_gemma3
from transformers import Gemma3ForConditionalGeneration

from awq2trt.errors import UsageError
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images, pieces_seen
from awq2trt.models.vision.tower import load_vision

VARIANTS: dict[str, dict[str, Any]] = {
    "window within an image": {},
    "no window": {"text": {"layer_types": ["full_attention", "full_attention"]}},
    "windows alone": {"text": {"layer_types": ["sliding_attention", "sliding_attention"]}},
    "no squares": {"mm_tokens_per_image": 36},
    "one square": {"mm_tokens_per_image": 1},
    "odd pixels": {"tower": {"image_size": 26}},
    "untied": {"tie_word_embeddings": False, "text": {"tie_word_embeddings": False}},
}


def _compare(model: Any, directory: Path, pieces: int, side: int) -> None:
    """Logits of two images in a text, and of each token before the end of the second."""
    torch.manual_seed(1)
    image = [START_OF_IMAGE, *[IMAGE_TOKEN] * pieces, END_OF_IMAGE]
    tokens = [256, 5, 6, *image, 7, 8, *image, 9, 10, 11]
    ids, pixels = torch.tensor([tokens]), torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = model(
            input_ids=ids, pixel_values=pixels, token_type_ids=(ids == IMAGE_TOKEN).long(), use_cache=False
        ).logits[0]
        causal = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
        source = SafetensorsSource.open(directory)
        got = logits_of_text_and_images(source, tokens, [Pixels(image.numpy()) for image in pixels])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    if pieces > 1:
        assert (causal - expected).abs().max() > 0.01  # tokens that see only what is before them are something else


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    options = VARIANTS[variant]
    save_gemma3(tmp_path, **options)
    model: Any = Gemma3ForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    side = options.get("tower", {}).get("image_size", SIDE)
    _compare(model, tmp_path, options.get("mm_tokens_per_image", PIECES), side)


def test_two_blocks_of_real_widths_are_those_of_transformers(tmp_path: Path) -> None:
    """Gemma 3 4B: two layers of its tower at 896 pixels, and two blocks of its decoder."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 100,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
    save_gemma3(tmp_path, text=text, tower={**tower, "image_size": 896, "patch_size": 14}, mm_tokens_per_image=256)
    model: Any = Gemma3ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:  # as large as trained weights; those of tiny models are larger
                value.mul_(0.1)
    model.save_pretrained(tmp_path)
    _compare(model, tmp_path, 256, 896)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_gemma3(tmp_path))
    assert source.vision is not None
    with pytest.raises(UsageError, match=r"expected images of \[3, 24, 24\], got \[3, 24, 25\]"):
        pieces_seen(source.vision, load_vision(source), Pixels(torch.zeros(3, 24, 25).numpy()))


def test_image_tokens_and_images_must_fit(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_gemma3(tmp_path))
    with pytest.raises(UsageError, match="expected 9 image tokens, as 1 images need, got 1"):
        logits_of_text_and_images(source, [1, IMAGE_TOKEN, 2], [Pixels(torch.zeros(3, SIDE, SIDE).numpy())])
