"""Our own layout, for models that the others cannot hold: `version: awq2trt` of `quant_method: awq`.

`codes`, `scales` [N, ceil(K/G)], and `zeros` if the scheme has zero points. Codes are in reading order: INT4 as in
ONNX, narrower ones in a stream of bits, 8-bit ones one per byte. transformers refuses the version before it loads a
single weight, and no tensor has a name that other readers look for. It needs only NumPy.

This is the only layout in which a head that is also the embedding can be quantized: its tensors then have the
embedding's name, and the config has the head's scheme under `head`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts.awq_gemm import TOOL, read_scheme, write_scheme
from awq2trt.checkpoint.layouts.layout import (
    BIAS,
    DAMAGED,
    Array,
    Layout,
    LinearToUnpack,
    ModelSchemes,
    QuantizationConfig,
    SchemeNumbers,
    Writer,
)
from awq2trt.checkpoint.pack import pack_int4, pack_words, unpack_int4, unpack_words, words_of
from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear

_NAME: Final = "awq2trt"

_INT4_BITS: Final = 4
"""Codes of this width are packed like ONNX's INT4."""

_BYTE_BITS: Final = 8

_HEAD: Final = "head"
"""Key of the head's scheme in the config."""


def pack(linear: QuantizedLinear) -> dict[str, Array]:
    """Packs a linear without its bias."""
    bits = linear.scheme.bits
    tensors: dict[str, Array] = {"codes": _pack_codes(linear.codes, bits), "scales": linear.scales}
    if linear.zeros is not None:
        tensors["zeros"] = _pack_codes(linear.zeros, bits)
    return tensors


def unpack(packed: LinearToUnpack) -> QuantizedLinear:
    """The inverse of `pack`."""
    scheme, groups = packed.scheme, (packed.shape[0], packed.groups)
    scales = packed.expect("scales", groups)
    if scheme.zero_point:
        packed.require("zeros", "with zero points")
    elif "zeros" in packed.tensors:
        raise CheckpointError(
            "the config says zero_point: false, but there are zeros.", where=packed.where, fix=DAMAGED
        )
    return QuantizedLinear(
        codes=_unpack_codes(packed, "codes", packed.shape),
        scales=scales,
        zeros=_unpack_codes(packed, "zeros", groups) if scheme.zero_point else None,
        scheme=scheme,
        bias=packed.tensors.get(BIAS),
    )


def _pack_codes(codes: NDArray[np.uint8], bits: int) -> Array:
    """Packs codes in reading order: ONNX's INT4 bytes, bytes, or a stream of narrower codes, low bits first."""
    if bits == _INT4_BITS:
        return pack_int4(codes)
    if bits == _BYTE_BITS:
        return codes.reshape(-1)
    return pack_words(codes.reshape(1, -1), bits).view(np.uint8).reshape(-1)


def _unpack_codes(packed: LinearToUnpack, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of `_pack_codes`: returns uint8 of shape `size`."""
    bits, count = packed.scheme.bits, size[0] * size[1]
    whole_bytes = bits in (_INT4_BITS, _BYTE_BITS)
    length = -(-count * bits // 8) if whole_bytes else 4 * words_of(count, bits)
    stored = packed.expect(name, (length,), np.uint8)
    if bits == _INT4_BITS:
        return unpack_int4(stored, size)
    if bits == _BYTE_BITS:
        return stored.reshape(size)
    words = np.ascontiguousarray(stored).view(np.int32).reshape(1, -1)
    return unpack_words(words, bits, count).reshape(size)


def _write(schemes: ModelSchemes, head: str) -> dict[str, Any]:
    scheme = schemes.head
    if scheme is None:
        return write_scheme(schemes.blocks, _NAME, [head])
    written = {"bits": scheme.bits, "group_size": scheme.group_size, "zero_point": scheme.zero_point}
    return {**write_scheme(schemes.blocks, _NAME, []), _HEAD: written}


def _read_head(found: QuantizationConfig, where: str) -> SchemeNumbers | None:
    head = found.get(_HEAD)
    if head is None:
        return None
    if not isinstance(head, dict):
        raise CheckpointError(f"{_HEAD}: expected an object, got {head!r}.", where=where, fix=DAMAGED)
    return read_scheme(head, f"{where}: {_HEAD}")


LAYOUT: Final = Layout(
    name=_NAME,
    tool=TOOL,
    required=("codes", "scales"),
    optional=("zeros",),
    read=read_scheme,
    unpack=unpack,
    writer=Writer(lambda spec, schemes: True, _write, pack),
    read_head=_read_head,
)
