"""Qwen2.5-VL: described from published and from saved config.json, quantized on a text; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeing_families import assert_text_logits, quantized_on_a_text, text_logits
from tiny_models import save_tokenizer
from tiny_qwen_vl import QWEN2_5_VL, VISION_END, VISION_START, save_qwen_vl
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.arranging import tokens_around
from awq2trt.models.vision.windowed import WindowedVisionSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")


def test_the_description_is_of_all_its_tensors(model: Path) -> None:
    source = open_source(str(model))
    assert isinstance(source.vision, WindowedVisionSpec)
    assert {name for name in load_file(model / "model.safetensors") if "visual" in name} == set(source.vision.shapes())
    assert [rope.sections for rope in source.spec.ropes] == [(2, 3, 3)]
    assert source.model_spec.record().decoder.ropes[0].sections == (2, 3, 3)
    record = source.vision.record()
    assert (record.family, record.image_token, record.tokens_per_image) == ("qwen2_5_vl", 270, None)
    assert tokens_around(record) == ([VISION_START], [VISION_END])
    source.require_tensors()


def test_logits_of_a_text_are_those_of_transformers(model: Path) -> None:
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
    assert_text_logits(model, Qwen2_5_VLForConditionalGeneration, ids)


def test_other_names_and_a_flat_config_are_the_same_model(model: Path, tmp_path: Path) -> None:
    """As models are published, with the decoder's keys at the top and `mrope` as the kind of rotary embedding."""
    tensors = load_file(model / "model.safetensors")
    to_published = not any(name.startswith("visual.") for name in tensors)
    renamed = {}
    for name, value in tensors.items():
        if to_published:
            new = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        else:
            new = name.replace("model.", "model.language_model.", 1).replace("visual.", "model.visual.", 1)
        renamed[new] = value
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    text = config.pop("text_config")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps({**text, **config}))
    save_tokenizer(tmp_path)
    ids = torch.arange(30).unsqueeze(0)
    torch.testing.assert_close(text_logits(tmp_path, ids), text_logits(model, ids), atol=0, rtol=0)


def test_it_is_quantized_on_a_text_and_keeps_its_tower(model: Path, tmp_path: Path) -> None:
    quantized_on_a_text(model, tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3]}}, "three positive numbers"),
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 4]}}, "half of head_dim, 8"),
        ({"vision_config": {**QWEN2_5_VL.tower, "out_hidden_size": 64}}, "expected pieces of 48 channels"),
        ({"vision_config": {**QWEN2_5_VL.tower, "window_size": 4}}, "windows of one or more"),
        ({"vision_config": {**QWEN2_5_VL.tower, "fullatt_block_indexes": "all"}}, "expected a list of layers"),
        ({"vision_config": {**QWEN2_5_VL.tower, "in_channels": 1}}, "in_channels"),
        ({"vision_config": {**QWEN2_5_VL.tower, "hidden_act": "relu"}}, "hidden_act"),
        ({"image_token_id": 272}, "expected a token of the vocabulary of 272"),
        ({"vision_end_token_id": 272}, "vision_end_token_id: expected a token of the vocabulary of 272"),
        (
            {"rope_parameters": {**QWEN2_5_VL.text["rope_parameters"], "rope_type": "dynamic", "factor": 2.0}},
            "expected the same frequencies for texts of every length",
        ),
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any], says: str) -> None:
    config = {
        **QWEN2_5_VL.text,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": QWEN2_5_VL.tower,
        "image_token_id": 270,
        **changes,
    }
    with pytest.raises(UnsupportedError, match=says):
        describe_model(config)


def test_defaults_are_those_of_transformers() -> None:
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    vision = describe_vision(config)
    theirs: Any = Qwen2_5_VLConfig().vision_config
    assert isinstance(vision, WindowedVisionSpec)
    tower = vision.tower
    assert (tower.num_layers, tower.intermediate_size, tower.window_size) == (
        *(theirs.depth, theirs.intermediate_size, theirs.window_size),
    )
    assert tower.full_layers == set(theirs.fullatt_block_indexes)
    assert vision.image_token == Qwen2_5_VLConfig().image_token_id
