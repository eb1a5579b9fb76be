"""OPT: LayerNorm, learned positions, biases everywhere, a plain MLP with ReLU.

Source: `OPTForCausalLM` of transformers. OPT-350M alone applies norms after each part and projects its embeddings; it
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.models.families.config_keys import (
    MOST_LAYERS,
    RELU,
    config_activation,
    config_flag,
    config_heads,
    config_size,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, LayerSpec, LearnedPositions, NormSpec

_POSITION_OFFSET: Final = 2
"""Number of rows in the table before that of position 0 (`OPTLearnedPositionalEmbedding`)."""

_NORM_EPS: Final = 1e-5
"""PyTorch's default, which OPT keeps."""

BLOCK_NAMES: Final = BlockNames(
    input_norm="self_attn_layer_norm",
    q_proj="self_attn.q_proj",
    k_proj="self_attn.k_proj",
    v_proj="self_attn.v_proj",
    o_proj="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    up_proj="fc1",
    down_proj="fc2",
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes an OPT model from its config.json.

    Raises:
        UnsupportedError: It applies norms after each part, or projects its embeddings.
    """
    hidden_size = config_size(config, "hidden_size")
    refuse_unless(
        config,
        {
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "layer_norm_elementwise_affine": True,
            "enable_bias": True,
            "word_embed_proj_dim": hidden_size,
        },
    )
    num_heads, head_dim = config_heads(config, "num_attention_heads", hidden_size)
    return DecoderSpec(
        family=FAMILY.name,
        hidden_size=hidden_size,
        intermediate_size=config_size(config, "ffn_dim"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=config_size(config, "max_position_embeddings"),
        norm=NormSpec(_NORM_EPS, rms=False, bias=True),
        activation=config_activation(config, "activation_function", "relu", (RELU,)),
        layers=(LayerSpec(),) * config_size(config, "num_hidden_layers", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", True),
        biased=frozenset(BLOCK_NAMES.linears),
        embedding="model.decoder.embed_tokens",
        positions=LearnedPositions("model.decoder.embed_positions", _POSITION_OFFSET),
        final_norm="model.decoder.final_layer_norm",
        head="lm_head",
        block_prefix="model.decoder.layers.{layer}.",
        block=BLOCK_NAMES,
        optional_prefix="model.",
    )


FAMILY = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    describe=describe,
    example={
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 272,
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
    },
)
