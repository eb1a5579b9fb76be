"""Rotary frequencies as config.json describes them: one function for each `rope_type` of transformers.

In: config.json, with old keys (`rope_theta`, `rope_scaling`) or those of transformers 5 (`rope_parameters`). Out: a
`RopeSpec`. The formulas are those of `ROPE_INIT_FUNCTIONS` (transformers, modeling_rope_utils.py), with the same
defaults and precedence of keys. Llama 3's scaling is from https://github.com/meta-llama/llama-models (`apply_scaling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import PUBLISHED, config_number, config_size
from awq2trt.models.families.rotary import GrowingBase, RopeSpec, SecondSet, plain_frequencies

DEFAULT_THETA: Final = 10000.0

_ORIGINAL: Final = "original_max_position_embeddings"


@dataclass(frozen=True)
class RopeKeys:
    """Where a model class finds its rotary parameters.

    Attributes:
        theta: Key of config.json for the base, if it is not among the parameters.
        partial: The same for the rotated share of a head's channels.
        whole_heads: Whether the class rotates complete heads and ignores that share.
        default_share: The share if nothing gives it.
        default_original: Default of `original_max_position_embeddings` in the class; None for a class that uses the
            value in the parameters.
        types: The types that the class supports; None for all.
        aliases: Types that the class treats as another type.
    """

    theta: str = "rope_theta"
    partial: str = "partial_rotary_factor"
    whole_heads: bool = True
    default_share: float = 1.0
    default_original: int | None = None
    types: tuple[str, ...] | None = None
    aliases: Mapping[str, str] | None = None


COMMON_KEYS: Final = RopeKeys()


def rope_parameters(config: Mapping[str, Any], keys: RopeKeys = COMMON_KEYS) -> dict[str, Any]:
    """Returns the rotary parameters of a config.json under their new names; `rope_type` is always among them.

    Raises:
        UnsupportedError: There is one set for each kind of layer, which the class does not read.
    """
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    nested = [key for key, value in found.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedError(
            f"rope_parameters: expected one set of parameters, got one for {', '.join(nested)}.",
            where="config.json",
            fix=PUBLISHED,
        )
    for key, outer in (("rope_theta", keys.theta), ("partial_rotary_factor", keys.partial)):
        if found.get(key) is None and config.get(outer) is not None:
            found[key] = config[outer]
    original = config.get(_ORIGINAL) or keys.default_original
    if original is not None:
        found[_ORIGINAL] = original
    kind = found.get("rope_type") or found.get("type") or "default"
    return {**found, "rope_type": (keys.aliases or {}).get(kind, kind)}


def rope_spec(
    parameters: Mapping[str, Any], head_dim: int, max_positions: int, keys: RopeKeys = COMMON_KEYS
) -> RopeSpec:
    """Describes the rotary embedding of heads of `head_dim` channels.

    Args:
        parameters: `rope_type`, `rope_theta`, `partial_rotary_factor` and what the type needs.
        head_dim: Channels of a head.
        max_positions: `max_position_embeddings`.
        keys: How the class reads them.

    Raises:
        UnsupportedError: The class does not support the type, or a parameter is missing or makes no sense.
    """
    kind = parameters.get("rope_type") or "default"
    known = [name for name in ("default", *_SCALINGS) if keys.types is None or name in keys.types]
    if kind not in known:
        raise UnsupportedError(
            f"rope_type: expected {', '.join(known)}, got {kind!r}.",
            where="config.json",
            fix="this scaling is not supported, and without it the model would be wrong.",
        )
    theta = config_number(parameters, "rope_theta", DEFAULT_THETA)
    plain = plain_frequencies(theta, _rotary_dim(parameters, head_dim, keys, kind))
    if kind == "default":
        return RopeSpec(tuple(plain.tolist()))
    given = {_ORIGINAL: max_positions, **parameters, "rope_theta": theta, "max_position_embeddings": max_positions}
    try:
        with np.errstate(all="ignore"):
            return _finite(_SCALINGS[kind](plain, given), 2 * max_positions)
    except ArithmeticError as error:  # also a logarithm of 0 or a division by 0
        raise UnsupportedError(
            f"rope_type {kind}: its parameters give no finite frequencies.", where="config.json", fix=PUBLISHED
        ) from error


def _finite(spec: RopeSpec, length: int) -> RopeSpec:
    """Returns the embedding, after checking that it is finite up to a sequence of `length` tokens."""
    numbers = [*spec.inv_freq, *spec.frequencies(length), spec.magnitude]
    if not np.isfinite(numbers).all():
        raise FloatingPointError
    return spec


def reach(parameters: Mapping[str, Any], max_positions: int) -> int:
    """The longest sequence that the scaling was made for, if config.json gives the length of the training before it."""
    kind, factor = parameters.get("rope_type"), parameters.get("factor")
    if kind in ("linear", "dynamic") and factor:
        return int(max_positions * factor)
    if kind == "yarn" and factor:
        return max(max_positions, int((parameters.get(_ORIGINAL) or max_positions) * factor))
    return max_positions


def _rotary_dim(parameters: Mapping[str, Any], head_dim: int, keys: RopeKeys, kind: str) -> int:
    """Number of rotated channels of a head."""
    share = config_number(parameters, "partial_rotary_factor", keys.default_share)
    if keys.whole_heads:
        if share != 1 and kind not in ("default", "proportional"):
            raise UnsupportedError(
                f"partial_rotary_factor: expected 1 for rope_type {kind}, got {share:g}.",
                where="config.json",
                fix="the model class rotates complete heads; " + PUBLISHED,
            )
        share = 1.0
    rotary_dim = int(head_dim * share)
    if rotary_dim < 2 or rotary_dim % 2 or rotary_dim > head_dim:
        raise UnsupportedError(
            f"rotary channels of a head: expected an even number from 2 to head_dim {head_dim}, got {rotary_dim} "
            f"(partial_rotary_factor {share:g}).",
            where="config.json",
            fix=PUBLISHED,
        )
    return rotary_dim


def _linear(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Divides positions by the factor (https://kaiokendev.github.io/til#extending-context-to-8k)."""
    return RopeSpec(tuple((plain / config_number(parameters, "factor")).tolist()))


