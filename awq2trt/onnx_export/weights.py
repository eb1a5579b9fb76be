"""The source of the graph's initializers, which returns them one by one, so that they can be streamed to disk.

In: nothing. Out: the protocol that `decoder_graph` asks and `model` answers.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.onnx_export.bodies import BodyVariant

INPUT_ORDER: Final = "input_order"
"""Suffix of the name of the initializer with the order of a linear's input channels."""

Order = NDArray[np.int64]
"""A changed order of channels, from act-order, which sorts them into groups."""


LinearInputs = tuple[BodyVariant, tuple[ir.Value, ...]]
"""The variant of a linear, and its initializers: codes, scales, then zeros and bias if the variant has them."""


class Weights(Protocol):
    """Returns initializers, each when the graph reaches it, so that they can be streamed to disk."""

    dtype: ir.DataType
    quantized_head: bool

    def linear(self, name: str, rows: Order | None = None) -> LinearInputs:
        """Initializers of a quantized linear, or of a quantized head or embedding.

        Args:
            name: Its full name.
            rows: The order of its output channels; None for the usual order.
        """

    def is_quantized(self, name: str) -> bool:
        """Whether a linear of a block is quantized."""

    def plain_linear(self, name: str, rows: Order | None = None) -> tuple[ir.Value, ...]:
        """Weight, and bias if there is one, of a linear that is not quantized; `rows` as for `linear`."""

    def input_order(self, name: str) -> Order | None:
        """The order of a linear's input channels; None for the usual order."""

    def order(self, name: str, value: Order) -> ir.Value:
        """Initializer of an order of channels."""

    def tensor(self, name: str) -> ir.Value:
        """Initializer of a plain tensor."""

    def has(self, name: str) -> bool:
        """Whether there is a plain tensor of this name."""

    def gain(self, name: str) -> ir.Value:
        """Initializer of a norm's factor: its weight, or 1 + weight, rounded after the sum."""

    def constant(self, name: str, value: NDArray[np.float32]) -> ir.Value:
        """Initializer of a tensor that the description defines."""
