"""LLaVA 1.6: described from published and from saved config.json; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from seeing_families import assert_text_logits, quantized_on_a_text
from tiny_llava import TOWER_CONFIG, rename_tensors
from tiny_llava_next import SIZES, save_llava_next
from tiny_models import LLAMA_CONFIG, tokens
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from awq2trt.errors import UnsupportedError
from awq2trt.images.processor import processor_of, require_fit
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.mosaic import MosaicSpec

MISTRAL_7B: dict[str, Any] = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "ignore_index": -100,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_token_index": 32000,
    "model_type": "llava_next",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "use_image_newline_parameter": True,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
"""What decides in llava-hf/llava-v1.6-mistral-7b-hf's file."""

CLASS_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head": "lm_head",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
}


def test_a_published_config_is_described() -> None:
    spec, vision = describe_model(MISTRAL_7B), describe_vision(MISTRAL_7B)
    assert (spec.family, spec.num_layers, spec.embedding) == ("mistral", 32, "language_model.model.embed_tokens")
    assert isinstance(vision, MosaicSpec)
    assert (vision.family, vision.image_token, vision.depth, vision.pieces_shape) == (
        "llava_next",
        32000,
        23,
        (577, 4096),
    )
    assert vision.layout.most_pieces((672, 672)) == 2928
    theirs: Any = LlavaNextConfig(**{key: MISTRAL_7B[key] for key in ("text_config", "vision_config")})
    with torch.device("meta"):
        model = LlavaNextForConditionalGeneration(theirs)
    expected = {
        name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model."): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    assert vision.shapes() == {
        name: shape for name, shape in expected.items() if not name.startswith(("language_model.", "lm_head"))
    }


def test_defaults_are_those_of_transformers() -> None:
    vision = describe_vision(
        {
            "architectures": ["LlavaNextForConditionalGeneration"],
            "text_config": {"model_type": "llama", "vocab_size": 32064},
        }
    )
    theirs: Any = LlavaNextConfig()
    assert isinstance(vision, MosaicSpec)
    assert vision.image_token == theirs.image_token_index
    assert vision.sizes == tuple(map(tuple, theirs.image_grid_pinpoints))
    assert vision.tile.feature_layers == (theirs.vision_config.num_hidden_layers + 1 + theirs.vision_feature_layer,)
    assert vision.tile.tower.image_size == theirs.vision_config.image_size


def test_logits_of_a_text_are_those_of_transformers(tmp_path: Path) -> None:
    assert_text_logits(save_llava_next(tmp_path), LlavaNextForConditionalGeneration, tokens(1, 30))


def test_names_of_transformers_classes_are_known_too(tmp_path: Path) -> None:
    published = open_source(str(save_llava_next(tmp_path / "published")))
    renamed = open_source(str(rename_tensors(save_llava_next(tmp_path / "renamed"), CLASS_NAMES)))
    assert isinstance(renamed.vision, MosaicSpec)
    assert renamed.vision.newline == "model.image_newline"
    assert [*renamed.vision_tensors()] == [f"model.{name}" for name in published.vision_tensors()]


def test_it_is_quantized_on_a_text_and_keeps_what_it_sees_with(tmp_path: Path) -> None:
    checkpoint = quantized_on_a_text(save_llava_next(tmp_path / "model"), tmp_path)
    assert "image_newline" in checkpoint.vision_tensors()


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": {"height": 11, "width": 11}, "size": {"shortest_edge": 11}},
        {"image_grid_pinpoints": [[22, 44]]},
        {"image_processor_type": "CLIPImageProcessor", "do_pad": False},
    ],
    ids=str,
)
def test_a_processor_of_another_model_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    save_llava_next(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    source = open_source(str(tmp_path))
    assert source.vision is not None
    require_fit(processor_of(source), source.vision, where="a model")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    other = open_source(str(tmp_path))
    with pytest.raises(
        UnsupportedError, match=r"as its crop_size and config\.json's image_grid_pinpoints, 22, 22, 44, 44"
    ):
        require_fit(processor_of(other), source.vision, where="a model")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy: expected default, .* got full"),
        ({"image_grid_pinpoints": [[22, 45]]}, "multiples of the tower's 22 pixels, 1024 tiles at most, got"),
        ({"image_grid_pinpoints": []}, "image_grid_pinpoints: expected heights and widths"),
        ({"image_token_index": 272}, "image_token_index: expected a token of the vocabulary of 272, got 272"),
        (
            {"text_config": {**LLAMA_CONFIG, "model_type": "t5"}},
            "text_config.model_type: expected llama, mistral, qwen2",
        ),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "expected clip_vision_model"),
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any], says: str) -> None:
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "text_config": {"model_type": "llama", **LLAMA_CONFIG},
        "vision_config": TOWER_CONFIG,
        "image_token_index": 259,
        "image_grid_pinpoints": SIZES,
        **changes,
    }
    with pytest.raises(UnsupportedError, match=says):
        describe_model(config)
