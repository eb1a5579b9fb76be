"""Llama and models with its block: Llama 1 to 3, Vicuna, TinyLlama, SmolLM2; and Mistral.

Source: `LlamaForCausalLM` and `MistralForCausalLM` of transformers, whose config.json keys these are. Their config
classes share most keys, but not all, and not all defaults: `ClassKeys` describes what a class reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import (
    FULL,
    MOST_LAYERS,
    PUBLISHED,
    SILU,
    SLIDING,
    config_activation,
    config_flag,
    config_heads,
    config_number,
    config_size,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, LayerSpec, NormSpec
from awq2trt.models.families.rope import COMMON_KEYS, RopeKeys, reach, rope_parameters, rope_spec

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


@dataclass(frozen=True, kw_only=True)
class ClassKeys:
    """How a model class of Llama's shape reads config.json, and what a missing key means to it.

    Attributes:
        max_positions: Default of `max_position_embeddings`.
        norm_eps: Default of `rms_norm_eps`.
        num_kv_heads: Default of `num_key_value_heads`; None for as many as there are query heads, which null means,
            too.
        head_dim: Default of `head_dim`; None for hidden_size / num_attention_heads.
        tied: Default of `tie_word_embeddings`.
        attention_bias: Whether the class reads `attention_bias`.
        mlp_bias: Whether the class reads `mlp_bias`.
        rope: How it reads its rotary parameters; None if the caller reads them.
    """

    max_positions: int = 2048
    norm_eps: float = 1e-6
    num_kv_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: RopeKeys | None = COMMON_KEYS


_LLAMA_KEYS: Final = ClassKeys(attention_bias=True, mlp_bias=True)

_MISTRAL_KEYS: Final = ClassKeys(max_positions=131072, num_kv_heads=8)

_MISTRAL_WINDOW: Final = 4096
"""The window for a config.json without `sliding_window`; null means no window."""


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Llama model from its config.json.

    Raises:
        UnsupportedError: A required key is missing, or the config asks for something the family does not have.
    """
    config_activation(config, "hidden_act", "silu", (SILU,))
    return llama_like(config, _LLAMA_KEYS, LLAMA.name)


def describe_mistral(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Mistral model: all layers see a window of the last positions, unless it is null."""
    config_activation(config, "hidden_act", "silu", (SILU,))
    window = config_window({"sliding_window": _MISTRAL_WINDOW, **config})
    return with_windows(llama_like(config, _MISTRAL_KEYS, MISTRAL.name), window)


def llama_like(config: Mapping[str, Any], keys: ClassKeys, family: str) -> DecoderSpec:
    """Describes a model that has the shape of Llama.

    Args:
        config: config.json.
        keys: How its class reads config.json.
        family: Its family's name.

    Raises:
        UnsupportedError: The same as in `describe`.
    """
    hidden_size = config_size(config, "hidden_size")
    num_heads, num_kv_heads, head_dim = head_sizes(config, keys, hidden_size)
    max_positions = config_size(config, "max_position_embeddings", keys.max_positions)
    rope, names = None, BLOCK_NAMES
    if keys.rope is not None:
        parameters = rope_parameters(config, keys.rope)
        rope = rope_spec(parameters, head_dim, max_positions, keys.rope)
        max_positions = reach(parameters, max_positions)
    attention = (*names.attention_inputs, names.o_proj)
    mlp = (*names.mlp_inputs, names.down_proj)
    return DecoderSpec(
        family=family,
        hidden_size=hidden_size,
        intermediate_size=config_size(config, "intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config_size(config, "vocab_size"),
        max_positions=max_positions,
        norm=NormSpec(eps=config_number(config, "rms_norm_eps", keys.norm_eps)),
        activation=SILU,
        layers=(LayerSpec(rope),) * config_size(config, "num_hidden_layers", largest=MOST_LAYERS),
        tie_embeddings=config_flag(config, "tie_word_embeddings", keys.tied),
        biased=frozenset(
            (attention if keys.attention_bias and config_flag(config, "attention_bias", False) else ())
            + (mlp if keys.mlp_bias and config_flag(config, "mlp_bias", False) else ())
        ),
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        block_prefix="model.layers.{layer}.",
        block=names,
    )


def head_sizes(config: Mapping[str, Any], keys: ClassKeys, hidden_size: int) -> tuple[int, int, int]:
    """Returns the numbers of query heads, of key-value heads, and of channels in a head.

    Raises:
        UnsupportedError: Query heads cannot share the key-value heads evenly, or heads cannot share the channels.
    """
    num_heads = config_size(config, "num_attention_heads")
    missing = keys.num_kv_heads if "num_key_value_heads" not in config else None
    num_kv_heads = config_size(config, "num_key_value_heads", missing or num_heads)
    if num_heads % num_kv_heads:
        raise UnsupportedError(
            f"num_attention_heads: expected a multiple of num_key_value_heads {num_kv_heads}, got {num_heads}.",
            where="config.json",
            fix=PUBLISHED,
        )
    if config.get("head_dim") is None and keys.head_dim is None:
        return num_heads, num_kv_heads, config_heads(config, "num_attention_heads", hidden_size)[1]
    return num_heads, num_kv_heads, config_size(config, "head_dim", keys.head_dim)


def config_window(config: Mapping[str, Any]) -> int | None:
    """Returns `sliding_window`; None if it is null or missing."""
    return None if config.get("sliding_window") is None else config_size(config, "sliding_window")


def with_windows(spec: DecoderSpec, window: int | None, kinds: Sequence[str] | None = None) -> DecoderSpec:
    """Returns the model with a sliding window in all layers, or in those of the kind `SLIDING`.

    Raises:
        UnsupportedError: Some layers have a sliding window, but its length is not given.
    """
    kinds = kinds or (SLIDING if window else FULL,) * spec.num_layers
    if window is None and SLIDING in kinds:
        raise UnsupportedError(
            f"sliding_window: expected a number of positions, since some layers are of the kind {SLIDING}, got none.",
            where="config.json",
            fix=PUBLISHED,
        )
    layers = (
        replace(layer, sliding_window=window if kind == SLIDING else None)
        for layer, kind in zip(spec.layers, kinds, strict=True)
    )
    return replace(spec, layers=tuple(layers))


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    describe=describe,
    example=EXAMPLE,
)

MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    describe=describe_mistral,
    example={
        **EXAMPLE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 24,
    },
)
