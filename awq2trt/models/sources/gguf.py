"""GGUF files (llama.cpp) as a `ModelSource`: tensors dequantized one at a time, under Hugging Face names.

The gguf package reads and dequantizes, and knows the names that llama.cpp's converter uses (`get_tensor_name_map`);
`gguf_tokenizer` makes tokenizer.json from the metadata. Some tensors are stored in llama.cpp's own forms
(`Architecture`), which are converted back here. A model may be split over several files, and any of them may be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import reading
from awq2trt.models.families import DecoderSpec, FusedLinear, describe_model
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.models.sources.gguf_bounds import require_bounded_metadata
from awq2trt.models.sources.gguf_metadata import (
    ARCHITECTURES,
    ROPE_FACTORS,
    ROPE_FREQS,
    Architecture,
    Header,
    config_of,
    metadata,
)
from awq2trt.models.sources.gguf_tokenizer import GgufTokenizer

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

_SPLIT_NAME: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""How llama.cpp names the files of a split model."""

_TABLES: Final = ("attn_rot_embd.weight",)
"""Endings of tensors that early converters stored and nothing reads: tables that the code computes itself."""


@dataclass(frozen=True)
class GgufFiles:
    """A model's files.

    Attributes:
        paths: The files in order; the first has the metadata.
        stored: How llama.cpp stores its architecture.
        tokenizer: The tokenizer, from the metadata.
    """

    paths: tuple[Path, ...]
    stored: Architecture
    tokenizer: GgufTokenizer


class GgufSource(ModelSource):
    """One model in `.gguf` files: weights, config and tokenizer; `open` reads them.

    Args:
        name: What the user called it.
        files: The files, and how they store it.
        config: What the model's config.json would hold.
        spec: The description of its decoder.
        tensors: The stored tensors, by Hugging Face name.
    """

    def __init__(
        self,
        name: str,
        files: GgufFiles,
        config: dict[str, Any],
        spec: DecoderSpec,
        tensors: Mapping[str, ReaderTensor],
    ) -> None:
        self.name = name
        self.config = config
        self.spec = spec
        self._files = files.paths
        self._stored = files.stored
        self._tokenizer = files.tokenizer
        self._tensors = tensors

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> GgufSource:
        """Reads the metadata and the headers of all tensors.

        Args:
            path: A `.gguf` file; any of the files of a split model.
            name: What the user called it; None for the path.

        Raises:
            CheckpointError: The model is damaged, or one of its files is missing.
            UnsupportedError: No family describes the model.
        """
        with reading("a GGUF file", path):
            paths = _split_files(path)
            readers = [_read(file) for file in paths]
            architecture = metadata(readers[0].fields, "general.architecture", str(path))
            stored = _known(architecture, path)
            tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
            header = Header(str(path), architecture, readers[0].fields, tensors)
            config = _config(header, stored)
            spec = describe_model(config)
            files = GgufFiles(paths, stored, GgufTokenizer(readers[0].fields, str(paths[0])))
            return cls(name or str(path), files, config, spec, _placed(spec, header))

    @property
    def files(self) -> tuple[Path, ...]:
        return self._files

    def tensor(self, name: str) -> Array:
        from gguf import quants

        if name not in self._tensors:
            raise CheckpointError(
                "the file has no such tensor.", where=f"{self._files[0]}: {name}", fix="download it again."
            )
        stored = self._tensors[name]
        with reading(
            f"a tensor of GGUF's type {stored.tensor_type.name}",
            f"{self._files[0]}: {name}",
            fix="use a GGUF of another type, such as Q8_0 or Q4_K_M, or the model's safetensors.",
            error=UnsupportedError,
        ):
            value: Array = quants.dequantize(stored.data, stored.tensor_type)
        return self._as_in_checkpoints(name, value)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def header_shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self._tensors:
            return None
        return tuple(int(size) for size in reversed(self._tensors[name].shape))  # ggml lists the last axis first

    def save_tokenizer(self, directory: Path) -> None:
        with reading("a GGUF file with a tokenizer", self._files[0]):
            self._tokenizer.save(directory)

    def _as_in_checkpoints(self, name: str, value: Array) -> Array:
        """Undoes what llama.cpp's converter did to a tensor."""
        if self._stored.interleaved and ".q_proj." in name:
            return _halves(value, self.spec.num_heads)
        if self._stored.interleaved and ".k_proj." in name:
            return _halves(value, self.spec.num_kv_heads)
        if self._stored.unit_offset and name.endswith("norm.weight"):
            return value - 1
        fused = next((linear for linear in self.spec.fused if f".{linear.stored}." in name), None)
        if self._stored.fuses_in_order and fused is not None:
            rows = [self.spec.linear_shape(part)[0] for part in fused.parts]
            if len(value) == sum(rows):  # otherwise the caller refuses its shape
                return fused.fuse(FusedLinear(fused.stored, fused.parts).split(value, rows))
        return value


