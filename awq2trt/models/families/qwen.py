"""Qwen2, Qwen2.5 and Qwen3: Llama's block with biases on q, k and v, or with norms of queries and keys.

Source: `Qwen2ForCausalLM` and `Qwen3ForCausalLM` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.models.families import llama
from awq2trt.models.families.config_keys import (
    FULL,
    SILU,
    SLIDING,
    config_activation,
    config_flag,
    config_layer_kinds,
    config_size,
)
from awq2trt.models.families.description import DecoderSpec, Family

_QWEN2_KEYS: Final = llama.ClassKeys(max_positions=32768, num_kv_heads=32)

_QWEN3_KEYS: Final = llama.ClassKeys(max_positions=32768, num_kv_heads=32, head_dim=128, attention_bias=True)

_WINDOW: Final = 4096
_FIRST_SLIDING_LAYER: Final = 28
"""Defaults of `sliding_window` and `max_window_layers`."""


def describe_qwen2(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Qwen2 or Qwen2.5 model: q, k and v have biases, but o has none."""
    config_activation(config, "hidden_act", "silu", (SILU,))
    spec = llama.llama_like(config, _QWEN2_KEYS, QWEN2.name)
    return _with_windows(config, replace(spec, biased=frozenset(spec.block.attention_inputs)))


def describe_qwen3(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Qwen3 model: queries and keys are normalised head by head before they are rotated."""
    config_activation(config, "hidden_act", "silu", (SILU,))
    spec = llama.llama_like(config, _QWEN3_KEYS, QWEN3.name)
    block = replace(spec.block, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
    return _with_windows(config, replace(spec, block=block))


def _with_windows(config: Mapping[str, Any], spec: DecoderSpec) -> DecoderSpec:
    """Gives layers from `max_window_layers` on a window if `use_sliding_window` is on; newer configs list kinds."""
    slides = config_flag(config, "use_sliding_window", False)
    window = llama.config_window({"sliding_window": _WINDOW, **config}) if slides else None
    first = config.get("max_window_layers")
    if first != 0:
        first = config_size(config, "max_window_layers", _FIRST_SLIDING_LAYER)
    default = [SLIDING if window is not None and layer >= first else FULL for layer in range(spec.num_layers)]
    return llama.with_windows(spec, window, config_layer_kinds(config, spec.num_layers, default))


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
