"""How quantized checkpoints store a linear: one row per layout; `quantization_config` in config.json tells which it is.

In: tensors of one linear under their names in the checkpoint. Out: a `QuantizedLinear`, bit for bit; and back for the
layouts that we write. A new layout is one file here and one row in `LAYOUTS`. It needs only NumPy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from awq2trt.checkpoint.layouts import auto_round, awq_gemm, awq_gemv, compressed, gptq, natural
from awq2trt.checkpoint.layouts.layout import (
    BIAS,
    DAMAGED,
    QUANTIZE_AGAIN,
    Array,
    Layout,
    LinearToUnpack,
    ModelSchemes,
    StoredFormat,
    Tensors,
)
from awq2trt.errors import CheckpointError, UnsupportedError, UsageError
from awq2trt.foreign_files import reading
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import QUANTIZATION_KEY
from awq2trt.models.sources.eight_bit import EightBits
from awq2trt.scheme import SCALE_DTYPES, QuantizedLinear, QuantScheme

__all__ = [
    "LAYOUTS",
    "Layout",
    "ModelSchemes",
    "StoredFormat",
    "choose_layout",
    "pack_linear",
    "read_format",
    "unpack_linear",
]

LAYOUTS: Final[tuple[Layout, ...]] = (
    awq_gemm.LAYOUT,
    compressed.LAYOUT,
    gptq.FIRST_VERSION,
    gptq.SECOND_VERSION,
    natural.LAYOUT,
    awq_gemv.GEMV,
    awq_gemv.GEMV_FAST,
    *auto_round.LAYOUTS,
)
"""All layouts. Those that we write are in order of how many other tools read them."""


def read_format(config: Mapping[str, Any], *, where: str) -> StoredFormat:
    """Interprets `quantization_config`.

    Args:
        config: config.json.
        where: The file, for errors.

    Raises:
        CheckpointError: There is no such key, or parts of it are missing.
        UnsupportedError: It describes a layout, a version or a width that is not supported.
    """
    eight_bits = EightBits.of(config, where)
    where = f"{where}: {QUANTIZATION_KEY}"
    found = config.get(QUANTIZATION_KEY)
    if not isinstance(found, dict):
        raise CheckpointError(
            "the checkpoint is not quantized.", where=where, fix="quantize it first: awq2trt quantize MODEL -o DIR"
        )
    if eight_bits is not None:
        raise UnsupportedError(
            "the linears of its blocks have 8 bits; only 4 bits or fewer can be exported.",
            where=where,
            fix="quantize the checkpoint: awq2trt quantize DIR -o DIR, or build.",
        )
    try:
        with reading("a supported quantization", where, fix=QUANTIZE_AGAIN):
            layout = _layout_of(found, where)
            scheme = QuantScheme(*layout.read(found, where)).for_blocks()
            of_head = layout.read_head(found, where)
            return StoredFormat(layout, scheme, scheme if of_head is None else QuantScheme(*of_head))
    except UsageError as error:
        raise UnsupportedError(error.what, where=where, fix=QUANTIZE_AGAIN) from error


def _layout_of(found: Mapping[str, Any], where: str) -> Layout:
    name = str(found.get("quant_method")).rpartition("/")[2]  # AutoRound's first versions wrote intel/auto-round
    candidates = [layout for layout in LAYOUTS if layout.tool.name == name]
    if not candidates:
        known = ", ".join(dict.fromkeys(layout.tool.name for layout in LAYOUTS))
        raise UnsupportedError(f"quant_method: expected {known}, got {name!r}.", where=where, fix=QUANTIZE_AGAIN)
    tool = candidates[0].tool
    version, names = tool.version(found), [layout.name for layout in candidates]
    if version not in names:
        raise UnsupportedError(
            f"{tool.version_key}: expected {' or '.join(names)}, got {version}.", where=where, fix=QUANTIZE_AGAIN
        )
    return candidates[names.index(version)]


def choose_layout(spec: DecoderSpec, schemes: ModelSchemes) -> Layout:
    """Returns the layout for a model: among those that can hold all of it, the one that most tools read."""
    return next(layout for layout in LAYOUTS if layout.writer is not None and layout.writer.holds(spec, schemes))


def pack_linear(name: str, linear: QuantizedLinear, layout: Layout) -> dict[str, Array]:
    """Returns one linear's tensors as the checkpoint stores them, by full name; we must be able to write `layout`."""
    tensors = layout.written.pack(linear)
    if linear.bias is not None:
        tensors[BIAS] = linear.bias
    return {f"{name}.{kind}": value for kind, value in tensors.items()}


def require_kinds(layout: Layout, found: Collection[str], *, where: str) -> None:
    """Refuses a linear that lacks a tensor.

    Args:
        layout: Layout of the checkpoint.
        found: Names of the linear's tensors, relative to its own.
        where: Name of the linear, for errors.

    Raises:
        CheckpointError: A tensor is missing.
    """
    missing = [name for name in layout.required if name not in found]
    if missing:
        what = f"missing {', '.join(missing)} in a linear of the layout {layout.name}."
        raise CheckpointError(what, where=where, fix=DAMAGED)


def unpack_linear(
    layout: Layout, tensors: Tensors, scheme: QuantScheme, shape: tuple[int, int], *, where: str
) -> QuantizedLinear:
    """Makes one linear from its tensors.

    Args:
        layout: Layout of the checkpoint.
        tensors: Its tensors, as far as the checkpoint has those in the layout's `tensor_names`.
        scheme: How it is quantized according to config.json.
        shape: N, K according to config.json.
        where: Name of the linear, for errors.

    Raises:
        CheckpointError: A tensor is missing, has a wrong shape or type, or is not finite.
        UnsupportedError: The tensors describe something that a `QuantizedLinear` cannot.
    """
    require_kinds(layout, tensors, where=where)
    packed = LinearToUnpack(tensors, scheme, shape, where)
    if BIAS in tensors:
        packed.expect(BIAS, (shape[0],))
    _require_floats(packed)
    with reading(f"a linear in the layout {layout.name}", where, fix=DAMAGED):
        linear = layout.unpack(packed)
    if not np.isfinite(linear.scales.astype(np.float32)).all():
        raise CheckpointError("some scales are NaN or infinite.", where=where, fix=DAMAGED)
    return linear


def _require_floats(packed: LinearToUnpack) -> None:
    """Refuses step sizes and biases that are not floating-point numbers, or have a type we do not compute with."""
    for name in ("scales", "weight_scale", "scaled_zeros", BIAS):
        if name in packed.tensors and packed.tensors[name].dtype.name not in SCALE_DTYPES:
            raise CheckpointError(
                f"{name}: expected {', '.join(SCALE_DTYPES)}, got {packed.tensors[name].dtype}.",
                where=packed.where,
                fix=DAMAGED,
            )
