"""Qwen2, Qwen2.5 and Qwen3: Llama's block with biases on q, k and v, or with norms of queries and keys.

Source: `Qwen2ForCausalLM` and `Qwen3ForCausalLM` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.models.families import llama
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import LayerSpec

_SLIDING: Final = "sliding_attention"


def describe_qwen2(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Qwen2 or Qwen2.5 model: q, k and v have biases, o has none."""
    spec = llama.describe({**config, "attention_bias": False, "mlp_bias": False})
    return replace(spec, family=QWEN2.name, biased=frozenset(spec.block.attention_inputs), layers=_layers(config, spec))


def describe_qwen3(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Qwen3 model: queries and keys are normalised head by head before they are rotated."""
    spec = llama.describe({"head_dim": 128, **config, "mlp_bias": False})
    block = replace(spec.block, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
    return replace(spec, family=QWEN3.name, block=block, layers=_layers(config, spec))


def _layers(config: Mapping[str, Any], spec: DecoderSpec) -> tuple[LayerSpec, ...]:
    """Layers from `max_window_layers` on slide, if `use_sliding_window` is on; newer configs list their kinds."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", spec.num_layers)
    kinds = config.get("layer_types") or [_SLIDING if i >= first else "" for i in range(spec.num_layers)]
    return tuple(
        replace(layer, sliding_window=window if kind == _SLIDING else None)
        for layer, kind in zip(spec.layers, kinds, strict=True)
    )


QWEN2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    describe=describe_qwen2,
    example={
        **llama.EXAMPLE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
)

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    describe=describe_qwen3,
    example={
        **llama.EXAMPLE,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
)
