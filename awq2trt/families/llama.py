"""Llama and what shares its block: Llama 1 to 3, Vicuna, TinyLlama, SmolLM2, Mistral.

Source: `LlamaForCausalLM` and `MistralForCausalLM` of transformers, whose config.json keys these are;
the Llama 3 rope scaling is https://github.com/meta-llama/llama-models (`apply_scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UnsupportedError
from awq2trt.families.description import BlockNames, DecoderSpec, Family, RopeSpec, config_value

_DEFAULT_ROPE_THETA: Final = 10000.0

BLOCK_NAMES: Final = BlockNames(
    input_norm="input_layernorm",
    q_proj="self_attn.q_proj",
    k_proj="self_attn.k_proj",
    v_proj="self_attn.v_proj",
    o_proj="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_proj="mlp.gate_proj",
    up_proj="mlp.up_proj",
    down_proj="mlp.down_proj",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Llama-shaped model from its config.json.

    Raises:
        UnsupportedError: A required key is missing, or the config asks for something the family does not have.
    """
    hidden_size = config_value(config, "hidden_size", int)
    num_heads = config_value(config, "num_attention_heads", int)
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or hidden_size // num_heads
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(
            f"hidden_act: expected silu, got {activation!r}.", where="config.json", fix="see the families in README."
        )
    if num_heads % num_kv_heads:
        raise UnsupportedError(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}.",
            where="config.json",
        )
    max_positions = config.get("max_position_embeddings", 2048)
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=config_value(config, "intermediate_size", int),
        num_layers=config_value(config, "num_hidden_layers", int),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config_value(config, "vocab_size", int),
        max_positions=max_positions,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation="silu",
        rope=RopeSpec(tuple(_inverse_frequencies(config, head_dim).tolist())),
        sliding_window=config.get("sliding_window"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        block_prefix="model.layers.{layer}.",
        block=BLOCK_NAMES,
    )


def _inverse_frequencies(config: Mapping[str, Any], head_dim: int) -> NDArray[np.float64]:
    """Frequencies of the rotary pairs, float64 [head_dim / 2], scaled as the config says.

    transformers before 5 writes `rope_theta` and `rope_scaling`, later versions `rope_parameters`.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or _DEFAULT_ROPE_THETA)
    inv_freq = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return inv_freq
    if kind == "linear":
        return inv_freq / float(scaling["factor"])
    if kind == "llama3":
        return llama3_scaled(inv_freq, scaling)
    raise UnsupportedError(
        f"rope scaling: expected default, linear or llama3, got {kind!r}.",
        where="config.json",
        fix="a model with this scaling runs within its original context if you remove rope_scaling from config.json.",
    )


def llama3_scaled(inv_freq: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.

    Args:
        inv_freq: Unscaled frequencies, float64 [head_dim / 2].
        scaling: `rope_parameters` of `rope_type` llama3.
    """
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: scale fully, 1: keep
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    describe=describe,
)
