"""Reads models that are directories of safetensors files, single or sharded, as Hugging Face stores them.

In: a directory. Out: its tensors, from the files that transformers 5.24 chooses
(`modeling_utils._get_resolved_checkpoint_files`), and the model's description.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from safetensors import safe_open

from awq2trt.errors import CheckpointError, UsageError
from awq2trt.foreign_files import read_json, reading
from awq2trt.models.families import DecoderSpec, describe_model, describe_vision
from awq2trt.models.sources.base import (
    CONFIG_FILE,
    QUANTIZATION_KEY,
    Array,
    ModelSource,
    copy_tokenizer,
    files_beside_weights,
    read_config,
    refuse_remote_code,
)
from awq2trt.models.sources.eight_bit import EightBits, scale_of, shape_of

INDEX_FILE: Final = "model.safetensors.index.json"

SINGLE_FILE: Final = "model.safetensors"

_INDEX_SUFFIX: Final = ".index.json"

PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


_WEIGHTS_KEY: Final = "transformers_weights"
"""Key of config.json under which a model names its weight file, or the index of its shards."""

_FLOATS: Final = ("F16", "BF16", "F32", "F64")
"""Types that weights may have, as safetensors calls them; the codes of quantized linears are integers."""

_TYPES: Final = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}
"""Types that are read here, as safetensors calls them. Its own reader takes three times as long, and lets no other
thread run Python meanwhile; it knows what to say about all other types."""

_LENGTH_BYTES: Final = 8
"""Bytes of the header's length, with which a safetensors file begins."""

_COMPARED_ROWS: Final = 8192
"""Rows of embedding and head that are compared at once: 8,192 x 8,192 fp16 numbers are 128 MiB."""


