"""Phi-3, Phi-3.5 mini and Phi-4: Llama's block with q, k and v fused, and gate and up.

Source: `Phi3ForCausalLM` of transformers. The 128k models scale their rotary embedding by LongRoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.models.families import llama
from awq2trt.models.families.config_keys import SILU, config_activation
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import FusedLinear
from awq2trt.models.families.rope import RopeKeys

_KEYS: Final = llama.ClassKeys(
    max_positions=4096,
    norm_eps=1e-5,
    rope=RopeKeys(
        whole_heads=False,
        default_original=4096,
        types=("default", "longrope"),
        aliases={"su": "longrope", "yarn": "longrope"},  # its name in the first Phi-3 checkpoints
    ),
)


def describe(config: Mapping[str, Any]) -> DecoderSpec:
    """Describes a Phi-3 model from its config.json.

    Raises:
        UnsupportedError: Its rotary embedding is scaled by another method than LongRoPE.
    """
    config_activation(config, "hidden_act", "silu", (SILU,))
    spec = llama.with_windows(llama.llama_like(config, _KEYS, FAMILY.name), llama.config_window(config))
    return replace(
        spec,
        fused=(
            FusedLinear("self_attn.qkv_proj", spec.block.attention_inputs),
            FusedLinear("mlp.gate_up_proj", spec.block.mlp_inputs),
        ),
    )


FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    describe=describe,
    example={
        **{key: value for key, value in llama.EXAMPLE.items() if key != "head_dim"},
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "sliding_window": 100,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
    },
    published_with_code=True,
)
