"""Falcon: 7B (one key-value head, one norm for attention and MLP) and 40B, 180B, 11B (grouped heads, a norm each).

Source: `FalconForCausalLM` of transformers (arXiv:2311.16867). q, k and v are fused: in the new architecture group by
group, each with its query heads, key head and value head; in 7B with all query heads, then key, then value; in
Falcon-RW head by head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.alibi import bloom_slopes
from awq2trt.models.families.config_keys import (
    GELU,
    GELU_TANH,
    MOST_LAYERS,
    PUBLISHED,
    config_activation,
    config_flag,
    config_heads,
    config_number,
    config_size,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, FusedLinear, LayerSpec, NormSpec
from awq2trt.models.families.rope import reach, rope_parameters, rope_spec

BLOCK_NAMES: Final = BlockNames(
    input_norm="input_layernorm",
    q_proj="self_attention.q_proj",
    k_proj="self_attention.k_proj",
    v_proj="self_attention.v_proj",
    o_proj="self_attention.dense",
    mlp_norm=None,
    up_proj="mlp.dense_h_to_4h",
    down_proj="mlp.dense_4h_to_h",
    activation="mlp.act",
)
"""Names in 7B; the others add a norm."""


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Falcon model from its config.json.

    Raises:
        UnsupportedError: A required key is missing, or its activation function or rotary scaling is not supported.
    """
    hidden_size = config_size(config, "hidden_size" if config.get("n_embed") is None else "n_embed")
    num_heads, head_dim = config_heads(config, "num_attention_heads", hidden_size)
    grouped = config_flag(config, "new_decoder_architecture", False)
    num_kv_heads, pieces = _key_value_heads(config, num_heads, grouped=grouped)
    alibi = config_flag(config, "alibi", False)
    max_positions = config_size(config, "max_position_embeddings", 2048)
    parameters = rope_parameters(config)
    # Falcon scales scores and biases together, after adding them.
    slopes = tuple(slope * head_dim**-0.5 for slope in bloom_slopes(num_heads)) if alibi else None
    layer = LayerSpec(None if alibi else rope_spec(parameters, head_dim, max_positions))
    parallel = grouped or config_flag(config, "parallel_attn", True)
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=config_size(config, "ffn_hidden_size", 4 * hidden_size),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=max_positions if alibi else reach(parameters, max_positions),
        norm=NormSpec(config_number(config, "layer_norm_epsilon", 1e-5), rms=False, bias=True),
        activation=config_activation(config, "activation", "gelu", (GELU, GELU_TANH)),
        layers=(layer,) * config_size(config, "num_hidden_layers", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", True),
        biased=frozenset(BLOCK_NAMES.linears) if config_flag(config, "bias", False) else frozenset(),
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        head="lm_head",
        block_prefix="transformer.h.{layer}.",
        block=_block_names(config, grouped=grouped, parallel=parallel),
        fused=(FusedLinear("self_attention.query_key_value", BLOCK_NAMES.attention_inputs, groups=pieces),),
        parallel=parallel,
        alibi=slopes,
    )


def _key_value_heads(config: Mapping[str, Any], num_heads: int, *, grouped: bool) -> tuple[int, int]:
    """Returns the number of key-value heads, and of the pieces that the fused linear's rows consist of."""
    if grouped:
        num_kv_heads = config_size(config, "num_kv_heads", num_heads)
        if num_heads % num_kv_heads:
            raise UnsupportedError(
                f"num_kv_heads: expected a divisor of num_attention_heads {num_heads}, got {num_kv_heads}.",
                where="config.json",
                fix=PUBLISHED,
            )
        return num_kv_heads, num_kv_heads
    if config_flag(config, "multi_query", True):
        return 1, 1
    refuse_unless(config, {"num_kv_heads": num_heads})
    return num_heads, num_heads


def _block_names(config: Mapping[str, Any], *, grouped: bool, parallel: bool) -> BlockNames:
    """Names of the norms: one for both parts, one for each, or one after the other."""
    if not parallel:
        return replace(BLOCK_NAMES, mlp_norm="post_attention_layernorm")
    norms = config_size(config, "num_ln_in_parallel_attn", 2 if grouped else 1, largest=2)
    if not grouped:
        refuse_unless(config, {"num_ln_in_parallel_attn": 1})
    if grouped and norms == 2:
        return replace(BLOCK_NAMES, input_norm="ln_attn", mlp_norm="ln_mlp")
    return BLOCK_NAMES


FAMILY = Family(
    name="falcon",
    architectures=("FalconForCausalLM",),
    describe=describe,
    example={
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 272,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 256,
    },
    published_with_code=True,
)
