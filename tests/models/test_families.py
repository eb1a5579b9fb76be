"""Family descriptions against transformers' own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import LLAMA_CONFIG, save_llama

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import FAMILIES, LINEAR, NORM, FusedLinear, describe_model, family_named
from awq2trt.models.families.alibi import bloom_slopes, mpt_slopes
from awq2trt.models.sources.safetensors import SafetensorsSource

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_old_rope_keys_mean_the_same() -> None:
    old = {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in LLAMA3_SCALING.items() if k != "rope_theta"}}
    base = {**LLAMA_CONFIG, "architectures": ["LlamaForCausalLM"]}
    assert describe_model({**base, **old}).ropes == describe_model({**base, "rope_parameters": LLAMA3_SCALING}).ropes


def test_every_tensor_of_the_model_is_described(tmp_path: Path) -> None:
    from safetensors import safe_open

    directory = save_llama(tmp_path, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    spec = SafetensorsSource.open(directory).spec
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
        ({"num_attention_heads": 0}, "num_attention_heads: expected a number from 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a number from 1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers: expected a number from 1"),
        ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers: expected a number from 1 to"),
        ({"head_dim": 2_000_000_000}, "head_dim: expected a number from 1 to"),
        ({"head_dim": 7}, "rotary channels of a head: expected an even number"),
        ({"head_dim": None, "num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads: expected a div"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a positive number"),
        ({"attention_bias": "yes"}, "attention_bias: expected bool"),
        ({"is_causal": False}, "is_causal: expected True, got False"),
    ],
)
def test_what_the_family_cannot_express_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    config = {**LLAMA_CONFIG, "architectures": ["LlamaForCausalLM"], **change}
    with pytest.raises(UnsupportedError, match=message):
        describe_model(config)


def test_example_of_every_family_is_described_by_it() -> None:
    for family in FAMILIES:
        spec = describe_model(family.example)
        assert spec.family == family.name
        assert family_named(family.name) is family
        assert spec.num_layers == 2
        grouped = [name for group in spec.scale_groups() for name in group.balance_layers]
        assert sorted(grouped) == sorted(spec.block.linears)


def test_an_architecture_belongs_to_one_family() -> None:
    architectures = [architecture for family in FAMILIES for architecture in family.architectures]
    assert len(set(architectures)) == len(architectures)


@pytest.mark.parametrize(
    ("groups", "order"),
    [(1, ["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]), (2, ["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"])],
)
def test_fused_rows_are_taken_apart_and_put_back(groups: int, order: list[str]) -> None:
    fused = FusedLinear("qkv", ("q", "k", "v"), groups)
    stored = np.array(order).reshape(-1, 1)
    parts = fused.split(stored, [4, 2, 2])
    assert [part.ravel().tolist() for part in parts] == [["q0", "q1", "q2", "q3"], ["k0", "k1"], ["v0", "v1"]]
    np.testing.assert_array_equal(fused.fuse(parts), stored)


def test_slopes_are_those_of_the_papers_models() -> None:
    # ALiBi's paper, section 3: 8 heads have 1/2, 1/4 ... 1/256; 16 heads their square roots.
    assert bloom_slopes(8) == tuple(2.0**-i for i in range(1, 9))
    np.testing.assert_allclose(bloom_slopes(16), [2 ** (-i / 2) for i in range(1, 17)])
    np.testing.assert_allclose(bloom_slopes(12), [*bloom_slopes(8), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert mpt_slopes(8, 16) == tuple(4.0**-i for i in range(1, 9))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before: expected True, got False"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim: expected 64, got 32"),
        ("opt", {"activation_function": "gelu"}, "activation_function: expected relu, got 'gelu'"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
        ("mpt", {"attn_config": {"alibi": False}}, r"attn_config\.alibi"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation: expected gelu_tanh"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
            "short_factor: expected 6",
        ),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: expected default, longrope"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: expected one for each of num_hidden_layers 2"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types: expected one for each of num_hidden_layers 2"),
        ("qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, "got 'chunked_attention'"),
        ("gemma2", {"sliding_window": None}, "sliding_window: expected a number of positions"),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads: expected a divisor"),
        ("bloom", {"num_hidden_layers": 3}, "n_layer: expected 3, got 2"),
        ("gpt_neox", {"hidden_act": "tanh"}, "hidden_act"),
    ],
)
def test_variants_that_are_not_described_are_refused_by_key(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        describe_model({**family_named(family).example, **change})


def test_keys_of_old_gemma3_configs_mean_the_same() -> None:
    config = {key: value for key, value in family_named("gemma3").example.items() if key != "layer_types"}
    old = describe_model({**config, "num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4})
    assert [layer.sliding_window for layer in old.layers] == [24, 24, 24, 24, 24, None, 24]
    new = {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e6}}
    assert describe_model({**config, "num_hidden_layers": 7, "rope_parameters": new}).layers == old.layers
    assert len(old.ropes) == 2


def _llama_names(*extra: str) -> list[str]:
    spec = describe_model(family_named("llama").example)
    inside = [f"model.layers.{layer}.{name}" for layer in range(12) for name in spec.stored_block_shapes()]
    return [*inside, *spec.outer_shapes(), *extra]


def test_unknown_architecture_names_the_first_module_without_a_place() -> None:
    names = _llama_names("model.layers.10.mlp.shared.weight", "model.layers.2.mlp.router.weight")
    with pytest.raises(UnsupportedError, match="CONTRIBUTING") as caught:
        describe_model({"architectures": ["LynxForCausalLM"]}, names)
    assert "LynxForCausalLM" in str(caught.value)
    assert "nearest family is llama; the first module that it cannot place is model.layers.2.mlp.router." in str(
        caught.value
    )
    with pytest.raises(UnsupportedError, match="the names of those of llama, but they may compute"):
        describe_model({"architectures": ["LynxForCausalLM"]}, _llama_names())


def test_a_tensor_that_a_known_family_would_leave_out_is_refused() -> None:
    config = family_named("llama").example
    describe_model(config, _llama_names("model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"))
    for extra in ("model.layers.1.self_attn.q_proj.bias", "model.layers.1.self_attn.q_norm.weight"):
        with pytest.raises(UnsupportedError, match=extra.replace(".", r"\.")):
            describe_model(config, _llama_names(extra))