def _read(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        """With plain arrays: a vocabulary takes hundreds of thousands of views, and a memmap's take much longer."""

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value.view(np.ndarray) if isinstance(value, np.memmap) else value)

    require_bounded_metadata(path)
    with reading("a GGUF file", path):
        return PlainReader(path)


def _config(header: Header, stored: Architecture) -> dict[str, Any]:
    """Makes the content of config.json.

    Raises:
        CheckpointError: The metadata has a value of the wrong kind.
    """
    with reading(f"metadata of {header.architecture}", header.where):
        return config_of(header, stored)


def _split_files(path: Path) -> tuple[Path, ...]:
    """Returns all files of the model that a file belongs to, in order.

    Raises:
        CheckpointError: A file is missing.
    """
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None:
        return (path,)
    stem, _, count = named.groups()
    if not 0 < int(count) <= _MOST_FILES:
        raise CheckpointError(f"expected 1 to {_MOST_FILES} files, got {int(count)}.", where=str(path))
    files = tuple(path.with_name(f"{stem}-{number + 1:05d}-of-{count}.gguf") for number in range(int(count)))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"the model is split over {int(count)} files, and these are missing: {', '.join(missing[:3])}.",
            where=str(path),
            fix="put them beside this one.",
        )
    return files


_MOST_FILES: Final = 1000
"""A model of more files is refused, before that many file names are made."""


def _known(architecture: str, path: Path) -> Architecture:
    """Returns how llama.cpp stores the architecture.

    Raises:
        UnsupportedError: The architecture is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"expected a GGUF of {', '.join(ARCHITECTURES)}, got {architecture!r}.",
            where=str(path),
            fix="use the model's safetensors directory, or see the families in README.",
        )
    return ARCHITECTURES[architecture]


def _placed(spec: DecoderSpec, header: Header) -> dict[str, ReaderTensor]:
    """Returns the file's tensors by Hugging Face name.

    Raises:
        CheckpointError: The number of blocks differs from the metadata.
        UnsupportedError: A tensor has no place in the description.
    """
    _require_blocks(spec.num_layers, header)
    names = _gguf_names(spec, header.architecture)
    known = {*names.values(), ROPE_FREQS, *ROPE_FACTORS}
    unplaced = sorted(name for name in header.tensors if name not in known and not name.endswith(_TABLES))
    if unplaced:
        raise UnsupportedError(
            f"the family {spec.family} has no place for {unplaced[0]}; without it, the model would be wrong.",
            where=header.where,
            fix="use the model's safetensors directory, or a GGUF of the model as it was published.",
        )
    return {name: header.tensors[stored] for name, stored in names.items() if stored in header.tensors}


def _require_blocks(count: int, header: Header) -> None:
    """Compares the metadata with the blocks that the file has."""
    found = {int(name.split(".")[1]) for name in header.tensors if re.match(r"blk\.\d+\.", name)}
    if found != set(range(count)):
        raise CheckpointError(
            f"{header.architecture}.block_count: {count}, but the file holds {len(found)} blocks; the last of them is "
            f"{max(found, default='none')}.",
            where=header.where,
            fix="its metadata or its tensors are damaged, or a file of it is missing; download it again.",
        )


def _gguf_names(spec: DecoderSpec, architecture: str) -> dict[str, str]:
    """Maps Hugging Face's names to llama.cpp's, for all tensors of a model."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    known = get_tensor_name_map(arch, spec.num_layers)

    def found(name: str) -> Iterator[str]:
        for spelled in (name, name.removeprefix(spec.optional_prefix)):
            gguf_name = known.get_name(spelled, try_suffixes=(".weight", ".bias", ".scales"))
            if gguf_name is not None:
                yield gguf_name

    names = {name: next(found(name), None) for name in _all_names(spec)}
    return {name: gguf_name for name, gguf_name in names.items() if gguf_name is not None}


def _all_names(spec: DecoderSpec) -> Iterable[str]:
    """Full names of all tensors that a model may have in its checkpoint."""
    inside = (*spec.stored_block_shapes(), *spec.optional_block_shapes())
    return [*spec.outer_shapes(), *(spec.prefix(layer) + name for layer in range(spec.num_layers) for name in inside)]


def _halves(value: Array, heads: int) -> Array:
    """Reorders every head's rows from llama.cpp's interleaved pairs to halves; [heads * head_dim, ...] or a bias."""
    if value.shape[0] % (2 * heads):
        return value  # the caller refuses its shape
    pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
