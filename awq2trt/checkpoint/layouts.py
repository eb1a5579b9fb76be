"""How quantized checkpoints store a linear: five layouts, told apart by `quantization_config` in config.json.

In: tensors of one linear under their names in the checkpoint. Out: a `QuantizedLinear`, bit for bit; and back for the
layouts that we write. NumPy only. Shapes are of a linear [N, K] with groups of G along K, b bits a code:

| layout | tensors | written by |
|---|---|---|
| `gemm` | `qweight` [K, N/8], `qzeros` [K/G, N/8], `scales` [K/G, N] | AutoAWQ, llm-awq's converters, us |
| `pack-quantized` | `weight_packed` [N, K b/32], `weight_scale` [N, K/G], `weight_zero_point` [N b/32, K/G], \
`weight_shape` [2] | compressed-tensors (llm-compressor), us |
| `gptq`, `gptq_v2` | `qweight` [K b/32, N], `qzeros` [K/G, N b/32], `scales` [K/G, N], `g_idx` [K] | AutoGPTQ, \
GPTQModel |
| `awq2trt` | `codes`, `scales` [N, ceil(K/G)], `zeros`, in the natural order | us, for what the others cannot hold |

Config keys: https://huggingface.co/docs/transformers/quantization/awq, .../gptq, .../compressed_tensors. GPTQ's first
version stores zero points less one; the second, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.checkpoint.pack import (
    AWQ_COLUMNS_PER_WORD,
    pack_awq_gemm,
    pack_int4,
    pack_words,
    unpack_awq_gemm,
    unpack_int4,
    unpack_words,
    words_of,
)
from awq2trt.errors import CheckpointError, UnsupportedError, UsageError
from awq2trt.models.families import DecoderSpec
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme

Array = NDArray[Any]
Tensors = Mapping[str, Array]

GEMM: Final = "gemm"
NATURAL: Final = "awq2trt"
PACKED: Final = "pack-quantized"
GPTQ: Final = "gptq"
GPTQ_V2: Final = "gptq_v2"

_TENSORS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    GEMM: (("qweight", "qzeros", "scales"), ()),
    PACKED: (("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx")),
    GPTQ: (("qweight", "qzeros", "scales"), ("g_idx",)),
    GPTQ_V2: (("qweight", "qzeros", "scales"), ("g_idx",)),
    NATURAL: (("codes", "scales"), ("zeros",)),
}
"""By layout: tensors that every linear has, and those that some have. All may have a `bias`."""

_QUANTIZE_AGAIN: Final = "quantize the original model with awq2trt."
_DAMAGED: Final = "the checkpoint is damaged, or config.json is another model's; download both again."


@dataclass(frozen=True)
class StoredFormat:
    """What `quantization_config` says: a layout and how its codes were made."""

    layout: str
    scheme: QuantScheme

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Tensors that a linear may have, relative to its name."""
        required, optional = _TENSORS[self.layout]
        return (*required, *optional, "bias")


def read_format(config: Mapping[str, Any], *, where: str) -> StoredFormat:
    """What `quantization_config` describes.

    Args:
        config: config.json.
        where: The file, for errors.

    Raises:
        CheckpointError: There is none, or keys are missing.
        UnsupportedError: It describes a layout, a version or a width that is not read here.
    """
    where = f"{where}: quantization_config"
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        raise CheckpointError(
            "the checkpoint is not quantized.", where=where, fix="quantize it first: awq2trt quantize MODEL -o DIR"
        )
    method = found.get("quant_method")
    readers: dict[Any, Callable[[Mapping[str, Any], str], tuple[str, int, int, bool]]] = {
        "awq": _read_awq,
        "gptq": _read_gptq,
        "compressed-tensors": _read_compressed,
    }
    if method not in readers:
        raise UnsupportedError(
            f"quant_method: expected {', '.join(readers)}, got {method!r}.", where=where, fix=_QUANTIZE_AGAIN
        )
    layout, bits, group_size, zero_point = readers[method](found, where)
    try:
        return StoredFormat(layout, QuantScheme(bits=bits, group_size=group_size, zero_point=zero_point))
    except UsageError as error:
        raise UnsupportedError(error.what, where=where, fix=_QUANTIZE_AGAIN) from error


