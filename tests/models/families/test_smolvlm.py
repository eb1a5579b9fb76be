"""SmolVLM and Idefics3: described from published and from saved config.json; what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from seeing_families import assert_sizes, assert_text_logits, quantized_on_a_text
from tiny_models import LLAMA_CONFIG, tokens
from tiny_smolvlm import KINDS, TOWER, save_smolvlm
from transformers import Idefics3Config

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.vision.tiled import TiledVisionSpec

SMOLVLM_256M: dict[str, Any] = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_token_id": 49190,
    "model_type": "idefics3",
    "scale_factor": 4,
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pixel_shuffle_factor": 4,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
        "use_base_siglip": True,
    },
}
"""What decides in the published file."""


def test_a_published_config_is_described() -> None:
    spec, vision = describe_model(SMOLVLM_256M), describe_vision(SMOLVLM_256M)
    assert (spec.family, spec.num_layers, spec.embedding) == ("llama", 30, "model.text_model.embed_tokens")
    assert not spec.tie_embeddings
    assert isinstance(vision, TiledVisionSpec)
    assert (vision.layout.pieces, vision.tower.num_layers, vision.tower.intermediate_size) == (64, 12, 3072)
    theirs: Any = Idefics3Config(**{key: SMOLVLM_256M[key] for key in ("text_config", "vision_config", "scale_factor")})
    with torch.device("meta"):
        model = KINDS["idefics3"][1](theirs)
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert vision.shapes() == {
        name: shape for name, shape in expected.items() if "text_model" not in name and "lm_head" not in name
    }


def test_defaults_are_those_of_transformers() -> None:
    config = {"architectures": ["SmolVLMForConditionalGeneration"], "text_config": {"vocab_size": 128300}}
    vision = describe_vision({**config, "vision_config": {"patch_size": 28}})
    theirs: Any = Idefics3Config()
    assert isinstance(vision, TiledVisionSpec)
    assert (vision.image_token, vision.connector.merge) == (theirs.image_token_id, theirs.scale_factor)
    assert_sizes(vision.tower, theirs.vision_config)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_text_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    assert_text_logits(save_smolvlm(tmp_path, kind=kind), KINDS[kind][1], tokens(1, 30))


def test_it_is_quantized_on_a_text_and_keeps_its_tower(tmp_path: Path) -> None:
    quantized_on_a_text(save_smolvlm(tmp_path / "model"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale_factor": 4}, "scale_factor: expected a divisor of the tower's 6 patches a side, got 4"),
        ({"scale_factor": 0}, "scale_factor: expected a number from 1"),
        ({"image_token_id": 272}, "image_token_id: expected a token of the vocabulary of 272, got 272"),
        (
            {"text_config": {**LLAMA_CONFIG, "model_type": "t5"}},
            "text_config.model_type: expected llama, mistral, qwen2",
        ),
        ({"vision_config": {**TOWER, "patch_size": 25}}, "patch_size: expected at most image_size 24, got 25"),
        ({"vision_config": {**TOWER, "num_channels": 1}}, "num_channels"),
        ({"vision_config": {**TOWER, "hidden_act": "relu"}}, "hidden_act: expected gelu or gelu_tanh, got 'relu'"),
        ({"vision_config": {**TOWER, "image_size": [24, 24]}}, "image_size: expected int"),
        ({"vision_config": 3}, "vision_config: expected dict, got 3"),
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any], says: str) -> None:
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "text_config": {"model_type": "llama", **LLAMA_CONFIG},
        "vision_config": TOWER,
        "image_token_id": 259,
        **changes,
    }
    with pytest.raises(UnsupportedError, match=says):
        describe_model(config)
