"""Llama and what shares its block: Llama 1 to 3, Vicuna, TinyLlama, SmolLM2, Mistral.

Source: `LlamaForCausalLM` and `MistralForCausalLM` of transformers, whose config.json keys these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import SILU, config_activation, config_value
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, LayerSpec, NormSpec
from awq2trt.models.families.rope import rope_parameters, rope_spec

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

EXAMPLE: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Llama-shaped model from its config.json.

    Raises:
        UnsupportedError: A required key is missing, or the config asks for something the family does not have.
    """
    layer_count = config_value(config, "num_hidden_layers", int)
    num_heads, num_kv_heads, head_dim = head_sizes(config)
    rope = rope_spec(rope_parameters(config), head_dim)
    config_activation(config, "hidden_act", "silu", (SILU,))
    names = BLOCK_NAMES
    attention = (*names.attention_inputs, names.o_proj) if config.get("attention_bias") else ()
    mlp = (*names.mlp_inputs, names.down_proj) if config.get("mlp_bias") else ()
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=config_value(config, "hidden_size", int),
        intermediate_size=config_value(config, "intermediate_size", int),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config_value(config, "vocab_size", int),
        max_positions=config.get("max_position_embeddings", 2048),
        norm=NormSpec(eps=float(config.get("rms_norm_eps", 1e-6))),
        activation=SILU,
        layers=(LayerSpec(rope, config.get("sliding_window")),) * layer_count,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        biased=frozenset((*attention, *mlp)),
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        block_prefix="model.layers.{layer}.",
        block=names,
    )


def head_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, key-value heads and channels of a head.

    Raises:
        UnsupportedError: Query heads cannot share the key-value heads evenly.
    """
    num_heads = config_value(config, "num_attention_heads", int)
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise UnsupportedError(
            f"num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}.",
            where="config.json",
        )
    return num_heads, num_kv_heads, config.get("head_dim") or config_value(config, "hidden_size", int) // num_heads


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    describe=describe,
    example=EXAMPLE,
)