def _proportional(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Divides the frequencies of the first share of the channel pairs by the factor; the others do not rotate."""
    turning = int(config_number(parameters, "partial_rotary_factor", 1.0) * 2 * len(plain) // 2)
    scaled = plain / config_number(parameters, "factor", 1.0)
    return RopeSpec(tuple(np.where(np.arange(len(plain)) < turning, scaled, 0.0).tolist()))


def _dynamic(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Enlarges the base with the length of sequences beyond `max_position_embeddings`."""
    if len(plain) < 2:
        raise UnsupportedError("rope_type dynamic: expected at least 4 rotary channels, got 2.", where="config.json")
    growing = GrowingBase(
        parameters["max_position_embeddings"], parameters["rope_theta"], config_number(parameters, "factor")
    )
    return RopeSpec(tuple(plain.tolist()), beyond=growing)


def _yarn(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Keeps fast channels, divides slow ones by the factor, with a ramp between (arXiv:2309.00071)."""
    original = config_number(parameters, _ORIGINAL)
    factor = config_number(parameters, "factor", parameters["max_position_embeddings"] / original)
    rotary_dim, theta = 2 * len(plain), parameters["rope_theta"]

    if theta <= 1:
        raise FloatingPointError

    def channel(turns: float) -> float:
        """The channel pair that turns this many times over the original length."""
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = channel(config_number(parameters, "beta_fast", 32.0))
    high = channel(config_number(parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    high += 0.001 if low == high else 0  # as in transformers: avoids a division by 0
    slow = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    frequencies = plain / factor * slow + plain * (1 - slow)
    return RopeSpec(tuple(frequencies.tolist()), magnitude=_yarn_magnitude(parameters, factor))


def _yarn_magnitude(parameters: Mapping[str, Any], factor: float) -> float:
    def softened(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    if parameters.get("attention_factor") is not None:
        return config_number(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return softened(config_number(parameters, "mscale")) / softened(config_number(parameters, "mscale_all_dim"))
    return softened(1)


def _longrope(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Divides every channel pair by its own divisor, one for short and one for long sequences (arXiv:2402.13753)."""
    original = config_size(parameters, _ORIGINAL)
    factor = config_number(parameters, "factor", parameters["max_position_embeddings"] / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (plain / _divisors(parameters, key, len(plain)) for key in ("short_factor", "long_factor"))
    return RopeSpec(
        tuple(short.tolist()),
        config_number(parameters, "attention_factor", default),
        SecondSet(original, tuple(long.tolist())),
    )


def _divisors(parameters: Mapping[str, Any], key: str, count: int) -> NDArray[np.float64]:
    values = parameters.get(key)
    numbers = isinstance(values, list) and all(isinstance(value, (int, float)) and value > 0 for value in values)
    if not numbers or len(values) != count:  # type: ignore[arg-type]
        got = f"{len(values)} values" if isinstance(values, list) else repr(values)
        raise UnsupportedError(
            f"{key}: expected {count} positive numbers, one for each pair of rotary channels, got {got}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return np.asarray(values, np.float64)


def _llama3(plain: NDArray[np.float64], parameters: Mapping[str, Any]) -> RopeSpec:
    """Llama 3.1's scaling."""
    return RopeSpec(tuple(llama3_scaled(plain, parameters).tolist()))


def llama3_scaled(inv_freq: NDArray[np.float64], scaling: Mapping[str, Any]) -> NDArray[np.float64]:
    """Divides long wavelengths by `factor` and keeps short ones, with a smooth ramp between (Llama 3.1).

    Args:
        inv_freq: The unscaled frequencies, float64 [head_dim / 2].
        scaling: `rope_parameters` of `rope_type` llama3.
    """
    factor = config_number(scaling, "factor")
    low, high = config_number(scaling, "low_freq_factor"), config_number(scaling, "high_freq_factor")
    turns = config_number(scaling, _ORIGINAL) * inv_freq / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0: scale fully, 1: keep
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


_Scaling = Callable[[NDArray[np.float64], Mapping[str, Any]], RopeSpec]

_SCALINGS: Final[Mapping[str, _Scaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
