"""compressed-tensors' `pack-quantized` layout, as llm-compressor and we write it.

`weight_packed` int32 [N, K b/32], `weight_scale` [N, K/G], `weight_shape` [2], and `weight_zero_point` int32
[N b/32, K/G] of a scheme that has zero points. Its codes are signed and stored offset by half their range, which makes
them our unsigned ones. NumPy only.

Config keys: https://huggingface.co/docs/transformers/quantization/compressed_tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from awq2trt.checkpoint.layouts.layout import (
    BIAS,
    DAMAGED,
    QUANTIZE_AGAIN,
    Array,
    Layout,
    LinearToUnpack,
    QuantizationConfig,
    Tool,
    Writer,
    config_integer,
    has_whole_groups,
)
from awq2trt.checkpoint.pack import pack_words, unpack_words, words_of
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.models.families import DecoderSpec
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

_NAME: Final = "pack-quantized"

_ZEROS: Final = "weight_zero_point"
_GROUP_OF_CHANNEL: Final = "weight_g_idx"


def pack(linear: QuantizedLinear) -> dict[str, Array]:
    """Packs a linear, its bias aside."""
    bits = linear.scheme.bits
    tensors: dict[str, Array] = {
        "weight_packed": pack_words(linear.codes, bits),
        "weight_scale": linear.scales,
        "weight_shape": np.asarray(linear.codes.shape, np.int64),
    }
    if linear.zeros is not None:
        tensors[_ZEROS] = np.ascontiguousarray(pack_words(linear.zeros.T, bits).T)
    return tensors


def unpack(packed: LinearToUnpack) -> QuantizedLinear:
    """Inverse of `pack`."""
    (rows, columns), scheme = packed.shape, packed.scheme
    stored_shape = [int(length) for length in packed.expect("weight_shape", (2,))]
    if stored_shape != [rows, columns]:
        raise CheckpointError(
            f"weight_shape: expected {[rows, columns]}, got {stored_shape}.", where=packed.where, fix=DAMAGED
        )
    packed.refuse_shorter_group()
    words = packed.expect("weight_packed", (rows, words_of(columns, scheme.bits)), np.int32)
    scales = packed.expect("weight_scale", (rows, packed.groups))
    if scheme.zero_point:
        packed.require(_ZEROS, "that is not symmetric")
    zeros = _unpack_zeros(packed) if _ZEROS in packed.tensors else None
    if zeros is not None and not scheme.zero_point and (zeros != scheme.symmetric_zero).any():
        raise CheckpointError(
            f"the config says symmetric: true, but {_ZEROS} holds values other than 0.",
            where=packed.where,
            fix="set symmetric: false in config.json's quantization_config.",
        )
    order = packed.input_order(_GROUP_OF_CHANNEL)
    codes = unpack_words(words, scheme.bits, columns)
    return QuantizedLinear(
        codes=codes if order is None else codes[:, order],
        scales=scales,
        zeros=zeros if scheme.zero_point else None,
        scheme=scheme,
        bias=packed.tensors.get(BIAS),
        input_order=order,
    )


def _unpack_zeros(packed: LinearToUnpack) -> Array:
    """Zero points uint8 [N, K/G]."""
    rows, bits = packed.shape[0], packed.scheme.bits
    words = packed.expect(_ZEROS, (words_of(rows, bits), packed.groups), np.int32)
    return np.ascontiguousarray(unpack_words(np.ascontiguousarray(words.T), bits, rows).T)


def _only_group(found: QuantizationConfig) -> Mapping[str, Any]:
    """The settings of all linears; empty where there are none, or several."""
    groups = found.get("config_groups")
    only = list(groups.values()) if isinstance(groups, dict) else []
    return only[0] if len(only) == 1 and isinstance(only[0], dict) else {}


def _version(found: QuantizationConfig) -> str:
    return str(_only_group(found).get("format") or found.get("format")).lower()


def _read(found: QuantizationConfig, where: str) -> tuple[int, int, bool]:
    group = _only_group(found)
    if not group:
        count = len(found.get("config_groups") or ())
        raise UnsupportedError(
            f"config_groups: expected one for all linears, got {count}.", where=where, fix=QUANTIZE_AGAIN
        )
    if found.get("transform_config"):
        raise UnsupportedError(
            "transform_config: weights that were rotated are not read.", where=where, fix=QUANTIZE_AGAIN
        )
    weights = group.get("weights") or {}
    wanted = {"type": "int", "dynamic": False}
    if group.get("input_activations") or any(weights.get(key, value) != value for key, value in wanted.items()):
        raise UnsupportedError(
            f"expected integer weights and no quantized activations, got weights {weights} and activations "
            f"{group.get('input_activations')}.",
            where=where,
            fix=QUANTIZE_AGAIN,
        )
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise UnsupportedError(f"strategy: expected group or channel, got {strategy}.", where=where, fix=QUANTIZE_AGAIN)
    group_size = WHOLE_ROW if strategy == "channel" else config_integer(weights, where, "group_size")
    return config_integer(weights, where, "num_bits"), group_size, not weights.get("symmetric", True)


def _write(scheme: QuantScheme, head: str) -> dict[str, Any]:
    whole_row = scheme.group_size == WHOLE_ROW
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": not scheme.zero_point,
        "strategy": "channel" if whole_row else "group",
        "group_size": None if whole_row else scheme.group_size,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": LAYOUT.tool.name,
        "format": _NAME,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [head],
    }


def _holds(spec: DecoderSpec, scheme: QuantScheme) -> bool:
    """Any width without a shorter last group, unless an activation function has divisors, which only AutoAWQ knows."""
    return spec.block.activation is None and has_whole_groups(spec, scheme)


LAYOUT: Final = Layout(
    name=_NAME,
    tool=Tool("compressed-tensors", "format", _version),
    required=("weight_packed", "weight_scale", "weight_shape"),
    optional=(_ZEROS, _GROUP_OF_CHANNEL),
    read=_read,
    unpack=unpack,
    writer=Writer(_holds, _write, pack),
    group_of_channel=_GROUP_OF_CHANNEL,
)
