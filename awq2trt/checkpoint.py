"""Quantized checkpoints: AutoAWQ's GEMM layout where it can hold the model, our own layout where it cannot.

In: packed linears and plain tensors. Out: a directory that `transformers` and vLLM read (AutoAWQ, `version: gemm`),
or one that they refuse. AutoAWQ's layout has no shorter last group and no N that is not a multiple of 8; such a
model is written with `version: awq2trt` and natural-order tensors (`codes`, `scales`, `zeros`) instead, which
transformers rejects as an invalid format before it loads a single weight, and which hold none of the names other
readers look for. NumPy only.

AutoAWQ's config keys: https://huggingface.co/docs/transformers/quantization/awq (`bits`, `group_size`; llm-awq's own
`w_bit`, `q_group_size` are read too).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.families import DecoderSpec, FusedLinear, describe_model
from awq2trt.pack import AWQ_COLUMNS_PER_WORD, pack_awq_gemm, pack_int4, unpack_awq_gemm, unpack_int4
from awq2trt.scheme import WHOLE_ROW, QuantizedLinear, QuantScheme
from awq2trt.source import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Array,
    ModelSource,
    SafetensorsFiles,
    copy_tokenizer,
    read_config,
    refuse_remote_code,
)

GEMM: Final = "gemm"
NATURAL: Final = "awq2trt"
"""Values of `quantization_config.version`: AutoAWQ's layout, and ours."""

STORED_BITS: Final = (4,)
"""Widths of a code that both layouts hold: they pack two codes to a byte, or eight to a 32-bit word."""

SHARD_BYTES: Final = 1 << 30
"""Largest weight file: what the writer holds in memory at once."""

FLOAT16: Final = "float16"
BFLOAT16: Final = "bfloat16"
"""Values of config.json's `torch_dtype`, and NumPy's names of the types (bfloat16 by ml_dtypes)."""

_FP16_LARGEST: Final = 65504.0
_FP16_SHARE: Final = 0.5
"""How much of fp16's range calibration may fill: other texts than it saw may go further."""

_NOT_KEPT: Final = ("torch_dtype", "dtype", "_name_or_path", "auto_map")
"""Keys of the original's config.json that are not the quantized model's: its Python code does not come along."""

_METADATA: Final = {"format": "pt"}
"""transformers refuses safetensors files without it."""