@dataclass(frozen=True)
class StoredTensor:
    """What a file's header says about a tensor.

    Attributes:
        path: The file.
        dtype: safetensors' name of its type.
        shape: Its shape.
        start: The first of its bytes in the file.
        size: Number of its bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class SafetensorsFiles:
    """The tensors of one or many safetensors files, read when they are asked for.

    Args:
        stored: What headers say, by tensor name.
        where: What to call the files, for errors.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], where: str) -> None:
        self._stored = stored
        self._where = where

    @classmethod
    def in_directory(cls, directory: Path, config: Mapping[str, Any]) -> SafetensorsFiles:
        """Opens all tensors of a model's directory, from the files that transformers would load.

        Raises:
            CheckpointError: There are no such files, or one is missing or damaged.
        """
        stored: dict[str, StoredTensor] = {}
        for path in _weight_files(directory, config):
            stored |= _read_header(path)
        return cls(stored, str(directory))

    @classmethod
    def of_file(cls, path: Path) -> SafetensorsFiles:
        """Opens the tensors of one file."""
        return cls(_read_header(path), str(path))

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(sorted({tensor.path for tensor in self._stored.values()}))

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def header(self, name: str) -> StoredTensor:
        """Returns what the header says about a tensor, which must exist."""
        return self._stored[name]

    def require_weight(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuses an existing tensor whose header has a wrong shape, or a type that weights cannot have.

        Raises:
            CheckpointError: The shape or type is wrong.
        """
        found = self.header(name)
        if found.shape != shape or found.dtype not in _FLOATS:
            raise CheckpointError(
                f"expected weights {list(shape)} of a floating-point type ({', '.join(_FLOATS)}), got {found.dtype} "
                f"{list(found.shape)}.",
                where=f"{found.path}: {name}",
                fix="config.json and the weights do not belong together; download both again.",
            )

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape that the header gives; None if there is no such tensor."""
        return self._stored[name].shape if name in self._stored else None

    def equal(self, first: str, second: str) -> bool:
        """Whether two existing matrices are equal; only a few rows are in memory at a time."""
        rows = self.header(first).shape[0]
        if self.header(first).shape != self.header(second).shape:
            return False
        with self._open(first) as one, self._open(second) as other:
            pieces = (slice(start, min(start + _COMPARED_ROWS, rows)) for start in range(0, rows, _COMPARED_ROWS))
            a, b = one.get_slice(first), other.get_slice(second)
            return all(np.array_equal(a[piece].astype(np.float32), b[piece].astype(np.float32)) for piece in pieces)

    def tensor(self, name: str) -> Array:
        """Returns one tensor in its stored dtype.

        Raises:
            CheckpointError: The tensor is missing, or the file is damaged.
        """
        if name not in self._stored:
            raise CheckpointError(
                "the checkpoint has no such tensor.",
                where=f"{self._where}: {name}",
                fix="download the checkpoint again; a shard may be missing.",
            )
        stored = self._stored[name]
        with reading("a safetensors file", f"{stored.path}: {name}"):
            if stored.dtype in _TYPES:
                content = np.fromfile(stored.path, np.uint8, stored.size, offset=stored.start)
                value: Array = content.view(_TYPES[stored.dtype]).reshape(stored.shape)
                return value
            with self._open(name) as file:
                value = file.get_tensor(name)
        return value

    def _open(self, name: str) -> Any:
        return _open_safetensors(self._stored[name].path)


def describe_stored(config: Mapping[str, Any], tensors: SafetensorsFiles, *, quantized: bool = False) -> DecoderSpec:
    """Describes a model from its config.json and its stored tensors.

    As in transformers, a head in the file is used in spite of `tie_word_embeddings`, unless it equals the embedding.

    Args:
        config: config.json.
        tensors: Tensors of the model.
        quantized: Whether linears of blocks, and perhaps the head, are stored in a layout of quantized checkpoints.

    Raises:
        UnsupportedError: No family describes the model.
        CheckpointError: A weight has no floating-point type.
    """
    spec = describe_model(config, [*tensors], quantized=quantized)
    head, embedding = f"{spec.head}.weight", stored_name(spec, tensors, f"{spec.embedding}.weight")
    linears = spec.stored_linears() if quantized else {}
    vision = describe_vision(config, [*tensors])
    weights = [head, *spec.outer_shapes(), *(vision.shapes() if vision else ())]
    for layer in range(spec.num_layers):
        prefix = spec.prefix(layer)
        inside = spec.stored_block_shapes() | spec.cross_shapes(layer)
        weights += [prefix + name for name in inside if name.rpartition(".")[0] not in linears]
    for weight in (stored_name(spec, tensors, name) for name in weights):
        has_scale = quantized and scale_of(tensors, weight) is not None
        if weight in tensors and tensors.header(weight).dtype not in _FLOATS and not has_scale:
            raise CheckpointError(
                f"expected weights of a floating-point type ({', '.join(_FLOATS)}), got "
                f"{tensors.header(weight).dtype}.",
                where=f"{tensors.header(weight).path}: {weight}",
                fix="use the model in fp16, bf16 or fp32: these are codes, whose scales no config.json names.",
            )
    if quantized and any(name.rpartition(".")[0] == spec.head and name != head for name in tensors):
        return replace(spec, tie_embeddings=False)
    if (
        spec.tie_embeddings
        and head in tensors
        and embedding != head
        and embedding in tensors
        and not tensors.equal(head, embedding)
    ):
        return replace(spec, tie_embeddings=False)
    return spec


def stored_name(spec: DecoderSpec, tensors: SafetensorsFiles, name: str) -> str:
    """The name in the file, which may lack a prefix that only the model with its head has.

    An embedding that is also the head may be stored only as the head.
    """
    short, head = name.removeprefix(spec.optional_prefix), f"{spec.head}.weight"
    if name in tensors or short in tensors:
        return name if name in tensors else short
    is_head = spec.tie_embeddings and name == f"{spec.embedding}.weight"
    return head if is_head and head in tensors else name


class SafetensorsSource(ModelSource):
    """A Hugging Face directory: config.json, safetensors (single or sharded), tokenizer files; `open` reads them."""

    def __init__(
        self, directory: Path, name: str, config: dict[str, Any], tensors: SafetensorsFiles, spec: DecoderSpec
    ) -> None:
        self.directory = directory
        self.name = name
        self.config = config
        self.spec = spec
        self.vision = describe_vision(config, [*tensors])
        self._tensors = tensors
        self._eight_bits = EightBits.of(config, str(directory / CONFIG_FILE))

    @classmethod
    def open(cls, directory: Path, name: str | None = None) -> SafetensorsSource:
        """Reads the configuration and the headers of the weight files.

        Args:
            directory: The model's directory.
            name: What the user called it; None for the directory.

        Raises:
            CheckpointError: A file is missing, damaged or pickled.
            UnsupportedError: No family describes the model, or it needs remote code.
            UsageError: The model is already quantized to fewer than 8 bits.
        """
        with reading("a model's directory", directory):
            config = read_config(directory)
            refuse_remote_code(config, directory)
            quantized = QUANTIZATION_KEY in config
            if quantized and EightBits.of(config, str(directory / CONFIG_FILE)) is None:
                method = config[QUANTIZATION_KEY].get("quant_method")
                raise UsageError(
                    f"this checkpoint is already quantized (quant_method: {method}).",
                    where=str(directory),
                    fix="quantize the original model, in fp16, bf16 or 8 bits; a checkpoint that AutoAWQ, GPTQ, "
                    "compressed-tensors or AutoRound made with 2 to 4 bits can be exported as it is: "
                    f"awq2trt export {directory} -o DIR",
                )
            tensors = SafetensorsFiles.in_directory(directory, config)
            spec = describe_stored(config, tensors, quantized=quantized)
            return cls(directory, name or str(directory), config, tensors, spec)

    @property
    def files(self) -> tuple[Path, ...]:
        return self._tensors.files

    @property
    def side_files(self) -> tuple[Path, ...]:
        return files_beside_weights(self.directory)

    def tensor(self, name: str) -> Array:
        stored = stored_name(self.spec, self._tensors, name)
        dequantized = self._eight_bits.weight(self._tensors, stored) if self._eight_bits else None
        return self._tensors.tensor(stored) if dequantized is None else dequantized

    def has(self, name: str) -> bool:
        return stored_name(self.spec, self._tensors, name) in self._tensors

    def header_shape(self, name: str) -> tuple[int, ...] | None:
        stored = stored_name(self.spec, self._tensors, name)
        return shape_of(self._tensors, stored) if self._eight_bits else self._tensors.shape(stored)

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.directory, directory)


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights of any kind."""
    return any(next(directory.glob(pattern), None) for pattern in ("*.safetensors", INDEX_FILE, *PICKLED))


def _weight_files(directory: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that transformers would load: those that config.json names, `model.safetensors`, or an index's shards.

    Other files in the directory are other models: adapters, backups, the same weights under other names.
    """
    named = config.get(_WEIGHTS_KEY)
    candidates = (SINGLE_FILE, INDEX_FILE) if named is None else (str(named),)
    for name in candidates:
        path = _inside(directory, name, where=f"{directory}: {_WEIGHTS_KEY}")
        if path.is_file():
            return _shards(path) if name.endswith(_INDEX_SUFFIX) else [path]
    pickled = sorted(path for pattern in PICKLED for path in directory.glob(pattern))
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if pickled and not others:
        raise pickled_error(pickled[0])
    raise CheckpointError(
        f"expected {' or '.join(candidates)}, got {', '.join(others) or 'no .safetensors files'}.",
        where=str(directory),
        fix=f"rename the model's own file to {SINGLE_FILE}, or download the index of its shards."
        if others
        else "name the directory that holds the weights.",
    )


