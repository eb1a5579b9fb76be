"""Qwen2.5-VL: described from published and from saved config.json, quantized on a text; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tokenizer
from tiny_qwen_vl import TEXT, TOWER, VISION_END, VISION_START, save_qwen_vl
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UnsupportedError
from awq2trt.models.decoder import Ends, run_model
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.arranging import tokens_around
from awq2trt.models.vision.windowed import WindowedVisionSpec
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen-vl")


def _logits(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    source = open_source(str(directory))
    with torch.inference_mode():
        return Ends(source).logits(run_model(source, tokens))


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
    tokens = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(_logits(model, tokens), theirs(tokens).logits, atol=2e-4, rtol=0)


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
    tokens = torch.arange(30).unsqueeze(0)
    torch.testing.assert_close(_logits(tmp_path, tokens), _logits(model, tokens), atol=0, rtol=0)


def test_it_is_quantized_on_a_text_and_keeps_its_tower(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It was a bright cold day in April. " * 60)
    options = QuantizeOptions(group_size=32, samples=2, seqlen=64, calib=str(tmp_path / "text.txt"))
    quantize_stage(QuantizeRequest(str(model), tmp_path / "out", options), SilentProgress())
    checkpoint, source = QuantizedCheckpoint.open(tmp_path / "out"), open_source(str(model))
    assert checkpoint.vision == source.vision
    stored = checkpoint.vision_tensors()
    for name, value in source.vision_tensors().items():
        np.testing.assert_allclose(stored[name].astype(np.float32), value.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3]}}, "three positive numbers"),
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 4]}}, "half of head_dim, 8"),
        ({"vision_config": {**TOWER, "out_hidden_size": 64}}, "expected pieces of 48 channels"),
        ({"vision_config": {**TOWER, "window_size": 4}}, "windows of one or more"),
        ({"vision_config": {**TOWER, "fullatt_block_indexes": "all"}}, "expected a list of layers"),
        ({"vision_config": {**TOWER, "in_channels": 1}}, "in_channels"),
        ({"vision_config": {**TOWER, "hidden_act": "relu"}}, "hidden_act"),
        ({"image_token_id": 272}, "expected a token of the vocabulary of 272"),
        ({"vision_end_token_id": 272}, "vision_end_token_id: expected a token of the vocabulary of 272"),
        (
            {"rope_parameters": {**TEXT["rope_parameters"], "rope_type": "dynamic", "factor": 2.0}},
            "expected the same frequencies for texts of every length",
        ),
    ],
)
def test_what_no_model_has_is_refused(changes: dict[str, Any], says: str) -> None:
    config = {
        **TEXT,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "vision_config": TOWER,
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
