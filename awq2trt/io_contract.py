"""What crosses the border of an exported decoder: names, types, shapes and meanings, declared once.

`export` writes graphs that keep to it, `run` and `build` read it, the manifest stores it as JSON, and
`plugins/FORMAT.md` (section "I/O contract") is its normative text. No dependency outside the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from awq2trt.errors import ArtifactError

MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "model.onnx.data"
ENGINE_FILE: Final = "model.engine"

INPUT_IDS: Final = "input_ids"
CACHE_POSITION: Final = "cache_position"
LOGITS: Final = "logits"
NEXT_TOKEN: Final = "next_token"

BATCH: Final = "batch"
SEQUENCE: Final = "sequence"
ROWS: Final = "rows"
"""Symbolic axes: sequences at once, new tokens of each, and logits of each (1, or `SEQUENCE` if all are asked for)."""

LAST_POSITION_NODE: Final = "last_position"
"""Name of the node that keeps the last position's hidden state; an executor that wants all logits bypasses it."""


@dataclass(frozen=True)
class TensorContract:
    """One input or output.

    Attributes:
        dtype: NumPy's name of the element type, `bfloat16` included.
        shape: A number for a fixed axis, a name for a dynamic one.
        meaning: One sentence.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str


@dataclass(frozen=True)
class IoContract:
    """Inputs and outputs of a decoder with a key-value cache of fixed capacity.

    Attributes:
        inputs: `input_ids`, `cache_position`, then `past_key_i`, `past_value_i` of every layer.
        outputs: `logits`, then `present_key_i`, `present_value_i` of every layer, each of which may be the same
            memory as its `past_` input.
        capacity: Positions that the cache holds: prompt and generated tokens together.
        sliding_window: Positions a query sees in every layer, itself included; None if one layer sees all before it.
    """

    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    capacity: int
    vocab_size: int
    num_layers: int
    sliding_window: int | None = None

    @property
    def cache_pairs(self) -> tuple[tuple[str, str], ...]:
        """(past, present) names that may share memory, layer by layer, key before value."""
        return tuple(zip(cache_names("past", self.num_layers), cache_names("present", self.num_layers), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            "inputs": [_tensor_to_json(tensor) for tensor in self.inputs],
            "outputs": [_tensor_to_json(tensor) for tensor in self.outputs],
            "capacity": self.capacity,
            "vocab_size": self.vocab_size,
            "num_layers": self.num_layers,
            "sliding_window": self.sliding_window,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> IoContract:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: A key is missing or of the wrong type.
        """
        try:
            return IoContract(
                inputs=tuple(_tensor_from_json(tensor) for tensor in value["inputs"]),
                outputs=tuple(_tensor_from_json(tensor) for tensor in value["outputs"]),
                capacity=int(value["capacity"]),
                vocab_size=int(value["vocab_size"]),
                num_layers=int(value["num_layers"]),
                sliding_window=None if value["sliding_window"] is None else int(value["sliding_window"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"not an I/O contract: {type(error).__name__}: {error}.",
                where="manifest.json: io",
                fix="export the model again.",
            ) from error


def cache_names(tense: str, num_layers: int) -> tuple[str, ...]:
    """Names of the cache tensors, `tense` being `past` (inputs) or `present` (outputs)."""
    return tuple(f"{tense}_{kind}_{layer}" for layer in range(num_layers) for kind in ("key", "value"))


def _tensor_to_json(tensor: TensorContract) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "meaning": tensor.meaning}


def _tensor_from_json(value: Mapping[str, Any]) -> TensorContract:
    return TensorContract(value["name"], value["dtype"], tuple(value["shape"]), value["meaning"])
