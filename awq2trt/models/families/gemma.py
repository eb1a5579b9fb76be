"""Gemma 1, 2 and 3 (text): norms with a gain of 1 + weight, scaled embeddings; since Gemma 2 norms on both sides.

Source: `GemmaForCausalLM`, `Gemma2ForCausalLM` and `Gemma3ForCausalLM` of transformers. Gemma 2 caps scores and logits
(arXiv:2408.00118, section 2); Gemma 3 normalises queries and keys instead, and has a separate rotary base for the
layers with a sliding window (arXiv:2503.19786, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.models.families import llama
from awq2trt.models.families.config_keys import (
    FULL,
    GELU_TANH,
    SLIDING,
    config_activation,
    config_layer_kinds,
    config_number,
    config_size,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import LayerSpec, NormSpec
from awq2trt.models.families.rope import rope_parameters, rope_spec

_KEYS: Final = llama.ClassKeys(max_positions=8192, num_kv_heads=16, head_dim=256, tied=True, attention_bias=True)

_KEYS2: Final = replace(_KEYS, num_kv_heads=4)

_KEYS3: Final = replace(_KEYS2, max_positions=131072, rope=None)

_WINDOW: Final = 4096

_QUERY_SCALAR: Final = 256

_SCORE_CAP: Final = 50.0
_LOGIT_CAP: Final = 30.0
"""Gemma 2's cap for a config.json that names none; null means no cap."""

_GLOBAL_THETA: Final = 1_000_000.0
_LOCAL_THETA: Final = 10_000.0
_PATTERN: Final = 6
"""Gemma 3's rotary bases and its layers with full attention, for a config.json that does not list them."""

_NORMS_ON_BOTH_SIDES: Final = replace(
    llama.BLOCK_NAMES,
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


def describe_gemma(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 1 model: Llama's block with Gemma's norms and embeddings.

    Early checkpoints say `hidden_act: gelu` but mean the tanh form. `hidden_activation`, which Google's own code reads,
    must not contradict that.
    """
    for key in ("hidden_act", "hidden_activation"):
        named = {**config, key: "gelu_pytorch_tanh"} if config.get(key) == "gelu" else config
        config_activation(named, key, "gelu_pytorch_tanh", (GELU_TANH,))
    refuse_unless(config, {"use_bidirectional_attention": False})
    return _gemma_like(config, _KEYS, GEMMA.name)


def describe_gemma2(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 2 model: every second layer has a sliding window, beginning with the first."""
    config_activation(config, "hidden_activation", "gelu_pytorch_tanh", (GELU_TANH,))
    refuse_unless(config, {"use_bidirectional_attention": False})
    spec = _gemma_like(config, _KEYS2, GEMMA2.name)
    default = [FULL if (layer + 1) % 2 == 0 else SLIDING for layer in range(spec.num_layers)]
    kinds = config_layer_kinds(config, spec.num_layers, default)
    return replace(
        llama.with_windows(spec, llama.config_window({"sliding_window": _WINDOW, **config}), kinds),
        block=_NORMS_ON_BOTH_SIDES,
        attention_scale=config_number(config, "query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        attention_softcap=_cap({"attn_logit_softcapping": _SCORE_CAP, **config}, "attn_logit_softcapping"),
        logit_softcap=_cap({"final_logit_softcapping": _LOGIT_CAP, **config}, "final_logit_softcapping"),
    )


def describe_gemma3(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 3 text model: five of six layers have a sliding window and a rotary base of their own."""
    config_activation(config, "hidden_activation", "gelu_pytorch_tanh", (GELU_TANH,))
    refuse_unless(config, {"use_bidirectional_attention": False, "attn_logit_softcapping": None})
    return replace(
        _gemma3_layers(config, _gemma_like(config, _KEYS3, GEMMA3.name)),
        block=replace(_NORMS_ON_BOTH_SIDES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
        attention_scale=config_number(config, "query_pre_attn_scalar", _QUERY_SCALAR) ** -0.5,
        logit_softcap=_cap(config, "final_logit_softcapping"),
    )


def _gemma3_layers(config: Mapping[str, Any], spec: DecoderSpec) -> DecoderSpec:
    """The windows and rotary embeddings of Gemma 3's layers; `rope_scaling` is for those that see everything."""
    given = config.get("rope_parameters") or {}
    full, local = ({**(given.get(kind) or {})} for kind in (FULL, SLIDING))
    full |= config.get("rope_scaling") or {}
    ropes = {}
    for kind, parameters, theta in (
        (FULL, full, config.get("rope_theta") or _GLOBAL_THETA),
        (SLIDING, local, config.get("rope_local_base_freq") or _LOCAL_THETA),
    ):
        # As in transformers, neither `truncate` nor keys beside the parameters reach a kind of layer.
        own = {"rope_theta": theta, **{key: value for key, value in parameters.items() if key != "truncate"}}
        ropes[kind] = rope_spec(rope_parameters({"rope_parameters": own}), spec.head_dim, spec.max_positions)
    pattern = config_size(config, "sliding_window_pattern", _PATTERN)
    default = [FULL if (layer + 1) % pattern == 0 else SLIDING for layer in range(spec.num_layers)]
    kinds = config_layer_kinds(config, spec.num_layers, default)
    rotating = replace(spec, layers=tuple(LayerSpec(ropes[kind]) for kind in kinds))
    return llama.with_windows(rotating, llama.config_window({"sliding_window": _WINDOW, **config}), kinds)


def _gemma_like(config: Mapping[str, Any], keys: llama.ClassKeys, family: str) -> DecoderSpec:
    """What all Gemmas share with Llama and with each other."""
    spec = llama.llama_like(config, keys, family)
    return replace(
        spec,
        norm=NormSpec(eps=spec.norm.eps, unit_offset=True),
        activation=GELU_TANH,
        embedding_scale=spec.hidden_size**0.5,
    )


def _cap(config: Mapping[str, Any], key: str) -> float | None:
    return None if config.get(key) is None else config_number(config, key)


_EXAMPLE: Final = {**llama.EXAMPLE, "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 256}

GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    describe=describe_gemma,
    example={**_EXAMPLE, "architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
    needs_bos=True,
)

GEMMA2 = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    describe=describe_gemma2,
    example={
        **_EXAMPLE,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "query_pre_attn_scalar": 24,
        "sliding_window": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    needs_bos=True,
)

GEMMA3 = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    describe=describe_gemma3,
    example={
        **_EXAMPLE,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 24,
        "sliding_window": 24,
        "layer_types": [SLIDING, FULL],
    },
    needs_bos=True,
)
