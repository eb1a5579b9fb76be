"""Reads keys of config.json, and checks each of them.

In: config.json. Out: one value, or an error that names the key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from awq2trt.errors import UnsupportedError

SILU: Final = "silu"
GELU: Final = "gelu"
GELU_TANH: Final = "gelu_tanh"
RELU: Final = "relu"

FULL: Final = "full_attention"
SLIDING: Final = "sliding_attention"
"""Kinds of attention in `layer_types`."""

_ACTIVATIONS: Final = {
    "silu": SILU,
    "swish": SILU,
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "relu": RELU,
}
"""Maps transformers' names (`ACT2FN`) to ours."""


PUBLISHED: Final = "use the config.json that the model was published with."
"""The fix for a key whose value no published model has."""

MOST_LAYERS: Final = 4096
"""A limit on layers: ten times the deepest published model."""

_LARGEST_SIZE: Final = 1 << 24
"""A limit on channels, tokens and positions: ten times the longest context on the market (10 million tokens)."""


def config_value(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Returns a required key of config.json after checking its type."""
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UnsupportedError(f"{key}: expected {kind.__name__}, got {value!r}.", where="config.json", fix=PUBLISHED)
    return value


def config_part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the part of config.json about one model; empty if it is left out.

    Raises:
        UnsupportedError: The value is not an object.
    """
    part: Mapping[str, Any] = {} if config.get(key) is None else config_value(config, key, dict)
    return part


def config_size(
    config: Mapping[str, Any], key: str, default: int | None = None, *, largest: int = _LARGEST_SIZE
) -> int:
    """Returns a size: a positive number that is not absurdly large.

    Args:
        config: config.json.
        key: Which key.
        default: The value of a missing or null key; None if the key is required.
        largest: The largest value that is accepted.

    Raises:
        UnsupportedError: The value is not such a number.
    """
    value = config.get(key)
    if value is None and default is not None:
        return default
    size: int = config_value(config, key, int)
    if not 0 < size <= largest:
        raise UnsupportedError(
            f"{key}: expected a number from 1 to {largest}, got {size}.", where="config.json", fix=PUBLISHED
        )
    return size


def config_number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Returns a positive number, or `default` if the key is missing or null.

    Raises:
        UnsupportedError: The value is not such a number, or it is missing and there is no default.
    """
    value = config.get(key)
    if value is None and default is not None:
        return float(default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UnsupportedError(f"{key}: expected a positive number, got {value!r}.", where="config.json", fix=PUBLISHED)
    return float(value)


def config_flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Returns true or false, or `default` if the key is missing or null.

    Raises:
        UnsupportedError: The value is neither.
    """
    value = config.get(key)
    if value is None:
        return default
    return bool(config_value(config, key, bool))


def config_activation(config: Mapping[str, Any], key: str, default: str, known: Collection[str]) -> str:
    """Returns the activation function that config.json names, if it is one of `known`."""
    found = config.get(key) or default
    activation = _ACTIVATIONS.get(found, "")
    if activation not in known:
        raise UnsupportedError(
            f"{key}: expected {' or '.join(known)}, got {found!r}.",
            where="config.json",
            fix="use a model of a supported family, see README.",
        )
    return activation


def refuse_unless(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a model whose config.json asks for something that the description cannot express.

    Args:
        config: config.json.
        expected: The only value of each key that can be described; a missing or null key counts as that value.

    Raises:
        UnsupportedError: A key has another value.
    """
    for key, value in expected.items():
        found = config.get(key)
        if found is not None and found != value:
            raise UnsupportedError(
                f"{key}: expected {value!r}, got {found!r}.",
                where="config.json",
                fix="this variant is not supported; CONTRIBUTING.md, 'A new model family', shows how to add it.",
            )


def config_layer_kinds(config: Mapping[str, Any], count: int, default: Sequence[str]) -> Sequence[str]:
    """Returns the kind of attention of every layer, `FULL` or `SLIDING`.

    Args:
        config: config.json, perhaps with `layer_types`.
        count: Number of layers.
        default: The kinds if config.json does not list them.

    Raises:
        UnsupportedError: The list has a wrong length, or an unknown kind.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != count:
        got = f"{len(kinds)} of them" if isinstance(kinds, list) else repr(kinds)
        raise UnsupportedError(
            f"layer_types: expected one for each of num_hidden_layers {count}, got {got}.",
            where="config.json",
            fix=PUBLISHED,
        )
    unknown = [kind for kind in kinds if kind not in (FULL, SLIDING)]
    if unknown:
        raise UnsupportedError(
            f"layer_types: expected {FULL} or {SLIDING}, got {unknown[0]!r}.", where="config.json", fix=PUBLISHED
        )
    return kinds


def config_heads(config: Mapping[str, Any], key: str, hidden_size: int) -> tuple[int, int]:
    """Returns the number of attention heads and of channels in each, if they share hidden_size completely.

    Raises:
        UnsupportedError: The heads cannot share the channels evenly.
    """
    heads = config_size(config, key)
    if hidden_size % heads:
        raise UnsupportedError(
            f"{key}: expected a divisor of hidden_size {hidden_size}, got {heads}.", where="config.json", fix=PUBLISHED
        )
    return heads, hidden_size // heads


def under_own_names(config: Mapping[str, Any], aliases: Mapping[str, str]) -> Mapping[str, Any]:
    """Renames the keys that the class knows under other names (`attribute_map`) to those names.

    Args:
        config: config.json.
        aliases: The class's own name for each common name.

    Raises:
        UnsupportedError: Both names are present and contradict each other.
    """
    found = dict(config)
    for alias, own in aliases.items():
        if config.get(alias) is not None:
            refuse_unless(config, {own: config[alias]})
            found[own] = config[alias]
    return found
