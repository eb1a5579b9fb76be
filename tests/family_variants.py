"""Tiny configs of every family: each one's example, and variants that the example does not show."""

from __future__ import annotations

from typing import Any

from awq2trt.models.families import FAMILIES

_FALCON = next(family.example for family in FAMILIES if family.name == "falcon")
_NEOX = next(family.example for family in FAMILIES if family.name == "gpt_neox")
_MPT = next(family.example for family in FAMILIES if family.name == "mpt")

MODELS: dict[str, dict[str, Any]] = {family.name: dict(family.example) for family in FAMILIES} | {
    "falcon-40b": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-11b": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon-rw": {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "gpt_neox-sequential": {**_NEOX, "use_parallel_residual": False, "attention_bias": False},
    "mpt-unclipped": {**_MPT, "n_heads": 4, "attn_config": {"softmax_scale": 0.2}},
}
