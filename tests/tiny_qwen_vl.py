"""Tiny random models of transformers' own Qwen2.5-VL and Qwen3-VL classes, saved as a user would have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_exports import export_saved
from tiny_models import publish, save_tokenizer, spread_weights_
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.recipe import ExportOptions

IMAGE_TOKEN, VISION_START, VISION_END = 270, 268, 269
"""Tokens that no text produces: the tokenizer has 258 tokens of its own."""

SIDE = 8
"""Pixels along a piece's side."""

_TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 48,
}
_TEXT: Mapping[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}

PUBLISHED_MARKERS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PUBLISHED_IDS = 258, 259, 260

TEMPLATE = """{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and \
message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>\
{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for \
content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}\
<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
"""As Qwen/Qwen2.5-VL-3B-Instruct has it, without videos."""

TEMPLATE_3 = """{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}\
{{ message.content }}{% else %}{% for content in message.content %}{% if content.type == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content.text }}{% endif %}{% endfor %}\
{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
"""Writes what that of Qwen/Qwen3-VL-4B-Instruct does for texts and images: no system message of its own."""

PUBLISHED_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
PUBLISHED: dict[str, Any] = {
    "bos_token_id": 256,
    "eos_token_id": 256,
    **dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id"), PUBLISHED_IDS, strict=True)),
    "tower": {"out_hidden_size": 128},
}


@dataclass(frozen=True)
class Kind:
    """What differs between the two.

    Attributes:
        config: transformers' class of the config.
        model: transformers' class of the model.
        text: The decoder's config.
        tower: The tower's.
        template: Its chat template.
        sections: `mrope_section` of a model with 32 frequencies.
        processor: Settings of the image processor that are not its class's defaults.
    """

    config: Any
    model: Any
    text: dict[str, Any]
    tower: dict[str, Any]
    template: str
    sections: list[int]
    processor: dict[str, Any] = field(default_factory=dict)


QWEN2_5_VL = Kind(
    config=Qwen2_5_VLConfig,
    model=Qwen2_5_VLForConditionalGeneration,
    text={
        **_TEXT,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    },
    tower={
        **_TOWER,
        "depth": 3,
        "window_size": 24,  # three pieces a side
        "fullatt_block_indexes": [1],
    },
    template=TEMPLATE,
    sections=[8, 12, 12],
)
QWEN3_VL = Kind(
    config=Qwen3VLConfig,
    model=Qwen3VLForConditionalGeneration,
    text={
        **_TEXT,
        "num_hidden_layers": 3,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    },
    tower={**_TOWER, "depth": 4, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    template=TEMPLATE_3,
    sections=[12, 10, 10],
    processor={"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
)


def save_qwen_vl(
    directory: Path,
    kind: Kind = QWEN2_5_VL,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    most_pixels: int = 24 * SIDE**2,
    std: float | None = None,
    **overrides: Any,
) -> Path:
    """Saves a random model with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        kind: Which of the two.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        most_pixels: The processor's `longest_edge`.
        std: Standard deviation of the weights; None for tiny models', in which every part affects the logits.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(1)
    tokens = {"image_token_id": IMAGE_TOKEN, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    seeing = {**kind.tower, **(tower or {})}
    config = kind.config(text_config={**kind.text, **(text or {})}, vision_config=seeing, **{**tokens, **overrides})
    model = kind.model(config)
    if std is None:
        spread_weights_(model)
    else:
        for value in model.parameters():
            torch.nn.init.normal_(value, 1.0 if value.ndim == 1 else 0.0, std)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 4 * SIDE**2, "longest_edge": most_pixels},
        patch_size=seeing["patch_size"],
        merge_size=seeing["spatial_merge_size"],
        **kind.processor,
    ).save_pretrained(directory)
    return directory


def save_qwen3_vl(directory: Path, **changes: Any) -> Path:
    """Saves a random Qwen3-VL; `changes` as for `save_qwen_vl`."""
    return save_qwen_vl(directory, QWEN3_VL, **changes)


def export_qwen_vl(folder: Path, kind: Kind = QWEN2_5_VL, *, capacity: int = 128, **changes: Any) -> Artifact:
    """A model in `folder/model`, checkpoint and ONNX model beside it; `changes` as for `save_qwen_vl`."""
    save_qwen_vl(folder / "model", kind, **changes)
    return export_saved(folder, ExportOptions(max_seq_len=capacity))


def export_qwen3_vl(folder: Path, **changes: Any) -> Artifact:
    """A Qwen3-VL in `folder/model`, checkpoint and ONNX model beside it; `changes` as for `export_qwen_vl`."""
    return export_qwen_vl(folder, QWEN3_VL, **changes)


def publish_qwen_vl(directory: Path, kind: Kind = QWEN2_5_VL) -> Path:
    """Saves a model as it would be published: in fp16, with its tokens and a chat template."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": kind.sections}
    save_qwen_vl(directory, kind, text={**PUBLISHED_TEXT, "rope_parameters": rope}, **PUBLISHED)
    publish(directory, kind.model, kind.template, PUBLISHED_MARKERS)
    return directory
