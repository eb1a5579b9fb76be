"""LLaVA in PyTorch against transformers' own class, and inputs that do not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_llava import IMAGE_TOKEN, rename_tensors, save_llava
from tiny_models import save_llama, tokens
from transformers import LlavaForConditionalGeneration

from awq2trt.errors import UsageError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.models.vision.description import VisionSpec
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.models.vision.tower import image_features, load_vision

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "tied": {"tie_word_embeddings": True},
    "last layer": {"vision_feature_layer": -1},
    "first layer": {"vision_feature_layer": 1},
    "several layers": {"vision_feature_layer": [-2, 1, 3], "vision_feature_select_strategy": "full"},
    "class token": {"vision_feature_select_strategy": "full"},
    "plain projector": {"multimodal_projector_bias": False, "projector_hidden_act": "relu"},
    "gelu tower": {"tower": {"hidden_act": "gelu", "layer_norm_eps": 1e-3}},
    "biased decoder": {"text": {"attention_bias": True, "mlp_bias": True}},
}


def _inputs(source: SafetensorsSource, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, each with an image between words, and the images."""
    assert isinstance(source.vision, VisionSpec)
    count, side = source.vision.tokens_per_image, source.vision.tower.image_size
    ids = tokens(images, count + 9)
    ids[:, 4 : 4 + count] = IMAGE_TOKEN
    return ids, torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(2))


def _logits(source: SafetensorsSource, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Ours, of texts with an image each."""
    shown = [Pixels(image.numpy()) for image in pixels]
    texts = zip(ids.tolist(), shown, strict=True)
    return torch.stack([logits_of_text_and_images(source, text, [image]) for text, image in texts])


def _reference(directory: Path, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(input_ids=ids, pixel_values=pixels).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path, **VARIANTS[variant]))
    ids, pixels = _inputs(source)
    with torch.inference_mode():
        got, blind = _logits(source, ids, pixels), _logits(source, ids, pixels.flip(0))
    expected = _reference(tmp_path, ids, pixels)
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)
    assert (blind - expected).abs().max() > 0.05  # the other image makes a difference


@pytest.mark.parametrize(
    "renames",
    [
        {
            "language_model.model.": "model.language_model.",
            "language_model.lm_head": "lm_head",
            "vision_tower.": "model.vision_tower.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
        {"vision_tower.": "vision_tower.vision_model."},
    ],
    ids=["names of the classes", "names before transformers 5"],
)
def test_checkpoints_of_other_versions_are_the_same_model(renames: dict[str, str], tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path / "new"))
    old = SafetensorsSource.open(rename_tensors(save_llava(tmp_path / "old"), renames))
    ids, pixels = _inputs(source)
    with torch.inference_mode():
        assert torch.equal(_logits(old, ids, pixels), _logits(source, ids, pixels))


def test_text_without_images_is_text(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path))
    ids = tokens(1, 20)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        got, expected = Ends(source).logits(run_model(source, ids)), model(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


def test_image_tokens_and_images_must_fit(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path))
    ids, pixels = _inputs(source)
    ids[0, 4] = 1
    with pytest.raises(UsageError, match=r"expected 16 image tokens, as 1 images need, got 15"):
        _logits(source, ids, pixels)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llava(tmp_path))
    assert isinstance(source.vision, VisionSpec)
    with pytest.raises(UsageError, match=r"expected images of \[3, 22, 22\], got \[3, 22, 25\]"):
        image_features(source.vision, load_vision(source), torch.zeros(1, 3, 22, 25))


def test_a_model_of_text_sees_nothing(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    assert source.vision_tensors() == {}
    with pytest.raises(UsageError, match="expected a model that sees"):
        _logits(source, tokens(1, 4), torch.zeros(1, 3, 22, 22))
