"""Writes a quantized checkpoint: weight files, and the config.json that describes how to read them.

In: packed linears and plain tensors. Out: a directory that `transformers` and vLLM read if one of their layouts can
hold the model (AutoAWQ's, compressed-tensors'), or else one that they refuse (`awq2trt.checkpoint.layouts.natural`). It
needs only NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file

from awq2trt.checkpoint.layouts import Layout, ModelSchemes
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import CONFIG_FILE, Array
from awq2trt.models.sources.safetensors import INDEX_FILE, SINGLE_FILE, SafetensorsFiles
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.scheme import BFLOAT16, FLOAT16
from awq2trt.tracing import span

SHARD_BYTES: Final = 1 << 30
"""Size of the largest weight file, all of which the writer holds in memory."""

_FP16_LARGEST: Final = 65504.0

_FP16_SHARE: Final = 0.5
"""How much of fp16's range activations may fill in calibration; other texts may go further."""

_NOT_KEPT: Final = ("torch_dtype", "dtype", "_name_or_path", "auto_map")
"""Keys of the original's config.json that are left out: the model's Python code is not copied."""

_METADATA: Final = {"format": "pt"}
"""transformers refuses safetensors files without it."""


def storage_dtype(largest: float) -> str:
    """Returns `BFLOAT16` for a model whose activations or weights need its range, and `FLOAT16` for any other."""
    return FLOAT16 if largest <= _FP16_LARGEST * _FP16_SHARE else BFLOAT16


def compact(value: Array, *, exact: bool) -> Array:
    """Returns a small tensor in fp16, or in fp32 if fp16 cannot hold it or rounding would matter.

    Args:
        value: Weight or bias of a norm, or divisors of an activation function.
        exact: Whether rounding would matter.
    """
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    return value.astype(np.float32) if exact or not np.isfinite(half).all() else half


def for_dtype(name: str, value: Array, *, spec: DecoderSpec, dtype: str) -> Array:
    """Returns a quantized tensor as a checkpoint of `dtype` stores it: with bf16, step sizes are rounded to bf16.

    They have bf16 values already, unless only the last blocks left fp16's range. So the exported model has exactly the
    checkpoint's step sizes. In AutoAWQ's layout they are stored as fp16, the only type that its readers support.

    Args:
        name: Full name of the tensor.
        value: The tensor.
        spec: The model.
        dtype: `FLOAT16` or `BFLOAT16`.
    """
    owner, _, kind = name.rpartition(".")
    of_linear = any(owner.endswith(linear) for linear in (*spec.stored_linears(), spec.stored_head))
    if dtype == FLOAT16 or kind not in ("scales", "weight_scale") or not of_linear:
        return value
    rounded = value.astype(np.dtype(BFLOAT16))
    return rounded if kind == "weight_scale" else rounded.astype(np.float16)


_PLAIN_KEYS: Final = ("modules_to_not_convert", "ignore")
"""Keys under which AutoAWQ and compressed-tensors list what is not quantized."""


def quantized_config(
    config: Mapping[str, Any],
    model: ModelSpec,
    schemes: ModelSchemes,
    layout: Layout,
    dtype: str = FLOAT16,
    seen_with: Collection[str] = (),
) -> dict[str, Any]:
    """Makes config.json of the quantized model: the original's, with `quantization_config` and its dtype.

    Args:
        config: The original's config.json.
        model: Description of the original.
        schemes: How its weights are quantized.
        layout: A layout that we write.
        dtype: Type of activations: `FLOAT16` or `BFLOAT16`.
        seen_with: Full names of the linears that it sees with and that are quantized.
    """
    kept = {key: value for key, value in config.items() if key not in _NOT_KEPT}
    if not model.decoder.tie_embeddings:
        kept["tie_word_embeddings"] = False  # the original may say otherwise, although its files have a head
    written = layout.written.config(schemes, model.decoder.head)
    if model.vision is not None:
        key = next(key for key in _PLAIN_KEYS if key in written)
        written[key] = [*written[key], *_plain_modules(model.vision, seen_with)]
    return {**kept, "torch_dtype": dtype, "quantization_config": written}


def _plain_modules(vision: SeeingSpec, coded: Collection[str]) -> Iterator[str]:
    """Names of what a model sees with and what is not quantized: whole modules, or what such a module has of it."""
    weights = [name.removesuffix(".weight") for name, shape in vision.shapes().items() if len(shape) > 1]
    for module in vision.modules:
        inside = [name for name in weights if name.startswith(f"{module}.")]
        if not any(name in coded for name in inside):
            yield module
            continue
        yield from (name for name in inside if name not in coded)


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Writes one safetensors file under a temporary name, and renames it when it is complete."""
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, partial, metadata=_METADATA)
    partial.chmod(0o644)  # safetensors creates files that only their owner can read
    partial.replace(path)


Convert = Callable[[str, Array], Array]
"""Takes a tensor and its full name; returns the tensor as it is written."""


@dataclass(frozen=True)
class Unread:
    """A tensor that is made only when the file that holds it is written.

    Attributes:
        size_bytes: Its bytes.
        read: Makes it; called in any thread.
    """

    size_bytes: int
    read: Callable[[], Array]

    @classmethod
    def of(cls, value: Array) -> Unread:
        """Takes a tensor that is there."""
        return cls(value.nbytes, lambda: value)


def merge_shards(
    sources: Iterable[Path],
    outer: Mapping[str, Unread],
    directory: Path,
    *,
    convert: Convert = lambda _, value: value,
    at_once: int = 1,
) -> None:
    """Merges finished block files and the outer tensors into shards of at most `SHARD_BYTES`, and an index of them.

    What fits into one shard becomes `model.safetensors`, without an index.

    Args:
        sources: safetensors files of the quantized parts, in order.
        outer: Tensors outside the quantized parts, by full name.
        directory: Where the shards and their index go.
        convert: Applied to the quantized parts' tensors; must not change their size.
        at_once: Number of shards that are written at the same time, each by a thread and from memory of its own.
    """
    groups = list(_grouped_by_size(_all_tensor_sizes(sources, outer)))
    if len(groups) == 1:
        write_tensors(directory / SINGLE_FILE, _load(groups[0], outer, convert))
        return

    def write(number: int, group: Iterable[_Entry]) -> dict[str, str]:
        path = directory / f"model-{number:05}-of-{len(groups):05}.safetensors"
        with span("read", file=path.name):
            tensors = _load(group, outer, convert)
        with span("write", file=path.name):
            write_tensors(path, tensors)
        return dict.fromkeys(tensors, path.name)

    with ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="write") as writers:
        written = writers.map(write, range(1, len(groups) + 1), groups)
        weight_map = {name: file for part in written for name, file in part.items()}
    total = sum(nbytes for group in groups for _, _, nbytes in group)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


_Entry = tuple[str, Path | None, int]
"""A tensor's name, the file that holds it (None for an outer tensor), and its bytes."""


def _all_tensor_sizes(sources: Iterable[Path], outer: Mapping[str, Unread]) -> Iterator[_Entry]:
    for name, value in outer.items():
        yield name, None, value.size_bytes
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


def _load(group: Iterable[_Entry], outer: Mapping[str, Unread], convert: Convert) -> dict[str, Array]:
    opened: dict[Path, SafetensorsFiles] = {}
    tensors: dict[str, Array] = {}
    for name, path, _ in group:
        if path is None:
            tensors[name] = outer[name].read()
            continue
        if path not in opened:
            opened[path] = SafetensorsFiles.of_file(path)
        tensors[name] = convert(name, opened[path].tensor(name))
    return tensors
