"""GPT-NeoX: Pythia, GPT-NeoX-20B, and others trained with its library.

Source: `GPTNeoXForCausalLM` of transformers. Attention and MLP run in parallel, each behind a LayerNorm of its own; q,
k and v are fused head by head; a quarter of each head is rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.models.families.config_keys import (
    GELU,
    GELU_TANH,
    MOST_LAYERS,
    config_activation,
    config_flag,
    config_heads,
    config_number,
    config_size,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, FusedLinear, LayerSpec, NormSpec
from awq2trt.models.families.rope import RopeKeys, reach, rope_parameters, rope_spec

_ROPE_KEYS: Final = RopeKeys(
    theta="rotary_emb_base",
    partial="rotary_pct",
    whole_heads=False,
    default_share=0.25,  # GPT-NeoX-20B, arXiv:2204.06745, section 2.1
)

_MAX_POSITIONS: Final = 2048
"""The default of transformers' class."""

BLOCK_NAMES: Final = BlockNames(
    input_norm="input_layernorm",
    q_proj="attention.q_proj",
    k_proj="attention.k_proj",
    v_proj="attention.v_proj",
    o_proj="attention.dense",
    mlp_norm="post_attention_layernorm",
    up_proj="mlp.dense_h_to_4h",
    down_proj="mlp.dense_4h_to_h",
    activation="mlp.act",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a GPT-NeoX model from its config.json.

    Raises:
        UnsupportedError: Its activation function or rotary scaling is not supported.
    """
    hidden_size = config_size(config, "hidden_size")
    num_heads, head_dim = config_heads(config, "num_attention_heads", hidden_size)
    refuse_unless(config, {"head_dim": head_dim})
    biased = config_flag(config, "attention_bias", True)
    attention = (*BLOCK_NAMES.attention_inputs, BLOCK_NAMES.o_proj) if biased else ()
    max_positions = config_size(config, "max_position_embeddings", _MAX_POSITIONS)
    parameters = rope_parameters(config, _ROPE_KEYS)
    rope = rope_spec(parameters, head_dim, max_positions, _ROPE_KEYS)
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=config_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=reach(parameters, max_positions),
        norm=NormSpec(config_number(config, "layer_norm_eps", 1e-5), rms=False, bias=True),
        activation=config_activation(config, "hidden_act", "gelu", (GELU, GELU_TANH)),
        layers=(LayerSpec(rope),) * config_size(config, "num_hidden_layers", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", False),
        biased=frozenset((*attention, BLOCK_NAMES.up_proj, BLOCK_NAMES.down_proj)),
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        block_prefix="gpt_neox.layers.{layer}.",
        block=BLOCK_NAMES,
        fused=(FusedLinear("attention.query_key_value", BLOCK_NAMES.attention_inputs, groups=num_heads),),
        parallel=config_flag(config, "use_parallel_residual", True),
    )


FAMILY = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    describe=describe,
    example={
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "rotary_pct": 0.25,
        "bos_token_id": 256,
        "eos_token_id": 256,
    },
)
