"""Tiny random models of transformers' own class for LLaVA 1.6, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tiny_exports import export_saved
from tiny_llava import HEAD_SIZE_64, IMAGE_TOKEN, MARKER, MARKER_TOKEN, TEMPLATE, TOWER_CONFIG
from tiny_models import LLAMA_CONFIG, publish, save_tokenizer, spread_weights_
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.recipe import ExportOptions

SIDE, PIECES = 22, 16
"""Pixels along a tile's side, of which two are ignored, and pieces of a tile."""

SIZES = [[22, 44], [44, 22], [44, 44], [66, 22], [22, 66]]
"""Those of the published models, with tiles of 336 pixels, in the same order."""

__all__ = ["IMAGE_TOKEN", "PIECES", "SIDE", "SIZES", "export_llava_next", "save_llava_next", "their_inputs"]


def save_llava_next(
    directory: Path,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    seed: int = 1,
    **overrides: Any,
) -> Path:
    """Saves a random model with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config, a Llama's unless it says otherwise.
        tower: Changes to the tower's config.
        seed: The seed of its weights.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(seed)
    seeing = {**TOWER_CONFIG, **(tower or {})}
    side = seeing["image_size"]
    sizes = [[height // SIDE * side, width // SIDE * side] for height, width in SIZES]
    config = LlavaNextConfig(
        text_config={"model_type": "llama", **LLAMA_CONFIG, **(text or {})},
        vision_config=CLIPVisionConfig(**seeing),
        **{"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": sizes, **overrides},
    )
    model = LlavaNextForConditionalGeneration(config)
    spread_weights_(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    processor: Any = LlavaNextImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=overrides.get("image_grid_pinpoints", sizes),
    )
    processor.save_pretrained(directory)
    return directory


def publish_llava_next(directory: Path, text: dict[str, Any], seed: int = 1) -> Path:
    """Saves a model as it would be published: in fp16, with an image token and a chat template.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config.
        seed: The seed of its weights.
    """
    decoder = {**HEAD_SIZE_64["text"], **text}
    save_llava_next(directory, text=decoder, tower=HEAD_SIZE_64["tower"], seed=seed, image_token_index=MARKER_TOKEN)
    publish(directory, LlavaNextForConditionalGeneration, TEMPLATE, [MARKER])
    return directory


def their_inputs(directory: Path, images: list[Image.Image], before: list[int], after: list[int]) -> Any:
    """What transformers' own processor makes of images, with image tokens between those of a text.

    Args:
        directory: The model's.
        images: The images.
        before: Tokens before the first one.
        after: Tokens behind each.
    """
    config: Any = LlavaNextConfig.from_pretrained(directory)
    processor: Any = LlavaNextProcessor(
        LlavaNextImageProcessorPil.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    inputs = processor.image_processor(images, return_tensors="pt")
    tokens = [*before]
    for size in inputs["image_sizes"].tolist():
        count = processor._get_number_of_features(*size, *inputs["pixel_values"].shape[-2:]) - 1
        tokens += [*[config.image_token_index] * count, *after]
    return {"input_ids": torch.tensor([tokens]), **inputs}


def export_llava_next(folder: Path, *, capacity: int = 160, **overrides: Any) -> Artifact:
    """A model in `folder/model`, checkpoint and ONNX model beside it; `overrides` as for `save_llava_next`."""
    save_llava_next(folder / "model", **overrides)
    return export_saved(folder, ExportOptions(max_seq_len=capacity))
