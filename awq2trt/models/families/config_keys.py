"""Keys of config.json, each checked where it is read.

In: config.json. Out: one value, or an error that names the key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError

SILU: Final = "silu"
GELU: Final = "gelu"
GELU_TANH: Final = "gelu_tanh"
RELU: Final = "relu"

_ACTIVATIONS: Final = {
    "silu": SILU,
    "swish": SILU,
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "relu": RELU,
}
"""transformers' names (`ACT2FN`) -> ours."""


def config_value(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """A required key of config.json, checked for its type."""
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UnsupportedError(
            f"{key}: expected {kind.__name__}, got {value!r}.",
            where="config.json",
            fix="use the config.json that the model was published with.",
        )
    return value


def config_activation(config: Mapping[str, Any], key: str, default: str, known: Collection[str]) -> str:
    """The activation function that config.json names, if it is one of `known`."""
    found = config.get(key) or default
    activation = _ACTIVATIONS.get(found, "")
    if activation not in known:
        raise UnsupportedError(
            f"{key}: expected {' or '.join(known)}, got {found!r}.",
            where="config.json",
            fix="see the families in README.",
        )
    return activation


def refuse_unless(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a model whose config.json asks for what the description cannot say.

    Args:
        config: config.json.
        expected: Key -> the one value that can be described; a key that is not there has it.

    Raises:
        UnsupportedError: A key has another value.
    """
    for key, value in expected.items():
        found = config.get(key, value)
        if found != value:
            raise UnsupportedError(
                f"{key}: expected {value!r}, got {found!r}.",
                where="config.json",
                fix="this variant of the family is not described; CONTRIBUTING.md, 'A new model family', shows how.",
            )
