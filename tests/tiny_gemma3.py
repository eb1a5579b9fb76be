"""Tiny random models of transformers' own Gemma 3 class that sees, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_exports import export_saved
from tiny_models import publish, save_tokenizer, spread_weights_
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.recipe import ExportOptions

SPECIAL = ["<image_soft_token>", "<start_of_image>", "<end_of_image>"]
"""Added to a tokenizer with 258 tokens of its own."""

IMAGE_TOKEN, START_OF_IMAGE, END_OF_IMAGE = 258, 259, 260

SIDE, PIECES = 24, 9
"""Pixels along an image's side, and its pieces."""

TEXT: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 256,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 0,
}
"""A window that is narrower than an image, in the first of two layers."""

TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 4,
    "vision_use_head": False,
}

TEMPLATE = """{{ bos_token }}{%- for message in messages -%}{%- if (message['role'] == 'user') != (loop.index0 % \
2 == 0) -%}{{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}{%- endif -%}\
{%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}\
{%- endif -%}{{ '<start_of_turn>' + role + '\n' }}{%- if message['content'] is string -%}\
{{ message['content'] | trim }}{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}\
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}\
{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}\
{{'<start_of_turn>model\n'}}{%- endif -%}"""
"""As google/gemma-3-4b-it has it, without its part for a system's message."""

_PUBLISHED_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "max_position_embeddings": 400,
}


def save_gemma3(
    directory: Path,
    *,
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Saves a random model with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        seed: The seed of its weights.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(seed)
    seeing = {**TOWER, **(tower or {})}
    config = Gemma3Config(
        text_config={**TEXT, **(text or {})},
        vision_config=seeing,
        **{
            "image_token_index": IMAGE_TOKEN,
            "boi_token_index": START_OF_IMAGE,
            "eoi_token_index": END_OF_IMAGE,
            "mm_tokens_per_image": PIECES,
            **overrides,
        },
    )
    model = Gemma3ForConditionalGeneration(config)
    spread_weights_(model)
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.mul_(0.1)  # with large ones, tokens would repeat themselves
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL}) == len(SPECIAL)
    tokenizer.save_pretrained(directory)
    side = seeing["image_size"]
    Gemma3ImageProcessorPil(size={"height": side, "width": side}).save_pretrained(directory)
    return directory


def publish_gemma3(directory: Path, seed: int = 0) -> Path:
    """Saves a model as it would be published: in fp16, with a chat template."""
    save_gemma3(directory, text=_PUBLISHED_TEXT, seed=seed)
    publish(directory, Gemma3ForConditionalGeneration, TEMPLATE)
    return directory


def export_gemma3(folder: Path, *, capacity: int = 128, **overrides: Any) -> Artifact:
    """A model in `folder/model`, checkpoint and ONNX model beside it; `overrides` as for `save_gemma3`."""
    save_gemma3(folder / "model", **overrides)
    return export_saved(folder, ExportOptions(max_seq_len=capacity))
