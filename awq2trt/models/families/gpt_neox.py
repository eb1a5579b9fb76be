"""GPT-NeoX: Pythia, GPT-NeoX-20B, and others trained with its library.

Source: `GPTNeoXForCausalLM` of transformers. Attention and MLP run in parallel, each behind a LayerNorm of its own; q,
k and v are fused head by head; a quarter of each head is rotated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.models.families.config_keys import GELU, GELU_TANH, config_activation, config_value
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, FusedLinear, LayerSpec, NormSpec
from awq2trt.models.families.rope import rope_parameters, rope_spec

_ROTARY_PART: Final = 0.25
"""Of a head's channels, where config.json does not say (GPT-NeoX-20B, arXiv:2204.06745, section 2.1)."""

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
        UnsupportedError: Its activation function or rotary scaling is not described.
    """
    hidden_size = config_value(config, "hidden_size", int)
    num_heads = config_value(config, "num_attention_heads", int)
    attention = (*BLOCK_NAMES.attention_inputs, BLOCK_NAMES.o_proj) if config.get("attention_bias", True) else ()
    head_dim = hidden_size // num_heads
    old_keys = {"rope_theta": config.get("rotary_emb_base"), "partial_rotary_factor": config.get("rotary_pct")}
    rope = rope_spec(
        {
            "partial_rotary_factor": _ROTARY_PART,
            **{key: value for key, value in old_keys.items() if value is not None},
            **rope_parameters(config),
        },
        head_dim,
    )
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=config_value(config, "intermediate_size", int),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config_value(config, "vocab_size", int),
        max_positions=config_value(config, "max_position_embeddings", int),
        norm=NormSpec(float(config.get("layer_norm_eps", 1e-5)), rms=False, bias=True),
        activation=config_activation(config, "hidden_act", "gelu", (GELU, GELU_TANH)),
        layers=(LayerSpec(rope),) * config_value(config, "num_hidden_layers", int),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        biased=frozenset((*attention, BLOCK_NAMES.up_proj, BLOCK_NAMES.down_proj)),
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        block_prefix="gpt_neox.layers.{layer}.",
        block=BLOCK_NAMES,
        fused=(FusedLinear("attention.query_key_value", BLOCK_NAMES.attention_inputs, groups=num_heads),),
        parallel=bool(config.get("use_parallel_residual", True)),
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
