"""Reads weights that a checkpoint stores in 8 bits: dequantizes them, so that they can be quantized again.

In: tensors of a linear as fp8 or int8 checkpoints have them. Out: its weight in fp32. It reads `quant_method: fp8`
(DeepSeek-V3, Qwen3-FP8: `weight_scale_inv` for blocks; others: one scale) and compressed-tensors' `float-quantized`,
`int-quantized`, `naive-quantized` and 8-bit `pack-quantized`. How they quantize activations does not matter here.

Source: transformers 5.24, `Fp8Dequantize`; compressed-tensors 0.20, `dequantize`. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import reading
from awq2trt.models.sources.base import QUANTIZATION_KEY

if TYPE_CHECKING:
    from awq2trt.models.sources.safetensors import SafetensorsFiles

_FP8: Final = "fp8"
_COMPRESSED: Final = "compressed-tensors"

_FORMATS: Final = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
"""compressed-tensors' formats: one number for each weight, or four bytes packed into an int32."""

_SCALES: Final = ("weight_scale", "weight_scale_inv")
"""Names of step sizes. The second is DeepSeek's; despite its name, it is not an inverse."""

_ZEROS: Final = "weight_zero_point"
_PACKED: Final = "weight_packed"
_SHAPE: Final = "weight_shape"

_OFFSET: Final = 128
"""What has to be subtracted from packed bytes to get codes."""

_BITS: Final = 8

_DAMAGED: Final = "the checkpoint is damaged; download it again."

_USE_PUBLISHED: Final = "use the config.json that the checkpoint was published with."

_USE_ANOTHER: Final = "quantize the model in fp16 or bf16 instead."


