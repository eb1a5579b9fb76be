"""Tiny random models of transformers' own Qwen2.5-VL class, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import save_tokenizer, spread_weights_
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

IMAGE_TOKEN, VISION_START, VISION_END = 270, 268, 269
"""Tokens that no text produces: the tokenizer has 258 tokens of its own."""

SIDE = 8
"""Pixels along a piece's side."""

TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 24,  # three pieces a side
    "out_hidden_size": 48,
    "fullatt_block_indexes": [1],
}
TEXT: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
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
    "text": {
        **PUBLISHED_TEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
    },
    "tower": {"out_hidden_size": 128},
}


def save_qwen_vl(
    directory: Path,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    most_pixels: int = 24 * SIDE**2,
    **overrides: Any,
) -> Path:
    """Saves a random Qwen2.5-VL with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        most_pixels: The processor's `max_pixels`.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(1)
    tokens = {"image_token_id": IMAGE_TOKEN, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    seeing = {**TOWER, **(tower or {})}
    config = Qwen2_5_VLConfig(text_config={**TEXT, **(text or {})}, vision_config=seeing, **{**tokens, **overrides})
    model = Qwen2_5_VLForConditionalGeneration(config)
    spread_weights_(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 4 * SIDE**2, "longest_edge": most_pixels},
        patch_size=seeing["patch_size"],
        merge_size=seeing["spatial_merge_size"],
    ).save_pretrained(directory)
    return directory


def export_qwen_vl(folder: Path, *, capacity: int = 128, **overrides: Any) -> Artifact:
    """A Qwen2.5-VL in `folder/model`, checkpoint and ONNX model beside it; `overrides` as for `save_qwen_vl`."""
    save_qwen_vl(folder / "model", **overrides)
    options = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(folder / "model"), folder / "checkpoint", options), SilentProgress())
    export = ExportRequest(folder / "checkpoint", folder / "onnx", ExportOptions(max_seq_len=capacity))
    return export_stage(export, SilentProgress())


def publish_qwen_vl(directory: Path) -> Path:
    """Saves a model as it would be published: in fp16, with its tokens and a chat template."""
    save_qwen_vl(directory, **PUBLISHED)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float16)
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.add_special_tokens({"additional_special_tokens": PUBLISHED_MARKERS}) == 3
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory
