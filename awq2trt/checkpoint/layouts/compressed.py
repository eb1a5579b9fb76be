"""compressed-tensors' `pack-quantized` layout, as llm-compressor and we write it.

`weight_packed` int32 [N, K b/32], `weight_scale` [N, K/G], `weight_shape` [2], and `weight_zero_point` int32 [N b/32,
K/G] if the scheme has zero points. Its codes are signed and stored with half their range added, which makes them our
unsigned ones. It needs only NumPy.

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
    ModelSchemes,
    QuantizationConfig,
    SchemeNumbers,
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

_LINEARS: Final = "Linear"
"""The target of settings for all linears."""

_HEAD_TARGETS: Final = ("lm_head", "re:.*lm_head", "embed_out", "re:.*embed_out")
"""Targets that mean only a head, by its module or by a pattern."""

_ZEROS: Final = "weight_zero_point"
_GROUP_OF_CHANNEL: Final = "weight_g_idx"


def pack(linear: QuantizedLinear) -> dict[str, Array]:
    """Packs a linear without its bias."""
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
    """The inverse of `pack`."""
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
    """Unpacks zero points to uint8 [N, K/G]."""
    rows, bits = packed.shape[0], packed.scheme.bits
    words = packed.expect(_ZEROS, (words_of(rows, bits), packed.groups), np.int32)
    return np.ascontiguousarray(unpack_words(np.ascontiguousarray(words.T), bits, rows).T)


def _groups(found: QuantizationConfig, *, of_head: bool) -> list[Mapping[str, Any]]:
    """Returns the settings for the head alone, or all others."""
    groups = found.get("config_groups")
    every = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
    return [group for group in every if _is_of_head(group) == of_head]


def _is_of_head(group: Mapping[str, Any]) -> bool:
    targets = group.get("targets") or ()
    return bool(targets) and all(str(target).removesuffix("$") in _HEAD_TARGETS for target in targets)


def _version(found: QuantizationConfig) -> str:
    """Returns the format of the settings; several formats in one checkpoint count as an unknown format."""
    every = [*_groups(found, of_head=False), *_groups(found, of_head=True)]
    formats = {str(group.get("format") or found.get("format")).lower() for group in every}
    return " and ".join(sorted(formats)) or str(found.get("format")).lower()


def _read(found: QuantizationConfig, where: str) -> SchemeNumbers:
    groups = _groups(found, of_head=False)
    if len(groups) != 1:
        raise UnsupportedError(
            f"config_groups: expected one for all linears, and perhaps one for the head, got {len(groups)} that are "
            "not only for the head.",
            where=where,
            fix=QUANTIZE_AGAIN,
        )
    return _read_group(found, groups[0], where)


def _read_head(found: QuantizationConfig, where: str) -> SchemeNumbers | None:
    groups = _groups(found, of_head=True)
    return _read_group(found, groups[0], where) if groups else None


def _read_group(found: QuantizationConfig, group: Mapping[str, Any], where: str) -> SchemeNumbers:
    if found.get("transform_config"):
        raise UnsupportedError("transform_config: rotated weights are not supported.", where=where, fix=QUANTIZE_AGAIN)
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


def _write(schemes: ModelSchemes, head: str) -> dict[str, Any]:
    groups = {"group_0": _group(schemes.blocks, _LINEARS)}
    if schemes.head is not None:
        groups["group_1"] = _group(schemes.head, f"re:.*{head}")
    return {
        "quant_method": LAYOUT.tool.name,
        "format": _NAME,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [head] if schemes.head is None else [],
    }


def _group(scheme: QuantScheme, target: str) -> dict[str, Any]:
    whole_row = scheme.group_size == WHOLE_ROW
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": not scheme.zero_point,
        "strategy": "channel" if whole_row else "group",
        "group_size": None if whole_row else scheme.group_size,
        "dynamic": False,
    }
    return {"targets": [target], "weights": weights, "input_activations": None, "output_activations": None}


def _holds(spec: DecoderSpec, schemes: ModelSchemes) -> bool:
    """Whether no group is shorter than the others, and a quantized head is not the embedding, too; any width will do.

    Activation functions must not have divisors, which only AutoAWQ supports.
    """
    one_copy = schemes.head is not None and spec.tie_embeddings  # an embedding's rows would be read from it
    return spec.block.activation is None and not one_copy and has_whole_groups(spec, schemes)


LAYOUT: Final = Layout(
    name=_NAME,
    tool=Tool("compressed-tensors", "format", _version),
    required=("weight_packed", "weight_scale", "weight_shape"),
    optional=(_ZEROS, _GROUP_OF_CHANNEL),
    read=_read,
    unpack=unpack,
    writer=Writer(_holds, _write, pack),
    group_of_channel=_GROUP_OF_CHANNEL,
    read_head=_read_head,
)
