"""MPT: ALiBi, LayerNorm without bias, no biases at all, q, k and v fused.

Source: `MptForCausalLM` of transformers. Published checkpoints call their architecture `MPTForCausalLM`, like the code
that came with them before transformers had the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.alibi import mpt_slopes
from awq2trt.models.families.config_keys import (
    GELU,
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

_BIAS_MAX: Final = 8
"""The `alibi_bias_max` of all published models."""

BLOCK_NAMES: Final = BlockNames(
    input_norm="norm_1",
    q_proj="attn.q_proj",
    k_proj="attn.k_proj",
    v_proj="attn.v_proj",
    o_proj="attn.out_proj",
    mlp_norm="norm_2",
    up_proj="ffn.up_proj",
    down_proj="ffn.down_proj",
    activation="ffn.act",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes an MPT model from its config.json.

    Raises:
        UnsupportedError: It has learned positions instead of ALiBi, biases, or norms of queries and keys.
    """
    config = under_own_names(
        config, {"num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_size": "d_model"}
    )
    hidden_size = config_size(config, "d_model")
    num_heads, head_dim = config_heads(config, "n_heads", hidden_size)
    attention = config.get("attn_config") or {}
    refuse_unless(attention, {"attn_type": "multihead_attention", "qk_ln": False, "prefix_lm": False})
    refuse_unless(attention, {"alibi_bias_max": _BIAS_MAX})  # the authors' code reads it, but transformers does not
    refuse_unless(config, {"no_bias": True, "logit_scale": None, "expansion_ratio": 4})
    if not attention.get("alibi", True):
        raise UnsupportedError(
            "attn_config.alibi: expected true, got false.",
            where="config.json",
            fix="MPT with learned positions is not supported; CONTRIBUTING.md shows how to add it.",
        )
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=config_size(config, "max_seq_len"),
        norm=NormSpec(config_number(config, "layer_norm_epsilon", 1e-5), rms=False),
        activation=GELU,
        layers=(LayerSpec(),) * config_size(config, "n_layers", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", True),
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        head="lm_head",
        block_prefix="transformer.blocks.{layer}.",
        block=BLOCK_NAMES,
        fused=(FusedLinear("attn.Wqkv", BLOCK_NAMES.attention_inputs),),
        attention_scale=None if attention.get("softmax_scale") is None else config_number(attention, "softmax_scale"),
        clip_qkv=config_number(attention, "clip_qkv") if attention.get("clip_qkv") else None,
        alibi=mpt_slopes(num_heads, _BIAS_MAX),
    )


FAMILY = Family(
    name="mpt",
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    describe=describe,
    example={
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "vocab_size": 272,
        "d_model": 96,
        "n_layers": 2,
        "n_heads": 6,
        "max_seq_len": 256,
        "attn_config": {"clip_qkv": 3.0},
        "bos_token_id": 256,
        "eos_token_id": 256,
    },
    published_with_code=True,
)