def _read_awq(found: Mapping[str, Any], where: str) -> tuple[str, int, int, bool]:
    version = str(found.get("version", GEMM)).lower()
    if version not in (GEMM, NATURAL):
        raise UnsupportedError(f"version: expected {GEMM}, got {version}.", where=where, fix=_QUANTIZE_AGAIN)
    bits = _integer(found, where, "bits", "w_bit")
    if version == GEMM and bits != 4:
        raise UnsupportedError(f"bits: expected 4, got {bits}.", where=where, fix=_QUANTIZE_AGAIN)
    zero_point = bool(found.get("zero_point", True)) and not found.get("symmetric", False)
    return version, bits, _integer(found, where, "group_size", "q_group_size"), zero_point


def _read_gptq(found: Mapping[str, Any], where: str) -> tuple[str, int, int, bool]:
    layout = str(found.get("checkpoint_format") or found.get("format") or GPTQ).lower()
    if layout not in (GPTQ, GPTQ_V2):
        raise UnsupportedError(
            f"checkpoint_format: expected {GPTQ} or {GPTQ_V2}, got {layout}.", where=where, fix=_QUANTIZE_AGAIN
        )
    if found.get("dynamic"):
        raise UnsupportedError(
            "dynamic: layers with settings of their own are not read.", where=where, fix=_QUANTIZE_AGAIN
        )
    # A symmetric GPTQ checkpoint stores its zero points all the same: they are read rather than believed.
    return layout, _integer(found, where, "bits"), _integer(found, where, "group_size"), True


def _read_compressed(found: Mapping[str, Any], where: str) -> tuple[str, int, int, bool]:
    groups = found.get("config_groups") or {}
    if len(groups) != 1 or not isinstance(group := next(iter(groups.values())), dict):
        raise UnsupportedError(
            f"config_groups: expected one for all linears, got {len(groups)}.", where=where, fix=_QUANTIZE_AGAIN
        )
    layout = group.get("format") or found.get("format")
    weights = group.get("weights") or {}
    wanted = {"type": "int", "dynamic": False}
    if layout != PACKED or group.get("input_activations") or any(weights.get(k, v) != v for k, v in wanted.items()):
        raise UnsupportedError(
            f"expected format {PACKED} with integer weights and no quantized activations, got {layout}.",
            where=where,
            fix=_QUANTIZE_AGAIN,
        )
    strategy = weights.get("strategy")
    if strategy not in ("group", "channel"):
        raise UnsupportedError(
            f"strategy: expected group or channel, got {strategy}.", where=where, fix=_QUANTIZE_AGAIN
        )
    group_size = WHOLE_ROW if strategy == "channel" else _integer(weights, where, "group_size")
    return PACKED, _integer(weights, where, "num_bits"), group_size, not weights.get("symmetric", True)


