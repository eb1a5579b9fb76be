"""BLOOM: ALiBi instead of positions, a norm behind the embedding, q, k and v fused head by head.

Source: `BloomForCausalLM` of transformers (arXiv:2211.05100, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.models.families.alibi import bloom_slopes
from awq2trt.models.families.config_keys import (
    GELU_TANH,
    MOST_LAYERS,
    config_flag,
    config_heads,
    config_number,
    config_size,
    refuse_unless,
    under_own_names,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, FusedLinear, LayerSpec, NormSpec

_TRAINED_POSITIONS: Final = 2048
"""ALiBi has no limit; this is the length that BLOOM was trained with, for a config.json that names none."""

BLOCK_NAMES: Final = BlockNames(
    input_norm="input_layernorm",
    q_proj="self_attention.q_proj",
    k_proj="self_attention.k_proj",
    v_proj="self_attention.v_proj",
    o_proj="self_attention.dense",
    mlp_norm="post_attention_layernorm",
    up_proj="mlp.dense_h_to_4h",
    down_proj="mlp.dense_4h_to_h",
    activation="mlp.gelu_impl",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a BLOOM model from its config.json.

    Raises:
        UnsupportedError: Its residual stream takes the output of the norms.
    """
    # With `slow_but_exact` and `pretraining_tp`, transformers leaves biases out.
    refuse_unless(config, {"apply_residual_connection_post_layernorm": False, "slow_but_exact": False})
    config = under_own_names(config, {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"})
    hidden_size = config_size(config, "hidden_size" if config.get("n_embed") is None else "n_embed")
    num_heads, head_dim = config_heads(config, "n_head", hidden_size)
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=config_size(config, "seq_length", _TRAINED_POSITIONS),
        norm=NormSpec(config_number(config, "layer_norm_epsilon", 1e-5), rms=False, bias=True),
        activation=GELU_TANH,
        layers=(LayerSpec(),) * config_size(config, "n_layer", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", True),
        biased=frozenset(BLOCK_NAMES.linears),
        embedding="transformer.word_embeddings",
        embedding_norm="transformer.word_embeddings_layernorm",
        final_norm="transformer.ln_f",
        head="lm_head",
        block_prefix="transformer.h.{layer}.",
        block=BLOCK_NAMES,
        fused=(FusedLinear("self_attention.query_key_value", BLOCK_NAMES.attention_inputs, groups=num_heads),),
        alibi=bloom_slopes(num_heads),
        optional_prefix="transformer.",
    )


FAMILY = Family(
    name="bloom",
    architectures=("BloomForCausalLM",),
    describe=describe,
    example={
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": 272,
        "hidden_size": 96,
        "n_layer": 2,
        "n_head": 6,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
    },
)
