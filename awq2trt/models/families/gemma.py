"""Gemma 1, 2 and 3 (text): norms with a gain of 1 + weight, scaled embeddings, and since Gemma 2 norms on both sides.

Source: `GemmaForCausalLM`, `Gemma2ForCausalLM` and `Gemma3ForCausalLM` of transformers. Gemma 2 caps scores and logits
(arXiv:2408.00118, section 2); Gemma 3 normalises queries and keys instead, and has a rotary base of its own for the
layers that slide (arXiv:2503.19786, section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.models.families import llama
from awq2trt.models.families.config_keys import GELU_TANH, config_activation, config_value, refuse_unless
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import LayerSpec, NormSpec
from awq2trt.models.families.rope import rope_spec

_SLIDING: Final = "sliding_attention"
_FULL: Final = "full_attention"

_GLOBAL_THETA: Final = 1_000_000.0
_LOCAL_THETA: Final = 10_000.0
"""Gemma 3's rotary bases where config.json does not say."""

_NORMS_ON_BOTH_SIDES: Final = replace(
    llama.BLOCK_NAMES,
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


def describe_gemma(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 1 model: Llama's block, its norms and embeddings Gemma's."""
    _activation(config, "hidden_activation" if config.get("hidden_activation") else "hidden_act")
    spec = _llama_like(config)
    return replace(spec, family=GEMMA.name)


def describe_gemma2(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 2 model: every other layer slides, the first one too."""
    _activation(config, "hidden_activation")
    spec = _llama_like(config)
    kinds = config.get("layer_types") or [_FULL if (i + 1) % 2 == 0 else _SLIDING for i in range(spec.num_layers)]
    window = config_value(config, "sliding_window", int)
    layers = tuple(
        replace(layer, sliding_window=window if kind == _SLIDING else None)
        for layer, kind in zip(spec.layers, kinds, strict=True)
    )
    return replace(
        spec,
        family=GEMMA2.name,
        block=_NORMS_ON_BOTH_SIDES,
        layers=layers,
        attention_scale=config_value(config, "query_pre_attn_scalar", int) ** -0.5,
        attention_softcap=config.get("attn_logit_softcapping", 50.0),
        logit_softcap=config.get("final_logit_softcapping", 30.0),
    )


def describe_gemma3(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Gemma 3 text model: five layers of six slide, with a rotary base of their own."""
    _activation(config, "hidden_activation")
    refuse_unless(config, {"use_bidirectional_attention": False})
    spec = _llama_like({key: value for key, value in config.items() if not key.startswith("rope_")})
    return replace(
        spec,
        family=GEMMA3.name,
        block=replace(_NORMS_ON_BOTH_SIDES, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
        layers=_gemma3_layers(config, spec),
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=config.get("final_logit_softcapping"),
    )


def _gemma3_layers(config: Mapping[str, Any], spec: DecoderSpec) -> tuple[LayerSpec, ...]:
    parameters = config.get("rope_parameters") or {}
    full = {"rope_theta": config.get("rope_theta") or _GLOBAL_THETA, **(config.get("rope_scaling") or {})}
    local = {"rope_theta": config.get("rope_local_base_freq") or _LOCAL_THETA}
    by_kind = {
        _FULL: LayerSpec(rope_spec({**full, **(parameters.get(_FULL) or {})}, spec.head_dim)),
        _SLIDING: LayerSpec(
            rope_spec({**local, **(parameters.get(_SLIDING) or {})}, spec.head_dim),
            config_value(config, "sliding_window", int),
        ),
    }
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    kinds = config.get("layer_types") or [
        _FULL if (layer + 1) % pattern == 0 else _SLIDING for layer in range(spec.num_layers)
    ]
    return tuple(by_kind[kind] for kind in kinds)


def _llama_like(config: Mapping[str, Any]) -> DecoderSpec:
    """What all Gemmas share with Llama and with each other."""
    spec = llama.describe({"head_dim": 256, **config, "hidden_act": "silu", "mlp_bias": False, "sliding_window": None})
    return replace(
        spec,
        norm=NormSpec(eps=spec.norm.eps, unit_offset=True),
        activation=GELU_TANH,
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        embedding_scale=spec.hidden_size**0.5,
    )


def _activation(config: Mapping[str, Any], key: str) -> None:
    """Refuses any but the tanh form; Gemma 1's first configs say `gelu` and mean it."""
    named = {**config, key: "gelu_pytorch_tanh"} if config.get(key) == "gelu" else config
    config_activation(named, key, "gelu_pytorch_tanh", (GELU_TANH,))


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
        "layer_types": [_SLIDING, _FULL],
    },
    needs_bos=True,
)