def _integer(found: Mapping[str, Any], where: str, *keys: str) -> int:
    value = next((found[key] for key in keys if found.get(key) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{keys[0]}: expected an integer, got {value!r}.", where=where, fix=_DAMAGED)
    return value


def quantization_config(scheme: QuantScheme, layout: str, head: str) -> dict[str, Any]:
    """`quantization_config` of a checkpoint that we write.

    Args:
        scheme: How the linears are quantized.
        layout: `GEMM`, `PACKED` or `NATURAL`.
        head: Name of the head, which is not quantized.
    """
    if layout == PACKED:
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
            "quant_method": "compressed-tensors",
            "format": PACKED,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [head],
        }
    return {
        "quant_method": "awq",
        "version": layout,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": scheme.zero_point,
        "symmetric": not scheme.zero_point,
        "modules_to_not_convert": [head],
    }


def choose_layout(spec: DecoderSpec, scheme: QuantScheme) -> str:
    """The layout for a model: the one that most readers know among those that hold all of it.

    AutoAWQ's holds INT4 with zero points where N is a multiple of 8, compressed-tensors' any width; neither has a
    shorter last group. An activation function with divisors of its own is known to readers of AutoAWQ's alone.
    """
    shapes = spec.stored_linears().values()
    whole = all(
        columns % scheme.group_of(columns) == 0 and (scheme.group_size == WHOLE_ROW or columns >= scheme.group_size)
        for _, columns in shapes
    )
    if whole and scheme.bits == 4 and scheme.zero_point and all(rows % AWQ_COLUMNS_PER_WORD == 0 for rows, _ in shapes):
        return GEMM
    return PACKED if whole and spec.block.activation is None else NATURAL


def pack_linear(name: str, linear: QuantizedLinear, layout: str) -> dict[str, Array]:
    """Tensors of one linear as the checkpoint stores them, by full name."""
    if layout == GEMM:
        tensors = pack_awq_gemm(linear)
    elif layout == PACKED:
        tensors = _pack_compressed(linear)
    else:
        tensors = {"codes": _pack_natural(linear.codes, linear.scheme.bits), "scales": linear.scales}
        if linear.zeros is not None:
            tensors["zeros"] = _pack_natural(linear.zeros, linear.scheme.bits)
        if linear.bias is not None:
            tensors["bias"] = linear.bias
    return {f"{name}.{kind}": value for kind, value in tensors.items()}


def unpack_linear(stored: StoredFormat, tensors: Tensors, shape: tuple[int, int], *, where: str) -> QuantizedLinear:
    """One linear out of its tensors.

    Args:
        stored: What config.json says.
        tensors: Those of `stored.tensor_names` that the checkpoint has.
        shape: N, K as config.json has them.
        where: Name of the linear, for errors.

    Raises:
        CheckpointError: A tensor is missing, of another shape or type, or not finite.
        UnsupportedError: The tensors say something that a `QuantizedLinear` cannot.
    """
    missing = [name for name in _TENSORS[stored.layout][0] if name not in tensors]
    if missing:
        what = f"missing {', '.join(missing)} of a linear in the layout {stored.layout}."
        raise CheckpointError(what, where=where, fix=_DAMAGED)
    if "bias" in tensors:
        _expect(tensors["bias"], "bias", (shape[0],), where)
    if stored.layout == GEMM:
        linear = unpack_awq_gemm(dict(tensors), stored.scheme, where=where)
    elif stored.layout == PACKED:
        linear = _unpack_compressed(stored.scheme, tensors, shape, where)
    elif stored.layout == NATURAL:
        linear = _unpack_natural(stored.scheme, tensors, shape, where)
    else:
        linear = _unpack_gptq(stored, tensors, shape, where)
    if (linear.out_features, linear.in_features) != shape:
        raise CheckpointError(
            f"expected N, K = {list(shape)}, got {[linear.out_features, linear.in_features]}.",
            where=where,
            fix="config.json and the weights do not belong together; download or quantize again.",
        )
    if not np.isfinite(linear.scales.astype(np.float32)).all():
        raise CheckpointError("scales are NaN or infinite.", where=where, fix=_DAMAGED)
    return linear


def _pack_natural(codes: NDArray[np.uint8], bits: int) -> Array:
    """Codes in reading order: ONNX's INT4 bytes, or a stream of narrower codes, low bits first."""
    return pack_int4(codes) if bits == 4 else pack_words(codes.reshape(1, -1), bits).view(np.uint8).reshape(-1)


def _unpack_natural(scheme: QuantScheme, tensors: Tensors, shape: tuple[int, int], where: str) -> QuantizedLinear:
    groups = (shape[0], scheme.groups(shape[1]))
    _expect(tensors["scales"], "scales", groups, where)

    def unpacked(name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        count = size[0] * size[1]
        length = -(-count // 2) if scheme.bits == 4 else 4 * words_of(count, scheme.bits)
        packed = _expect(tensors[name], name, (length,), where, np.uint8)
        if scheme.bits == 4:
            return unpack_int4(packed, size)
        words = np.ascontiguousarray(packed).view(np.int32).reshape(1, -1)
        return unpack_words(words, scheme.bits, count).reshape(size)

    if scheme.zero_point and "zeros" not in tensors:
        raise CheckpointError("missing zeros of a linear with zero points.", where=where, fix=_DAMAGED)
    return QuantizedLinear(
        codes=unpacked("codes", shape),
        scales=tensors["scales"],
        zeros=unpacked("zeros", groups) if scheme.zero_point else None,
        scheme=scheme,
        bias=tensors.get("bias"),
    )


def _pack_compressed(linear: QuantizedLinear) -> dict[str, Array]:
    """compressed-tensors: signed codes, offset by half their range, which makes them our unsigned ones."""
    bits = linear.scheme.bits
    tensors: dict[str, Array] = {
        "weight_packed": pack_words(linear.codes, bits),
        "weight_scale": linear.scales,
        "weight_shape": np.asarray(linear.codes.shape, np.int64),
    }
    if linear.zeros is not None:
        tensors["weight_zero_point"] = np.ascontiguousarray(pack_words(linear.zeros.T, bits).T)
    if linear.bias is not None:
        tensors["bias"] = linear.bias
    return tensors


def _unpack_compressed(scheme: QuantScheme, tensors: Tensors, shape: tuple[int, int], where: str) -> QuantizedLinear:
    rows, columns = shape
    groups, bits = scheme.groups(columns), scheme.bits
    stored_shape = [int(length) for length in _expect(tensors["weight_shape"], "weight_shape", (2,), where)]
    if stored_shape != [rows, columns]:
        raise CheckpointError(
            f"weight_shape: expected {[rows, columns]}, got {stored_shape}.", where=where, fix=_DAMAGED
        )
    _expect_whole_groups(scheme, columns, where)
    words = _expect(tensors["weight_packed"], "weight_packed", (rows, words_of(columns, bits)), where, np.int32)
    scales = _expect(tensors["weight_scale"], "weight_scale", (rows, groups), where)
    zeros = None
    if scheme.zero_point:
        if "weight_zero_point" not in tensors:
            raise CheckpointError(
                "missing weight_zero_point of a linear that is not symmetric.", where=where, fix=_DAMAGED
            )
        size = (words_of(rows, bits), groups)
        packed = _expect(tensors["weight_zero_point"], "weight_zero_point", size, where, np.int32)
        zeros = np.ascontiguousarray(unpack_words(np.ascontiguousarray(packed.T), bits, rows).T)
    _refuse_reordering(tensors.get("weight_g_idx"), scheme, columns, where)
    return QuantizedLinear(unpack_words(words, bits, columns), scales, zeros, scheme, tensors.get("bias"))


def _unpack_gptq(stored: StoredFormat, tensors: Tensors, shape: tuple[int, int], where: str) -> QuantizedLinear:
    (rows, columns), scheme = shape, stored.scheme
    groups, bits = scheme.groups(columns), scheme.bits
    _expect_whole_groups(scheme, columns, where)
    qweight = _expect(tensors["qweight"], "qweight", (words_of(columns, bits), rows), where, np.int32)
    qzeros = _expect(tensors["qzeros"], "qzeros", (groups, words_of(rows, bits)), where, np.int32)
    scales = _expect(tensors["scales"], "scales", (groups, rows), where)
    _refuse_reordering(tensors.get("g_idx"), scheme, columns, where)
    zeros = unpack_words(qzeros, bits, rows)
    if stored.layout == GPTQ:
        if (zeros == scheme.levels - 1).any():
            raise UnsupportedError(
                f"qzeros hold {scheme.levels - 1}, which stands for a zero point of {scheme.levels} to some readers of "
                "GPTQ's first version and for 0 to others.",
                where=where,
                fix="convert the checkpoint to gptq_v2 with the tool that made it, or " + _QUANTIZE_AGAIN,
            )
        zeros = zeros + np.uint8(1)
    return QuantizedLinear(
        codes=unpack_words(np.ascontiguousarray(qweight.T), bits, columns),
        scales=np.ascontiguousarray(scales.T),
        zeros=np.ascontiguousarray(zeros.T),
        scheme=scheme,
        bias=tensors.get("bias"),
    )


def _expect(
    value: Array, name: str, shape: tuple[int, ...], where: str, dtype: type[np.generic] | None = None
) -> Array:
    """A tensor, its shape and type verified."""
    if value.shape != shape or (dtype is not None and value.dtype != dtype):
        kind = f"{np.dtype(dtype).name} " if dtype is not None else ""
        raise CheckpointError(
            f"{name}: expected {kind}{list(shape)}, got {value.dtype} {list(value.shape)}.", where=where, fix=_DAMAGED
        )
    return value


def _expect_whole_groups(scheme: QuantScheme, columns: int, where: str) -> None:
    if columns % scheme.group_of(columns):
        raise CheckpointError(f"groups of {scheme.group_size} do not divide K = {columns}.", where=where, fix=_DAMAGED)


def _refuse_reordering(group_of_channel: Array | None, scheme: QuantScheme, columns: int, where: str) -> None:
    """Refuses act-order, unless it left every channel in the group that its place says (static groups)."""
    if group_of_channel is None:
        return
    _expect(group_of_channel, "g_idx", (columns,), where)
    if not np.array_equal(group_of_channel, np.arange(columns) // scheme.group_of(columns)):
        raise UnsupportedError(
            "its input channels are ordered by activation (desc_act, actorder=group: g_idx is not in sequence).",
            where=where,
            fix="use a checkpoint made without act-order or with static groups, or " + _QUANTIZE_AGAIN,
        )
