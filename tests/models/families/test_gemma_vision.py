"""Gemma 3 that sees: described from published and from saved config.json; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from seeing_families import assert_sizes, assert_text_logits, quantized_on_a_text
from tiny_gemma3 import TEXT, TOWER, save_gemma3
from tiny_models import tokens
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.vision.pooled import PooledVisionSpec

GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
"""As published."""


def test_a_published_config_is_described() -> None:
    spec, vision = describe_model(GEMMA_3_4B), describe_vision(GEMMA_3_4B)
    assert (spec.family, spec.num_layers, spec.num_heads, spec.num_kv_heads) == ("gemma3", 34, 8, 4)
    assert (spec.embedding, spec.vocab_size) == ("language_model.model.embed_tokens", 262208)
    assert spec.tie_embeddings
    assert spec.image_blocks
    assert [layer.sliding_window for layer in spec.layers[:6]] == [1024] * 5 + [None]
    assert isinstance(vision, PooledVisionSpec)
    assert (vision.tokens_per_image, vision.pooler.merge, vision.image_token) == (256, 4, 262144)
    theirs: Any = Gemma3Config(**{key: GEMMA_3_4B[key] for key in ("text_config", "vision_config")})
    with torch.device("meta"):
        model: Any = Gemma3ForConditionalGeneration(theirs)
    expected = {
        name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model."): tuple(value.shape)
        for name, value in model.named_parameters()
        if "language_model" not in name and "lm_head" not in name
    }
    assert vision.shapes() == expected


def test_defaults_are_those_of_transformers() -> None:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "mm_tokens_per_image": 49}
    spec, vision = describe_model(config), describe_vision(config)
    theirs: Any = Gemma3Config()
    assert isinstance(vision, PooledVisionSpec)
    assert vision.image_token == theirs.image_token_index
    assert_sizes(vision.tower, theirs.vision_config)
    assert vision.tower.patch_size == theirs.vision_config.patch_size
    text = theirs.text_config
    assert (spec.hidden_size, spec.intermediate_size, spec.num_layers, spec.vocab_size, spec.head_dim) == (
        text.hidden_size,
        text.intermediate_size,
        text.num_hidden_layers,
        text.vocab_size,
        text.head_dim,
    )


def test_logits_of_a_text_are_those_of_transformers(tmp_path: Path) -> None:
    assert_text_logits(save_gemma3(tmp_path), Gemma3ForConditionalGeneration, tokens(1, 30) % 250)


def test_it_is_quantized_on_a_text_and_keeps_its_tower(tmp_path: Path) -> None:
    checkpoint = quantized_on_a_text(save_gemma3(tmp_path / "model"), tmp_path)
    assert checkpoint.spec.image_blocks


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mm_tokens_per_image": 16}, "mm_tokens_per_image: expected the square of a divisor of the tower's 6 patches"),
        ({"mm_tokens_per_image": 8}, "mm_tokens_per_image: expected the square of a divisor"),
        ({"mm_tokens_per_image": 0}, "mm_tokens_per_image: expected a number from 1"),
        ({"image_token_index": 272}, "image_token_index: expected a token of the vocabulary of 272, got 272"),
        ({"text_config": {**TEXT, "model_type": "t5"}}, "text_config.model_type: expected llama, mistral, qwen2"),
        ({"text_config": {**TEXT, "final_logit_softcapping": 3.0}}, "final_logit_softcapping"),
        ({"text_config": {**TEXT, "use_bidirectional_attention": True}}, "use_bidirectional_attention"),
        ({"vision_config": {**TOWER, "patch_size": 25}}, "patch_size: expected at most image_size 24, got 25"),
        ({"vision_config": 3}, "vision_config: expected dict, got 3"),
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any], says: str) -> None:
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": TEXT,
        "vision_config": TOWER,
        "image_token_index": 258,
        "mm_tokens_per_image": 9,
        **changes,
    }
    with pytest.raises(UnsupportedError, match=says):
        describe_model(config)