class QuantizedCheckpoint(ModelSource):
    """A quantized checkpoint on disk, ours or any AutoAWQ GEMM one.

    As a `ModelSource` it hands out dequantized weights; `linear` hands out the codes.

    Attributes:
        scheme: How its linears are quantized.
        layout: `GEMM` or `NATURAL`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = str(directory)
        self.config = read_config(directory)
        refuse_remote_code(self.config, directory)
        self.layout, self.scheme = _read_quantization_config(self.config, directory)
        self._tensors = SafetensorsFiles.in_directory(directory)
        self.spec = describe_model(self.config, [*self._tensors], quantized=True)
        spec, layers = self.spec, range(self.spec.num_layers)
        self._stored = {spec.prefix(i) + name: shape for i in layers for name, shape in spec.stored_linears().items()}
        self._fused = {
            spec.prefix(i) + part: (spec.prefix(i) + fused.stored, fused, fused.parts.index(part))
            for i in layers
            for fused in spec.fused
            for part in fused.parts
        }
        self._last: tuple[str, QuantizedLinear] | None = None  # the fused linear read last, wanted again for each part

    @property
    def files(self) -> tuple[Path, ...]:
        return self._tensors.files

    def linear(self, name: str) -> QuantizedLinear:
        """The quantized linear `name`, e.g. `model.layers.0.self_attn.q_proj`; a part of a fused one by itself.

        Raises:
            CheckpointError: It is missing, or its tensors do not fit config.json.
        """
        if name not in self._fused:
            return self._stored_linear(name)
        stored, fused, index = self._fused[name]
        if self._last is None or self._last[0] != stored:
            self._last = (stored, self._stored_linear(stored))
        rows = [self.spec.linear_shape(part)[0] for part in fused.parts]
        return _split_linear(self._last[1], fused, rows)[index]

    def _stored_linear(self, name: str) -> QuantizedLinear:
        """A quantized linear as the checkpoint has it, verified."""
        read = self._read_gemm if self.layout == GEMM else self._read_natural
        linear = read(name)
        expected = self._stored[name]
        if (linear.out_features, linear.in_features) != expected:
            raise CheckpointError(
                f"expected N, K = {list(expected)}, got {[linear.out_features, linear.in_features]}.",
                where=f"{self.directory}: {name}",
                fix="config.json and the weights do not belong together; download or quantize again.",
            )
        if not np.isfinite(linear.scales).all():
            raise CheckpointError(
                "scales are NaN or infinite.", where=f"{self.directory}: {name}", fix="quantize the model again."
            )
        return linear

    def tensor(self, name: str) -> Array:
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and owner in self._stored:
            return self._stored_linear(owner).dequantize()
        return self._tensors.tensor(name)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.directory, directory)

    def _read_gemm(self, name: str) -> QuantizedLinear:
        present = [kind for kind in ("qweight", "qzeros", "scales", "bias") if f"{name}.{kind}" in self._tensors]
        tensors = {kind: self._tensors.tensor(f"{name}.{kind}") for kind in present}
        return unpack_awq_gemm(tensors, self.scheme, where=f"{self.directory}: {name}")

    def _read_natural(self, name: str) -> QuantizedLinear:
        rows, columns = self._stored[name]
        groups = self.scheme.groups(columns)
        codes = self._packed(f"{name}.codes", (rows, columns))
        scales = self._tensors.tensor(f"{name}.scales")
        if scales.shape != (rows, groups) or scales.dtype != np.float16:
            raise CheckpointError(
                f"expected float16 [{rows}, {groups}], got {scales.dtype} {list(scales.shape)}.",
                where=f"{self.directory}: {name}.scales",
                fix="quantize the model again.",
            )
        return QuantizedLinear(
            codes=codes,
            scales=scales,
            zeros=self._packed(f"{name}.zeros", (rows, groups)) if self.scheme.zero_point else None,
            scheme=self.scheme,
            bias=self._tensors.tensor(f"{name}.bias") if f"{name}.bias" in self._tensors else None,
        )

    def _packed(self, name: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Unpacks a natural-order INT4 tensor, its size verified."""
        packed = self._tensors.tensor(name)
        expected = -(-shape[0] * shape[1] // 2)
        if packed.dtype != np.uint8 or packed.shape != (expected,):
            raise CheckpointError(
                f"expected uint8 [{expected}] for {list(shape)} codes, got {packed.dtype} {list(packed.shape)}.",
                where=f"{self.directory}: {name}",
                fix="quantize the model again.",
            )
        return unpack_int4(packed, shape)


def choose_layout(spec: DecoderSpec, scheme: QuantScheme) -> str:
    """`GEMM` if AutoAWQ's layout can hold every linear of the model, else `NATURAL`.

    Raises:
        UnsupportedError: No layout holds codes of this width.
    """
    if scheme.bits not in STORED_BITS:
        raise UnsupportedError(
            f"checkpoints of {scheme.bits}-bit codes are not written yet.", where="--bits", fix="use --bits 4."
        )
    shapes = spec.stored_linears().values()
    fits = all(
        columns % scheme.group_of(columns) == 0
        and (scheme.group_size == WHOLE_ROW or columns >= scheme.group_size)
        and rows % AWQ_COLUMNS_PER_WORD == 0
        for rows, columns in shapes
    )
    return GEMM if fits else NATURAL


def pack_linear(name: str, linear: QuantizedLinear, layout: str) -> dict[str, Array]:
    """Tensors of one linear as the checkpoint stores them, by full name."""
    if layout == GEMM:
        tensors = pack_awq_gemm(linear)
    else:
        tensors = {"codes": pack_int4(linear.codes), "scales": linear.scales}
        if linear.zeros is not None:
            tensors["zeros"] = pack_int4(linear.zeros)
        if linear.bias is not None:
            tensors["bias"] = linear.bias
    return {f"{name}.{kind}": value for kind, value in tensors.items()}


def fuse_linears(spec: DecoderSpec, linears: Mapping[str, QuantizedLinear]) -> dict[str, QuantizedLinear]:
    """A block's linears by the names of the checkpoint: rows of fused ones put back together, codes untouched."""
    found = dict(linears)
    for fused in spec.fused:
        parts = [found.pop(name) for name in fused.parts]
        found[fused.stored] = QuantizedLinear(
            codes=fused.fuse([part.codes for part in parts]),
            scales=fused.fuse([part.scales for part in parts]),
            zeros=_fused_or_none(fused, [part.zeros for part in parts]),
            scheme=parts[0].scheme,
            bias=_fused_or_none(fused, [part.bias for part in parts]),
        )
    return found


def _split_linear(linear: QuantizedLinear, fused: FusedLinear, rows: Sequence[int]) -> list[QuantizedLinear]:
    """Inverse of `fuse_linears` for one: groups run along K, so rows can be taken apart as they are."""
    parts = [
        [None] * len(rows) if value is None else fused.split(value, rows)
        for value in (linear.codes, linear.scales, linear.zeros, linear.bias)
    ]
    return [
        QuantizedLinear(codes, scales, zeros, linear.scheme, bias)
        for codes, scales, zeros, bias in zip(*parts, strict=True)
    ]


def _fused_or_none(fused: FusedLinear, parts: Sequence[Array | None]) -> Array | None:
    found = [part for part in parts if part is not None]
    return fused.fuse(found) if found else None


def storage_dtype(largest: float) -> str:
    """`FLOAT16`, or `BFLOAT16` for a model whose activations or weights reach a magnitude that needs its range."""
    return FLOAT16 if largest <= _FP16_LARGEST * _FP16_SHARE else BFLOAT16


def compact(value: Array, *, exact: bool) -> Array:
    """A small tensor in fp16, or in fp32 where fp16 cannot hold it or rounding would matter.

    Args:
        value: Weight or bias of a norm, or divisors of an activation function.
        exact: Rounding would matter.
    """
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    return value.astype(np.float32) if exact or not np.isfinite(half).all() else half


def for_dtype(name: str, value: Array, *, spec: DecoderSpec, dtype: str) -> Array:
    """A block's tensor as a checkpoint of `dtype` has it: with bf16, step sizes are rounded to what bf16 holds.

    The exported model's step sizes then are the checkpoint's, bit for bit. Their file type stays fp16, which is all
    that readers of AutoAWQ's layout know.

    Args:
        name: Full name of the tensor.
        value: The tensor.
        spec: The model.
        dtype: `FLOAT16` or `BFLOAT16`.
    """
    owner, _, kind = name.rpartition(".")
    if dtype == FLOAT16 or kind != "scales" or not any(owner.endswith(linear) for linear in spec.stored_linears()):
        return value
    return value.astype(np.dtype(BFLOAT16)).astype(np.float16)


def quantized_config(
    config: Mapping[str, Any], scheme: QuantScheme, layout: str, head: str, dtype: str = FLOAT16
) -> dict[str, Any]:
    """config.json of the quantized model: the original's, with `quantization_config` and its dtype.

    Args:
        config: The original's config.json.
        scheme: How the linears are quantized.
        layout: `GEMM` or `NATURAL`.
        head: Name of the head, which is not quantized.
        dtype: Of activations: `FLOAT16` or `BFLOAT16`.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    return {
        **kept,
        "torch_dtype": dtype,
        "quantization_config": {
            "quant_method": "awq",
            "version": layout,
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            # AutoAWQ's layout always stores zero points; a symmetric scheme writes the constant 8.
            "zero_point": True if layout == GEMM else scheme.zero_point,
            "symmetric": not scheme.zero_point,
            "modules_to_not_convert": [head],
        },
    }


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Writes one safetensors file whole: to a temporary name first, then renamed."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, partial, metadata=_METADATA)
    partial.chmod(0o644)  # safetensors creates files that only their owner can read
    partial.replace(path)


Convert = Callable[[str, Array], Array]
"""Full name and tensor -> the tensor as it is written."""


def merge_shards(
    sources: Iterable[Path], outer: Mapping[str, Array], directory: Path, *, convert: Convert = lambda _, value: value
) -> tuple[Path, ...]:
    """Merges finished block files and the outer tensors into shards of at most `SHARD_BYTES`.

    Args:
        sources: safetensors files of the blocks, in order.
        outer: Tensors outside the blocks, by full name.
        directory: Where the shards and their index go.
        convert: Applied to the blocks' tensors; must not change their size.

    Returns:
        The files written: `model.safetensors`, or shards `model-0000x-of-0000y.safetensors` and the index.
    """
    groups = list(_grouped_by_size(_all_tensor_sizes(sources, outer)))
    if len(groups) == 1:
        write_tensors(directory / SINGLE_FILE, _load(groups[0], outer, convert))
        return (directory / SINGLE_FILE,)
    weight_map: dict[str, str] = {}
    total = 0
    written = []
    for number, group in enumerate(groups, start=1):
        path = directory / f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = _load(group, outer, convert)
        write_tensors(path, tensors)
        weight_map.update(dict.fromkeys(tensors, path.name))
        total += sum(value.nbytes for value in tensors.values())
        written.append(path)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return (*written, directory / INDEX_FILE)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_Entry = tuple[str, Path | None, int]
"""A tensor's name, the file that holds it (None: an outer tensor), its bytes."""


def _all_tensor_sizes(sources: Iterable[Path], outer: Mapping[str, Array]) -> Iterator[_Entry]:
    for name, value in outer.items():
        yield name, None, value.nbytes
    for path in sources:
        for name, nbytes in _sizes(path).items():
            yield name, path, nbytes


def _sizes(path: Path) -> dict[str, int]:
    """Bytes of every tensor of a safetensors file, from its header (8-byte length, then JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _grouped_by_size(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    group: list[_Entry] = []
    used = 0
    for entry in entries:
        if group and used + entry[2] > SHARD_BYTES:
            yield group
            group, used = [], 0
        group.append(entry)
        used += entry[2]
    yield group


def _load(group: Iterable[_Entry], outer: Mapping[str, Array], convert: Convert) -> dict[str, Array]:
    opened: dict[Path, SafetensorsFiles] = {}
    tensors: dict[str, Array] = {}
    for name, path, _ in group:
        if path is None:
            tensors[name] = outer[name]
            continue
        if path not in opened:
            opened[path] = SafetensorsFiles.of_file(path)
        tensors[name] = convert(name, opened[path].tensor(name))
    return tensors


def _read_quantization_config(config: Mapping[str, Any], directory: Path) -> tuple[str, QuantScheme]:
    """Layout and scheme from `quantization_config`.

    Raises:
        CheckpointError: There is none.
        UnsupportedError: It describes something other than 4-bit AWQ in a layout we read.
    """
    where = f"{directory / CONFIG_FILE}: quantization_config"
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        raise CheckpointError(
            "the checkpoint is not quantized.",
            where=where,
            fix=f"quantize it first: awq2trt quantize {directory} -o DIR",
        )
    method, version = found.get("quant_method"), str(found.get("version", GEMM)).lower()
    if method != "awq" or version not in (GEMM, NATURAL):
        raise UnsupportedError(
            f"expected quant_method awq, version {GEMM}; got {method}, version {version}.",
            where=where,
            fix="quantize the original model with awq2trt.",
        )
    bits = found.get("bits", found.get("w_bit"))
    group_size = found.get("group_size", found.get("q_group_size"))
    if not isinstance(bits, int) or not isinstance(group_size, int):
        raise CheckpointError(
            f"expected integers for bits and group_size, got {bits!r} and {group_size!r}.", where=where
        )
    if bits not in STORED_BITS:
        raise UnsupportedError(
            f"expected 4 bits, got {bits}.", where=where, fix="quantize the original model with --bits 4."
        )
    zero_point = bool(found.get("zero_point", True)) and not found.get("symmetric", False)
    return version, QuantScheme(bits=bits, group_size=group_size, zero_point=zero_point)
