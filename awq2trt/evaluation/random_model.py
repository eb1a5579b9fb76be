"""Decoders with random weights, which `bench --shape` measures without a checkpoint of 16 GB.

In: a config.json. Out: the interface of a checkpoint that `onnx_export` reads; every tensor is drawn when it is needed.
Codes and halves are random bits in the layout of the graph's tensors: drawing a model takes little longer than writing
it, and no two weights have the same bytes in memory.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.families import describe_model, describe_vision
from awq2trt.onnx_export.bodies import BodyVariant
from awq2trt.onnx_export.streamed_weights import PackedLinear
from awq2trt.scheme import QuantScheme

_STEP_BITS: Final = 4

_STEP: Final = 0.006
"""Step size of random weights, so small that products of normed rows stay far from fp16's limit."""

_SIGN_AND_MANTISSA: Final = np.uint16(0x83FF)
_EXPONENT: Final = np.uint16((15 - 7) << 10)
"""Bits of fp16 (IEEE 754 binary16): the exponent has a bias of 15 and lies above 10 bits of the mantissa."""

_BYTE_BITS: Final = 8
_WORD_BYTES: Final = 8


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
        self.vision = describe_vision(config)
        self.scheme = scheme
        self.head_scheme = head_scheme

    def linear(self, name: str) -> PackedLinear:
        """Makes a linear with random codes, step sizes and zero points."""
        relative, random = _relative(name), _random(name)
        scheme, shape = self.scheme, (self.spec.vocab_size, self.spec.hidden_size)
        if name == self.spec.stored_head and self.head_scheme is not None:
            scheme = self.head_scheme
        else:
            shape = self.spec.linear_shape(relative)
        rows, features = shape
        groups, group = (rows, scheme.groups(features)), scheme.group_of(features)
        steps = _STEP * 2.0 ** -(scheme.bits - _STEP_BITS) * (0.5 + random.random(groups, np.float32))
        bias = np.zeros(rows, np.float16) if self.spec.has_bias(relative) else None
        ragged = features if features % group else None
        return PackedLinear(
            variant=BodyVariant(scheme.bits, group, ragged, scheme.zero_point, bias is not None),
            shape=shape,
            codes=_packed_codes(random, shape, scheme.bits),
            scales=steps.astype(np.float16),
            zeros=_packed_codes(random, groups, scheme.bits) if scheme.zero_point else None,
            bias=bias,
        )

    def is_quantized(self, name: str) -> bool:
        """Whether a linear is quantized: all are."""
        return True

    def input_order(self, name: str) -> None:
        """The order of a linear's input channels, which is the usual one."""

    def tensor(self, name: str) -> NDArray[np.generic]:
        """Makes ones for a vector, as of a norm, and small numbers for an embedding or a head."""
        shape = self.spec.outer_shapes().get(name) or self.spec.block_shapes()[_relative(name)]
        return _plain(name, shape)

    @property
    def vision_linears(self) -> tuple[str, ...]:
        """Linears that it sees with and that are quantized: none are."""
        return ()

    def vision_tensors(self, without: Collection[str] = ()) -> dict[str, NDArray[np.generic]]:
        """Makes what it sees with, like `tensor`, except for some linears; nothing for a model of text."""
        shapes = {} if self.vision is None else self.vision.shapes()
        return {name: _plain(name, shape) for name, shape in shapes.items() if name.rpartition(".")[0] not in without}

    def has(self, name: str) -> bool:
        """Whether the description has a plain tensor of this name; there are no divisors behind activations."""
        return name in self.spec.outer_shapes() or _relative(name) in self.spec.block_shapes()


def small_numbers(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Draws fp16 numbers of either sign between 2^-7 and 2^-6: sign and mantissa are random bits."""
    bits = _random_bytes(random, np.dtype(np.float16).itemsize * math.prod(shape)).view(np.uint16)
    bits &= _SIGN_AND_MANTISSA
    bits |= _EXPONENT
    return bits.view(np.float16).reshape(shape)


def _plain(name: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Ones for a vector, and small numbers for a matrix."""
    return np.ones(shape, np.float16) if len(shape) == 1 else small_numbers(_random(name), shape)


def _packed_codes(random: np.random.Generator, shape: tuple[int, ...], bits: int) -> NDArray[np.uint8]:
    """Draws the bytes of a tensor of codes; a last nibble that belongs to none is 0."""
    count = math.prod(shape) * bits
    packed = _random_bytes(random, -(-count // _BYTE_BITS))
    if count % _BYTE_BITS:
        packed[-1] &= (1 << count % _BYTE_BITS) - 1
    return packed


def _random_bytes(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """Draws bytes eight at a time, many times as fast as `Generator.bytes` and `Generator.integers`."""
    words = random.bit_generator.random_raw(-(-count // _WORD_BYTES))
    return words.view(np.uint8)[:count]


def _relative(name: str) -> str:
    """The name within the block: what follows the block's number."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[-1]


def _random(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
