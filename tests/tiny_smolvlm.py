"""Tiny random models of transformers' own SmolVLM and Idefics3 classes, saved as a user would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_exports import export_saved
from tiny_models import LLAMA_CONFIG, publish, save_tokenizer, spread_weights_
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from awq2trt.artifact.manifest import Artifact
from awq2trt.recipe import ExportOptions

SPECIAL = [
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]
"""Added to a tokenizer with 258 tokens of its own; rows and columns beyond the second are written in letters."""

FAKE_TOKEN, IMAGE_TOKEN = 258, 259

SIDE, PIECES = 24, 9
"""Pixels along a tile's side, and pieces of a tile."""

SEED = 4
"""With some others, two tokens of an answer in tests/e2e are closer to each other than a cache in fp16 can tell."""

TOWER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 4,
}
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
}

TEMPLATE = """<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if \
message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}\
{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}\
{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""As HuggingFaceTB/SmolVLM-256M-Instruct has it."""

_TEXT: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 520,
}
LONGEST = {"smolvlm": 48, "idefics3": 72}
"""So that SmolVLM has tokens for all rows and columns, and Idefics3 writes the third ones in letters."""


def save_smolvlm(
    directory: Path,
    *,
    kind: str = "smolvlm",
    text: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    longest: int = 2 * SIDE,
    seed: int = SEED,
    **overrides: Any,
) -> Path:
    """Saves a random model with its tokenizer and image processor.

    Args:
        directory: Where to save it.
        kind: Which of `KINDS`.
        text: Changes to the decoder's config.
        tower: Changes to the tower's config.
        longest: The processor's longest side of an image.
        seed: The seed of its weights.
        overrides: Changes to the model's config.
    """
    torch.manual_seed(seed)
    make_config, make_model, make_processor = KINDS[kind]
    seeing = {**TOWER, **(tower or {})}
    config = make_config(
        text_config={"model_type": "llama", **LLAMA_CONFIG, **(text or {})},
        vision_config=seeing,
        **{"image_token_id": IMAGE_TOKEN, "scale_factor": 2, **overrides},
    )
    model = make_model(config)
    spread_weights_(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL}) == len(SPECIAL)
    tokenizer.save_pretrained(directory)
    make_processor(
        size={"longest_edge": longest}, max_image_size={"longest_edge": seeing["image_size"]}
    ).save_pretrained(directory)
    return directory


def publish_smolvlm(directory: Path, kind: str, seed: int = SEED) -> Path:
    """Saves one of `KINDS` as it would be published: in fp16, with a chat template."""
    save_smolvlm(directory, kind=kind, text=_TEXT, longest=LONGEST[kind], seed=seed)
    publish(directory, KINDS[kind][1], TEMPLATE)
    return directory


def export_smolvlm(folder: Path, *, capacity: int = 128, **overrides: Any) -> Artifact:
    """A model in `folder/model`, checkpoint and ONNX model beside it; `overrides` as for `save_smolvlm`."""
    save_smolvlm(folder / "model", **overrides)
    return export_saved(folder, ExportOptions(max_seq_len=capacity))
