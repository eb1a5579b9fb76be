"""Qwen3-VL: described from published config.json and from saved ones; what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from seeing_families import assert_text_logits, quantized_on_a_text, text_logits
from tiny_qwen_vl import QWEN3_VL, VISION_END, VISION_START, save_qwen3_vl
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import describe_model, describe_vision
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.arranging import tokens_around
from awq2trt.models.vision.stacked import StackedVisionSpec

PUBLISHED: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "initializer_range": 0.02,
        "intermediate_size": 9728,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}
"""config.json of Qwen/Qwen3-VL-4B-Instruct without `transformers_version`, all values as in the copy of it in
kohya-ss/musubi-tuner@7c1cf72, src/musubi_tuner/krea2/krea2_encoder.py.
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("models") / "tiny-qwen3-vl")


def test_the_description_is_of_all_its_tensors(model: Path) -> None:
    source = open_source(str(model))
    assert isinstance(source.vision, StackedVisionSpec)
    stored = {name: tuple(value.shape) for name, value in load_file(model / "model.safetensors").items()}
    assert source.vision.shapes() == {name: shape for name, shape in stored.items() if "visual" in name}
    assert source.spec.deepstack == 2
    (rope,) = source.model_spec.record().decoder.ropes
    assert (rope.sections, rope.interleaved) == ((4, 2, 2), True)
    record = source.vision.record()
    assert (record.family, record.image_token, record.tokens_per_image) == ("qwen3_vl", 270, None)
    assert record.settings["patch_size"] == 4
    assert "window_size" not in record.settings
    assert tokens_around(record) == ([VISION_START], [VISION_END])
    source.require_tensors()


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_a_text_are_those_of_transformers(tied: bool, tmp_path: Path) -> None:
    model = save_qwen3_vl(tmp_path, tie_word_embeddings=tied)
    assert open_source(str(model)).spec.tie_embeddings == tied
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(3))
    assert_text_logits(model, Qwen3VLForConditionalGeneration, ids)


def test_old_keys_are_the_same_model(model: Path, tmp_path: Path) -> None:
    """As models are published, with `rope_scaling` and `rope_theta`."""
    (tmp_path / "model.safetensors").symlink_to(model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    parameters = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = parameters.pop("rope_theta")
    config["text_config"]["rope_scaling"] = parameters
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = torch.arange(30).unsqueeze(0)
    torch.testing.assert_close(text_logits(tmp_path, ids), text_logits(model, ids), atol=0, rtol=0)


def test_it_is_quantized_on_a_text_and_keeps_its_tower(model: Path, tmp_path: Path) -> None:
    assert quantized_on_a_text(model, tmp_path).spec.deepstack == 2


@pytest.mark.parametrize(
    ("text", "tower", "outer", "says"),
    [
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3]}}, {}, {}, "three positive numbers"),
        ({"rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 4]}}, {}, {}, "half of head_dim, 8"),
        (
            {"rope_parameters": {**QWEN3_VL.text["rope_parameters"], "mrope_interleaved": False}},
            {},
            {},
            "mrope_interleaved: expected True, got False",
        ),
        (
            {"rope_parameters": {**QWEN3_VL.text["rope_parameters"], "rope_type": "dynamic", "factor": 2.0}},
            {},
            {},
            "expected the same frequencies for texts of every length",
        ),
        ({}, {"out_hidden_size": 64}, {}, "expected pieces of 48 channels"),
        ({}, {"num_position_embeddings": 24}, {}, "expected those of a square, got 24"),
        ({}, {"deepstack_visual_indexes": [2, 0]}, {}, "in ascending order, got .2, 0."),
        ({}, {"deepstack_visual_indexes": [0, 4]}, {}, "expected different layers of 4"),
        ({}, {"deepstack_visual_indexes": "all"}, {}, "got 'all'"),
        ({}, {"deepstack_visual_indexes": [0, 1, 2, 3]}, {}, "as many layers as the decoder has, 3, got 4"),
        ({}, {"in_channels": 1}, {}, "in_channels"),
        ({}, {"hidden_act": "silu"}, {}, "hidden_act"),
        ({}, {"rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}}, {}, "rope_theta: expected 10000.0"),
        ({}, {}, {"image_token_id": 272}, "expected a token of the vocabulary of 272"),
        ({}, {}, {"vision_end_token_id": 272}, "vision_end_token_id: expected a token of the vocabulary of 272"),
    ],
)
def test_what_no_model_has_is_refused(
    text: dict[str, Any], tower: dict[str, Any], outer: dict[str, Any], says: str
) -> None:
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "text_config": {**QWEN3_VL.text, **text},
        "vision_config": {**QWEN3_VL.tower, **tower},
        "image_token_id": 270,
        **outer,
    }
    with pytest.raises(UnsupportedError, match=says):
        describe_model(config)


def test_a_published_config_is_described() -> None:
    decoder, vision = describe_model(PUBLISHED), describe_vision(PUBLISHED)
    assert isinstance(vision, StackedVisionSpec)
    assert (decoder.family, decoder.num_layers, decoder.deepstack, decoder.tie_embeddings) == ("qwen3", 36, 3, True)
    assert (vision.tower.deepstack_layers, vision.tower.position_side) == ((5, 11, 17), 48)
    assert vision.tower.piece_width == 4 * 2560
    (rope,) = decoder.ropes
    assert rope.followed.tolist() == [0, 1, 2] * 20 + [0] * 4
    assert rope.inv_freq[1] == pytest.approx(5e6 ** (-1 / 64))


def test_defaults_are_those_of_transformers() -> None:
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "vision_config": {"out_hidden_size": 4096},
    }
    decoder, vision, whole = describe_model(config), describe_vision(config), Qwen3VLConfig()
    theirs: Any = whole.vision_config
    text: Any = whole.text_config
    assert isinstance(vision, StackedVisionSpec)
    tower = vision.tower
    assert (tower.num_layers, tower.hidden_size, tower.intermediate_size, tower.num_heads) == (
        *(theirs.depth, theirs.hidden_size, theirs.intermediate_size, theirs.num_heads),
    )
    assert (tower.patch_size, tower.frames, tower.merge, tower.num_positions) == (
        *(theirs.patch_size, theirs.temporal_patch_size, theirs.spatial_merge_size, theirs.num_position_embeddings),
    )
    assert tower.deepstack_layers == tuple(theirs.deepstack_visual_indexes)
    assert vision.image_token == whole.image_token_id
    assert (decoder.num_layers, decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (
        *(text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim),
    )
    assert (decoder.hidden_size, decoder.intermediate_size, decoder.vocab_size, decoder.max_positions) == (
        *(text.hidden_size, text.intermediate_size, text.vocab_size, text.max_position_embeddings),
    )
    assert (decoder.norm.eps, decoder.tie_embeddings) == (text.rms_norm_eps, whole.tie_word_embeddings)
    (rope,) = decoder.ropes
    assert rope.inv_freq[1] == pytest.approx(text.rope_parameters["rope_theta"] ** (-1 / 64))
    assert (rope.sections, rope.interleaved) == ((24, 20, 20), True)
