"""Quantized checkpoints: a directory of safetensors and a config.json, read and written.

In: packed linears and plain tensors. Out: a directory that `transformers` and vLLM read where one of their layouts can
hold the model (AutoAWQ's, compressed-tensors'), or one that they refuse: `version: awq2trt` is an invalid format to
transformers before it loads a single weight, and its tensors have none of the names other readers look for. The layouts
are in `awq2trt.checkpoint.layouts`. NumPy only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from awq2trt.checkpoint.layouts import quantization_config, read_format, unpack_linear
from awq2trt.models.families import DecoderSpec, FusedLinear, describe_model
from awq2trt.models.sources.base import CONFIG_FILE, Array, ModelSource, copy_tokenizer, read_config, refuse_remote_code
from awq2trt.models.sources.safetensors import INDEX_FILE, SINGLE_FILE, SafetensorsFiles
from awq2trt.scheme import QuantizedLinear, QuantScheme

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
    """A quantized checkpoint on disk, ours or another tool's.

    As a `ModelSource` it hands out dequantized weights; `linear` hands out the codes.

    Attributes:
        format: What its config.json says about layout and scheme.
        scheme: How its linears are quantized.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = str(directory)
        self.config = read_config(directory)
        refuse_remote_code(self.config, directory)
        self.format = read_format(self.config, where=str(directory / CONFIG_FILE))
        self.scheme = self.format.scheme
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
        return unpack_linear(
            self.format, self.stored_tensors(name), self._stored[name], where=f"{self.directory}: {name}"
        )

    @property
    def stored_names(self) -> tuple[str, ...]:
        """The quantized linears as the checkpoint has them, fused ones as one."""
        return tuple(self._stored)

    def stored_tensors(self, name: str) -> dict[str, Array]:
        """The tensors of a quantized linear as they are in the file, relative to its name."""
        return {
            kind: self._tensors.tensor(f"{name}.{kind}")
            for kind in self.format.tensor_names
            if f"{name}.{kind}" in self._tensors
        }

    def stored_shape(self, name: str) -> tuple[int, int]:
        """N, K of a quantized linear as it is in the file."""
        return self._stored[name]

    def split_rows(self, name: str, value: Array) -> dict[str, Array]:
        """[N, ...] of a linear in the file -> rows of the linears that it stands for: itself, unless it is fused."""
        parts = {part: (fused, fused.parts) for part, (stored, fused, _) in self._fused.items() if stored == name}
        if not parts:
            return {name: value}
        fused, relative = next(iter(parts.values()))
        split = fused.split(value, [self.spec.linear_shape(part)[0] for part in relative])
        return dict(zip(parts, split, strict=True))

    def tensor(self, name: str) -> Array:
        owner, _, kind = name.rpartition(".")
        if kind == "weight" and owner in self._stored:
            return self._stored_linear(owner).dequantize()
        return self._tensors.tensor(name)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.directory, directory)


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

    The exported model's step sizes then are the checkpoint's, bit for bit. In AutoAWQ's layout their file type stays
    fp16, which is all that its readers know.

    Args:
        name: Full name of the tensor.
        value: The tensor.
        spec: The model.
        dtype: `FLOAT16` or `BFLOAT16`.
    """
    owner, _, kind = name.rpartition(".")
    of_linear = any(owner.endswith(linear) for linear in spec.stored_linears())
    if dtype == FLOAT16 or kind not in ("scales", "weight_scale") or not of_linear:
        return value
    rounded = value.astype(np.dtype(BFLOAT16))
    return rounded if kind == "weight_scale" else rounded.astype(np.float16)


def quantized_config(
    config: Mapping[str, Any], scheme: QuantScheme, layout: str, head: str, dtype: str = FLOAT16
) -> dict[str, Any]:
    """config.json of the quantized model: the original's, with `quantization_config` and its dtype.

    Args:
        config: The original's config.json.
        scheme: How the linears are quantized.
        layout: One that we write.
        head: Name of the head, which is not quantized.
        dtype: Of activations: `FLOAT16` or `BFLOAT16`.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    return {
        **kept,
        "torch_dtype": dtype,
        "quantization_config": quantization_config(scheme, layout, head),
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
