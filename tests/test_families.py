"""Family descriptions against transformers' own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import LLAMA_CONFIG, save_llama
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from awq2trt.errors import UnsupportedError
from awq2trt.families import LINEAR, NORM, describe_model
from awq2trt.source import SafetensorsSource

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        LLAMA3_SCALING,
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_frequencies_are_those_of_transformers(rope: dict[str, Any]) -> None:
    config = LlamaConfig(**{**LLAMA_CONFIG, "head_dim": 64, "rope_parameters": rope})
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()
    spec = describe_model({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    np.testing.assert_allclose(spec.rope.inv_freq, expected, rtol=1e-6)


def test_old_rope_keys_mean_the_same() -> None:
    old = {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in LLAMA3_SCALING.items() if k != "rope_theta"}}
    base = {**LLAMA_CONFIG, "architectures": ["LlamaForCausalLM"]}
    assert describe_model({**base, **old}).rope == describe_model({**base, "rope_parameters": LLAMA3_SCALING}).rope


def test_every_tensor_of_the_model_is_described(tmp_path: Path) -> None:
    from safetensors import safe_open

    directory = save_llama(tmp_path, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    spec = SafetensorsSource(directory).spec
    described = dict(spec.outer_shapes())
    for layer in range(spec.num_layers):
        described.update({spec.prefix(layer) + name: shape for name, shape in spec.block_shapes().items()})
    with safe_open(directory / "model.safetensors", framework="numpy") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert described == stored


def test_scale_groups_cover_every_linear_once() -> None:
    spec = describe_model({**LLAMA_CONFIG, "architectures": ["LlamaForCausalLM"]})
    groups = spec.scale_groups()
    assert sorted(name for group in groups for name in group.balance_layers) == sorted(spec.block.linears)
    assert [group.smooth_kind for group in groups] == [NORM, LINEAR, NORM, LINEAR]
    assert [group.heads_tied for group in groups] == [1, 3, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MysteryForCausalLM"]}, "MysteryForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_key_value_heads": 4}, "multiple"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ],
)
def test_what_the_family_cannot_express_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    config = {**LLAMA_CONFIG, "architectures": ["LlamaForCausalLM"], **change}
    with pytest.raises(UnsupportedError, match=message):
        describe_model(config)