def _shards(index: Path) -> list[Path]:
    """The files of an index, in transformers' loading order: if several have a tensor, the last one counts."""
    with reading("a safetensors index", index):
        weight_map = dict(read_json(index)["weight_map"])
        names = sorted(set(weight_map.values()))
    paths = {name: _inside(index.parent, name, where=str(index)) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing or not paths:
        raise CheckpointError(
            f"the index names missing files: {', '.join(missing)}." if missing else "the index is empty.",
            where=str(index),
            fix="download them." if missing else "download it again.",
        )
    headers = {name: _read_header(path) for name, path in paths.items()}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(
                f"{file} has no tensor {name}, which the index says it has.",
                where=str(index),
                fix="the index and its shards belong to different models; download them together.",
            )
    return list(paths.values())


def _inside(directory: Path, name: object, *, where: str) -> Path:
    """A file in the directory whose name comes from one of the model's own files."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(
            f"expected the name of a file in the model's directory, got {name!r}.",
            where=where,
            fix="download it again.",
        )
    return directory / name


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Reads what the header says about all tensors of a file, by name."""
    with reading("a safetensors file", path), _open_safetensors(path) as checked, path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header, data = json.loads(file.read(length)), _LENGTH_BYTES + length
        stored: dict[str, StoredTensor] = {}
        for name in list(checked.keys()):
            view, (start, end) = checked.get_slice(name), header[name]["data_offsets"]
            shape = tuple(view.get_shape())
            stored[name] = StoredTensor(path, view.get_dtype(), shape, start=data + start, size=end - start)
        return stored


def _open_safetensors(path: Path) -> Any:
    with reading("a safetensors file", path):
        return safe_open(path, framework="numpy")


def pickled_error(path: Path) -> CheckpointError:
    """The error for a file that can run code when it is loaded."""
    return CheckpointError(
        "pickled weights are refused, because they can run code when they are loaded.",
        where=str(path),
        fix="convert them to safetensors with the model's own tools, e.g. save_pretrained(safe_serialization=True).",
    )
