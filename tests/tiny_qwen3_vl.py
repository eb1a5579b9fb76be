"""Tiny random models of transformers' own Qwen3-VL class, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import save_tokenizer, spread_weights_
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
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
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 48,
    "num_position_embeddings": 25,
    "deepstack_visual_indexes": [0, 2],
}
TEXT: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}


def save_qwen3_vl(
    directory: Path,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    most_pixels: int = 24 * SIDE**2,
    std: float | None = None,
    **overrides: Any,
) -> Path:
    """Saves a random Qwen3-VL with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        most_pixels: The processor's `longest_edge`.
        std: Standard deviation of the weights; None for tiny models', in which every part affects the logits.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(1)
    tokens = {"image_token_id": IMAGE_TOKEN, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    seeing = {**TOWER, **(tower or {})}
    config = Qwen3VLConfig(text_config={**TEXT, **(text or {})}, vision_config=seeing, **{**tokens, **overrides})
    model = Qwen3VLForConditionalGeneration(config)
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
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(directory)
    return directory


def export_qwen3_vl(folder: Path, *, capacity: int = 128, **overrides: Any) -> Artifact:
    """A Qwen3-VL in `folder/model`, checkpoint and ONNX model beside it; `overrides` as for `save_qwen3_vl`."""
    save_qwen3_vl(folder / "model", **overrides)
    options = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(folder / "model"), folder / "checkpoint", options), SilentProgress())
    export = ExportRequest(folder / "checkpoint", folder / "onnx", ExportOptions(max_seq_len=capacity))
    return export_stage(export, SilentProgress())
