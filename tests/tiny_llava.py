"""Tiny random models of transformers' own LLaVA class, saved as a user would have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_exports import export_saved, lower_saved
from tiny_models import LLAMA_CONFIG, publish, save_tokenizer, spread_weights_
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.recipe import ExportOptions

IMAGE_TOKEN = 270
"""A token that no text produces: the tokenizer has 258 tokens of its own."""

TOWER_CONFIG: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 22,  # not a multiple of the patch: two rows and columns of pixels are ignored
    "patch_size": 5,
}


def save_llava(
    directory: Path,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    **overrides: Any,
) -> Path:
    """Saves a random LLaVA with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        overrides: Changes to LLaVA's config.
    """
    torch.manual_seed(1)
    config = LlavaConfig(
        text_config=LlamaConfig(**{**LLAMA_CONFIG, **(text or {})}),
        vision_config=CLIPVisionConfig(**{**TOWER_CONFIG, **(tower or {})}),
        **{"image_token_index": IMAGE_TOKEN, "image_seq_length": 16, **overrides},
    )
    model = LlavaForConditionalGeneration(config)
    spread_weights_(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    side = {**TOWER_CONFIG, **(tower or {})}["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        directory
    )
    return directory


MARKER = "<image>"
MARKER_TOKEN = 258
"""The marker's token in the tokenizer of a published model."""

TEMPLATE = """{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] \
| selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | \
selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] + ' '}}{% endfor %}{% endfor %}{% if \
add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
"""As llava-hf/llava-1.5-7b-hf has it, except for what assistants say."""

HEAD_SIZE_64: dict[str, Any] = {
    "text": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
    "tower": {"hidden_size": 128, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
}


def publish_llava(directory: Path) -> Path:
    """Saves a model as it would be published: in fp16, with an image token and a chat template."""
    save_llava(directory, **HEAD_SIZE_64, image_token_index=MARKER_TOKEN)
    publish(directory, LlavaForConditionalGeneration, TEMPLATE, [MARKER])
    return directory


def build_llava(folder: Path, *targets: str, capacity: int = 160) -> Path:
    """A published model in `folder/model`, and what is built of it for targets, each below `folder` under its name."""
    publish_llava(folder / "model")
    lower_saved(folder, capacity, *targets)
    return folder


def rename_tensors(directory: Path, renames: dict[str, str]) -> Path:
    """Renames the beginnings of a saved model's tensors."""
    path = directory / "model.safetensors"
    tensors = {}
    for name, value in load_file(path).items():
        old = next((old for old in renames if name.startswith(old)), "")
        tensors[renames.get(old, "") + name.removeprefix(old)] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


def change_config(directory: Path, **changes: Any) -> Path:
    """Changes keys of config.json; a value of None removes the key."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return directory


def shown(pixels: NDArray[np.float32]) -> list[PreparedImage]:
    """Prepared images [images, 3, side, side], as a vision graph takes each, with 16 pieces."""
    return [PreparedImage({PIXEL_VALUES: image[None]}, 16) for image in pixels]


def export_llava(folder: Path, *, capacity: int = 96, **overrides: Any) -> Artifact:
    """A LLaVA in `folder/model`, its checkpoint and its ONNX model beside it; `overrides` as for `save_llava`."""
    save_llava(folder / "model", **overrides)
    return export_saved(folder, ExportOptions(max_seq_len=capacity))
