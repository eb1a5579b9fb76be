"""GPTQ's layouts, as AutoGPTQ and GPTQModel write them; we only read them.

`qweight` int32 [K b/32, N], `qzeros` int32 [K/G, N b/32], `scales` [K/G, N], `g_idx` [K], the group of each input
channel, which act-order chooses. The first version (`checkpoint_format: gptq`) stores zero points minus one; the second
stores them as they are. With `sym: true` all of them mean the middle code. It needs only NumPy.

Config keys: https://huggingface.co/docs/transformers/quantization/gptq.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.layouts.layout import (
    BIAS,
    QUANTIZE_AGAIN,
    Layout,
    LinearToUnpack,
    QuantizationConfig,
    SchemeNumbers,
    Tool,
    config_integer,
)
from awq2trt.checkpoint.pack import unpack_words, words_of
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.scheme import QuantizedLinear

GROUP_OF_CHANNEL: Final = "g_idx"

_LEFT_OUT: Final = "-:"
"""Prefix of patterns in `dynamic` whose linears are not quantized."""

_FIRST: Final = "gptq"
_SECOND: Final = "gptq_v2"


def unpack(packed: LinearToUnpack, *, less_one: bool) -> QuantizedLinear:
    """Unpacks a linear of either version.

    Args:
        packed: Its tensors.
        less_one: Whether zero points are stored minus one.
    """
    (rows, columns), scheme, bits = packed.shape, packed.scheme, packed.scheme.bits
    packed.refuse_shorter_group()
    qweight = packed.expect("qweight", (words_of(columns, bits), rows), np.int32)
    qzeros = packed.expect("qzeros", (packed.groups, words_of(rows, bits)), np.int32)
    scales = packed.expect("scales", (packed.groups, rows))
    order = packed.input_order(GROUP_OF_CHANNEL)
    stored = unpack_words(qzeros, bits, rows)  # [K/G, N]
    if not scheme.zero_point:
        _require_symmetric(stored, packed)
    zeros = _plus_one(stored, packed) if less_one and scheme.zero_point else stored
    codes = unpack_words(np.ascontiguousarray(qweight.T), bits, columns)
    return QuantizedLinear(
        codes=codes if order is None else codes[:, order],
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(zeros.T) if scheme.zero_point else None,
        scheme=scheme,
        bias=packed.tensors.get(BIAS),
        input_order=order,
    )


def _require_symmetric(zeros: NDArray[np.uint8], packed: LinearToUnpack) -> None:
    """Refuses zero points that contradict `sym: true`.

    All of them are 2^(b-1) then. Tools disagree on whether the first version stores that or one less, whatever
    `checkpoint_format` says, and vLLM ignores the stored values: both are accepted.
    """
    middle = packed.scheme.symmetric_zero
    found = np.unique(zeros)
    if found.tolist() not in ([middle - 1], [middle]):
        raise CheckpointError(
            f"config.json says sym: true, so that qzeros must all be {middle - 1} or {middle}; they hold "
            f"{found.size} values, {found[0]} to {found[-1]}.",
            where=packed.where,
            fix="set sym: false in config.json if the model was quantized with zero points, or " + QUANTIZE_AGAIN,
        )


def _plus_one(zeros: NDArray[np.uint8], packed: LinearToUnpack) -> NDArray[np.uint8]:
    levels = packed.scheme.levels
    if (zeros == levels - 1).any():
        raise UnsupportedError(
            f"qzeros hold {levels - 1}, which stands for a zero point of {levels} to some readers of "
            "GPTQ's first version and for 0 to others.",
            where=packed.where,
            fix=f"convert the checkpoint to {_SECOND} with the tool that made it, or " + QUANTIZE_AGAIN,
        )
    return zeros + np.uint8(1)


def _version(found: QuantizationConfig) -> str:
    return str(found.get("checkpoint_format") or found.get("format") or _FIRST).lower()


def _read(found: QuantizationConfig, where: str) -> SchemeNumbers:
    own = [pattern for pattern in found.get("dynamic") or () if not pattern.startswith(_LEFT_OUT)]
    if own:
        raise UnsupportedError(
            f"dynamic: layers with settings of their own ({own[0]}) are not supported.", where=where, fix=QUANTIZE_AGAIN
        )
    return config_integer(found, where, "bits"), config_integer(found, where, "group_size"), not found.get("sym")


_TOOL: Final = Tool("gptq", "checkpoint_format", _version)

FIRST_VERSION: Final = Layout(
    name=_FIRST,
    tool=_TOOL,
    required=("qweight", "qzeros", "scales"),
    optional=(GROUP_OF_CHANNEL,),
    read=_read,
    unpack=partial(unpack, less_one=True),
    group_of_channel=GROUP_OF_CHANNEL,
)
SECOND_VERSION: Final = Layout(
    name=_SECOND,
    tool=_TOOL,
    required=FIRST_VERSION.required,
    optional=FIRST_VERSION.optional,
    read=_read,
    unpack=partial(unpack, less_one=False),
    group_of_channel=GROUP_OF_CHANNEL,
)