@dataclass(frozen=True)
class EightBits:
    """How a checkpoint stores weights in 8 bits.

    Attributes:
        block: Rows and columns of a weight that share a scale; None if each row or each weight has one scale.
    """

    block: tuple[int, int] | None

    @staticmethod
    def of(config: Mapping[str, Any], where: str) -> EightBits | None:
        """Reads config.json; returns None if weights are not quantized, or not to 8 bits.

        Args:
            config: config.json, as `read_config` returns it.
            where: Its path, for errors.

        Raises:
            CheckpointError: It says something else than such settings.
            UnsupportedError: The weights have 8 bits, in a form that is not supported.
        """
        found = config.get(QUANTIZATION_KEY)
        if not isinstance(found, dict):
            return None
        with reading("settings of a quantization", f"{where}: {QUANTIZATION_KEY}", fix=_USE_PUBLISHED):
            return EightBits._of_settings(found, where)

    @staticmethod
    def _of_settings(found: Mapping[str, Any], where: str) -> EightBits | None:
        if found.get("quant_method") == _FP8:
            return EightBits(_block(found.get("weight_block_size"), where))
        groups = found.get("config_groups")
        settings = list(groups.values()) if isinstance(groups, dict) else []
        weights = [group.get("weights") or {} for group in settings if isinstance(group, dict)]
        if found.get("quant_method") != _COMPRESSED or not weights:
            return None
        if any(each.get("num_bits") != _BITS for each in weights):
            return None
        stored = {str(group.get("format") or found.get("format")) for group in settings}
        structures = {_structure(each) for each in weights}
        if not stored <= {*_FORMATS} or found.get("transform_config") or len(structures) > 1:
            raise UnsupportedError(
                f"expected 8-bit weights in one of the formats {', '.join(_FORMATS)}, of one group size and without "
                f"transform_config, got {', '.join(sorted(stored))}.",
                where=f"{where}: {QUANTIZATION_KEY}",
                fix=_USE_ANOTHER,
            )
        return EightBits(_block(structures.pop(), where))

    def weight(self, tensors: SafetensorsFiles, name: str) -> NDArray[np.float32] | None:
        """Returns the weight of a linear that is stored in 8 bits; None if it is not.

        Args:
            tensors: Tensors of the model.
            name: Name of the weight, e.g. `model.layers.0.mlp.up_proj.weight`.

        Returns:
            float32 [N, K].

        Raises:
            CheckpointError: Scales or zero points do not fit the codes.
        """
        owner, scale = name.removesuffix(".weight"), scale_of(tensors, name)
        if scale is None:
            return None
        with reading("a weight of 8 bits", owner, fix=_DAMAGED):
            return self._dequantized(tensors, owner, scale)

    def _dequantized(self, tensors: SafetensorsFiles, owner: str, scale: str) -> NDArray[np.float32]:
        """float32 [N, K], out of the tensors of a linear."""
        codes = _codes(tensors, owner)
        zeros = f"{owner}.{_ZEROS}"
        if zeros in tensors:
            codes = codes - self._spread(_zero_points(tensors, zeros, codes.shape), codes.shape, zeros)
        weight: NDArray[np.float32] = codes * self._spread(tensors.tensor(scale), codes.shape, scale)
        return weight

    def _spread(self, values: NDArray[Any], shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
        """Spreads scales or zero points over the weights: float32 [N, K]."""
        wide = values.astype(np.float32)
        wide = wide[:, None] if wide.ndim == 1 and wide.size > 1 else wide.reshape(wide.shape or (1, 1))
        wide = wide.reshape(1, 1) if wide.size == 1 else wide
        lengths = [
            size if count == 1 else 1 if count == size else block
            for size, count, block in zip(shape, wide.shape, self.block or (0, 0), strict=False)
        ]
        fits = wide.ndim == len(shape) == 2 and all(
            length and -(-size // length) == count
            for size, count, length in zip(shape, wide.shape, lengths, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"expected scales for a weight {list(shape)}: one for all, one a row, or one for each block of "
                f"{list(self.block or shape)}; got {list(values.shape)}.",
                where=where,
                fix=_DAMAGED,
            )
        return np.asarray(
            wide[np.ix_(*(np.arange(size) // length for size, length in zip(shape, lengths, strict=True)))]
        )


def scale_of(tensors: SafetensorsFiles, name: str) -> str | None:
    """Returns the scales beside a weight; None if there are none."""
    owner = name.removesuffix(".weight")
    return next((f"{owner}.{kind}" for kind in _SCALES if owner != name and f"{owner}.{kind}" in tensors), None)


def shape_of(tensors: SafetensorsFiles, name: str) -> tuple[int, ...] | None:
    """Shape of a weight; for a packed one, a tensor with its two sizes is read. None if there is no such weight."""
    packed = name.removesuffix(".weight")
    if packed == name or f"{packed}.{_PACKED}" not in tensors:
        return tensors.shape(name)
    with reading("the shape of a packed weight", f"{packed}.{_SHAPE}", fix=_DAMAGED):
        return tuple(int(size) for size in tensors.tensor(f"{packed}.{_SHAPE}"))


def _structure(weights: Mapping[str, Any]) -> str | None:
    """Rows and columns of compressed-tensors' blocks or groups."""
    group = weights.get("group_size")
    if weights.get("strategy") == "group" and isinstance(group, int) and group > 0:
        return f"1x{group}"
    structure = weights.get("block_structure")
    return "x".join(map(str, structure)) if isinstance(structure, list | tuple) else structure


def _block(found: Any, where: str) -> tuple[int, int] | None:
    if found is None:
        return None
    parts = found.split("x") if isinstance(found, str) else found
    try:
        rows, columns = (int(part) for part in parts)
    except (TypeError, ValueError):
        rows = columns = 0
    if rows < 1 or columns < 1:
        raise CheckpointError(
            f"weight_block_size: expected two positive integers, got {found!r}.",
            where=f"{where}: {QUANTIZATION_KEY}",
            fix=_DAMAGED,
        )
    return rows, columns


def _codes(tensors: SafetensorsFiles, owner: str) -> NDArray[np.float32]:
    """Codes, or fp8 numbers, as float32 [N, K]."""
    packed = f"{owner}.{_PACKED}"
    if packed not in tensors:
        return tensors.tensor(f"{owner}.weight").astype(np.float32)
    rows, columns = (int(size) for size in tensors.tensor(f"{owner}.{_SHAPE}"))
    return _unpacked(tensors.tensor(packed), (rows, columns), packed)


def _zero_points(tensors: SafetensorsFiles, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zero points as float32; packed along the rows if the codes are packed."""
    stored = tensors.tensor(name)
    if stored.dtype != np.int32:
        return stored.astype(np.float32)
    groups = stored.shape[1]
    return _unpacked(np.ascontiguousarray(stored.T), (groups, shape[0]), name).T


def _unpacked(words: NDArray[Any], shape: tuple[int, int], where: str) -> NDArray[np.float32]:
    """int32 [rows, ceil(columns / 4)] -> float32 [rows, columns]."""
    rows, columns = shape
    if words.dtype != np.int32 or words.shape != (rows, -(-columns // 4)):
        raise CheckpointError(
            f"expected int32 {[rows, -(-columns // 4)]}, got {words.dtype} {list(words.shape)}.",
            where=where,
            fix=_DAMAGED,
        )
    stored = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)[:, :columns]
    return stored.astype(np.float32) - _OFFSET
