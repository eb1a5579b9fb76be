"""Decoders with random weights, which `bench --shape` measures without a checkpoint of 16 GB.

In: a config.json. Out: the interface of a checkpoint that `onnx_export` reads; every tensor is drawn when it is needed.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.families import describe_model
from awq2trt.scheme import QuantizedLinear, QuantScheme

_STEP_BITS: Final = 4

_STEP: Final = 0.006
"""Step size of random weights, so small that products of normed rows stay far from fp16's limit."""

_EMBEDDED: Final = 0.04
"""Range of the entries of an embedding and a head."""


class RandomModel:
    """A quantized checkpoint of random weights, for `onnx_export`. The same name gives the same tensor.

    Args:
        config: Its config.json.
        scheme: Scheme of the linears of its blocks.
        head_scheme: Scheme of its head; None if it is not quantized.
    """

    def __init__(self, config: dict[str, Any], scheme: QuantScheme, head_scheme: QuantScheme | None = None) -> None:
        self.config = config
        self.spec = describe_model(config)
        self.scheme = scheme
        self.head_scheme = head_scheme

    def linear(self, name: str) -> QuantizedLinear:
        """Makes a linear with random codes, step sizes and zero points."""
        relative, random = _relative(name), _random(name)
        scheme, (rows, features) = self.scheme, (self.spec.vocab_size, self.spec.hidden_size)
        if name == self.spec.stored_head and self.head_scheme is not None:
            scheme = self.head_scheme
        else:
            rows, features = self.spec.linear_shape(relative)
        groups, middle = (rows, scheme.groups(features)), scheme.symmetric_zero
        codes = np.frombuffer(random.bytes(rows * features), np.uint8).reshape(rows, features)
        steps = _STEP * 2.0 ** -(scheme.bits - _STEP_BITS) * (0.5 + random.random(groups, np.float32))
        return QuantizedLinear(
            codes=codes & np.uint8(scheme.levels - 1),
            scales=steps.astype(np.float16),
            zeros=random.integers(0, 2 * middle, groups, np.uint8) if scheme.zero_point else None,
            scheme=scheme,
            bias=np.zeros(rows, np.float16) if self.spec.has_bias(relative) else None,
        )

    def is_quantized(self, name: str) -> bool:
        """Whether a linear is quantized: all are."""
        return True

    def input_order(self, name: str) -> None:
        """The order of a linear's input channels, which is the usual one."""

    def tensor(self, name: str) -> NDArray[np.generic]:
        """Makes ones for a norm, and small numbers for an embedding or a head."""
        shape = self.spec.outer_shapes().get(name) or self.spec.block_shapes()[_relative(name)]
        if len(shape) == 1:
            return np.ones(shape, np.float16)
        random = _random(name)
        rows = (_EMBEDDED * (random.random(shape[1], np.float32) - 0.5) for _ in range(shape[0]))
        return np.stack([row.astype(np.float16) for row in rows])

    def has(self, name: str) -> bool:
        """Whether the description has a plain tensor of this name; there are no divisors behind activations."""
        return name in self.spec.outer_shapes() or _relative(name) in self.spec.block_shapes()


def _relative(name: str) -> str:
    """The name within the block: what follows the block's number."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _random(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
