"""Rotary frequencies as config.json asks for them.

The Llama 3 scaling is https://github.com/meta-llama/llama-models (`apply_scaling`); the key names are those of
transformers, which before version 5 writes `rope_theta` and `rope_scaling`, later `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.rotary import RopeSpec

DEFAULT_THETA: Final = 10000.0


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary parameters of a config.json, old keys or new, under their new names."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    for key in ("rope_theta", "partial_rotary_factor"):
        if found.get(key) is None and config.get(key) is not None:
            found[key] = config[key]
    return found


def rope_spec(parameters: Mapping[str, Any], head_dim: int) -> RopeSpec:
    """The rotary embedding of heads of `head_dim` channels.

    Args:
        parameters: `rope_theta`, `rope_type`, `partial_rotary_factor` and what the type needs.
        head_dim: Channels of a head.

    Raises:
        UnsupportedError: The scaling is none of default, linear and llama3.
    """
    theta = float(parameters.get("rope_theta") or DEFAULT_THETA)
    rotary_dim = int(head_dim * float(parameters.get("partial_rotary_factor") or 1.0))
    inv_freq = theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "linear":
        inv_freq = inv_freq / float(parameters["factor"])
    elif kind == "llama3":
        inv_freq = llama3_scaled(inv_freq, parameters)
    elif kind != "default":
        raise UnsupportedError(
            f"rope scaling: expected default, linear or llama3, got {kind!r}.",
            where="config.json",
            fix="a model with this scaling runs within its original context if you remove rope_scaling from "
            "config.json.",
        )
    return RopeSpec(tuple(inv_freq.tolist()))


def llama3_scaled(inv_freq: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.

    Args:
        inv_freq: Unscaled frequencies, float64 [head_dim / 2].
        scaling: `rope_parameters` of `rope_type` llama3.
    """
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * inv_freq / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: scale fully, 1: keep
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq
