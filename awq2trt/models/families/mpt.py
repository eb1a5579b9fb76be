"""MPT: ALiBi, LayerNorm without bias, no biases at all, q, k and v fused.

Source: `MptForCausalLM` of transformers. Published checkpoints name their architecture `MPTForCausalLM`, after the code
that came with them before transformers had the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.alibi import mpt_slopes
from awq2trt.models.families.config_keys import GELU, config_value, refuse_unless
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, FusedLinear, LayerSpec, NormSpec

_BIAS_MAX: Final = 8
"""`alibi_bias_max` where config.json does not say."""

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
    hidden_size, num_heads = config_value(config, "d_model", int), config_value(config, "n_heads", int)
    attention = config.get("attn_config") or {}
    refuse_unless(attention, {"attn_type": "multihead_attention", "qk_ln": False, "prefix_lm": False})
    refuse_unless(config, {"no_bias": True, "logit_scale": None, "expansion_ratio": 4})
    if not attention.get("alibi", True):
        raise UnsupportedError(
            "attn_config.alibi: expected true, got false.",
            where="config.json",
            fix="MPT with learned positions is not described; CONTRIBUTING.md, 'A new model family', shows how.",
        )
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        vocab_size=config_value(config, "vocab_size", int),
        max_positions=config_value(config, "max_seq_len", int),
        norm=NormSpec(float(config.get("layer_norm_epsilon", 1e-5)), rms=False),
        activation=GELU,
        layers=(LayerSpec(),) * config_value(config, "n_layers", int),
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        embedding="transformer.wte",
        final_norm="transformer.norm_f",
        head="lm_head",
        block_prefix="transformer.blocks.{layer}.",
        block=BLOCK_NAMES,
        fused=(FusedLinear("attn.Wqkv", BLOCK_NAMES.attention_inputs),),
        attention_scale=attention.get("softmax_scale"),
        clip_qkv=attention.get("clip_qkv") or None,
        alibi=mpt_slopes(num_heads, attention.get("alibi_bias_max", _BIAS_MAX)),
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
