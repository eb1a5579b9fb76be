"""Our own layout, for what the others cannot hold: `version: awq2trt` of `quant_method: awq`, the natural order.

`codes`, `scales` [N, ceil(K/G)], and `zeros` of a scheme that has zero points; codes in reading order, INT4 as ONNX has
it, narrower ones in a stream of bits. The version is an invalid format to transformers before it loads a single weight,
and the tensors have none of the names that other readers look for. NumPy only.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts.awq_gemm import TOOL, read_scheme, write_scheme
from awq2trt.checkpoint.layouts.layout import BIAS, DAMAGED, Array, Layout, LinearToUnpack, Writer
from awq2trt.checkpoint.pack import pack_int4, pack_words, unpack_int4, unpack_words, words_of
from awq2trt.errors import CheckpointError
from awq2trt.scheme import QuantizedLinear

_NAME: Final = "awq2trt"

_WHOLE_BYTES_BITS: Final = 4
"""Codes of this width are packed as ONNX's INT4."""


def pack(linear: QuantizedLinear) -> dict[str, Array]:
    """Packs a linear, its bias aside."""
    bits = linear.scheme.bits
    tensors: dict[str, Array] = {"codes": _pack_codes(linear.codes, bits), "scales": linear.scales}
    if linear.zeros is not None:
        tensors["zeros"] = _pack_codes(linear.zeros, bits)
    return tensors


def unpack(packed: LinearToUnpack) -> QuantizedLinear:
    """Inverse of `pack`."""
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
    """Codes in reading order: ONNX's INT4 bytes, or a stream of narrower codes, low bits first."""
    if bits == _WHOLE_BYTES_BITS:
        return pack_int4(codes)
    return pack_words(codes.reshape(1, -1), bits).view(np.uint8).reshape(-1)


def _unpack_codes(packed: LinearToUnpack, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Inverse of `_pack_codes`: uint8 of shape `size`."""
    bits, count = packed.scheme.bits, size[0] * size[1]
    length = -(-count // 2) if bits == _WHOLE_BYTES_BITS else 4 * words_of(count, bits)
    stored = packed.expect(name, (length,), np.uint8)
    if bits == _WHOLE_BYTES_BITS:
        return unpack_int4(stored, size)
    words = np.ascontiguousarray(stored).view(np.int32).reshape(1, -1)
    return unpack_words(words, bits, count).reshape(size)


LAYOUT: Final = Layout(
    name=_NAME,
    tool=TOOL,
    required=("codes", "scales"),
    optional=("zeros",),
    read=read_scheme,
    unpack=unpack,
    writer=Writer(lambda spec, scheme: True, lambda scheme, head: write_scheme(scheme, _NAME, head), pack),
)
