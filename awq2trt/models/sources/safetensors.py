"""Models as directories of safetensors files, single or sharded, as Hugging Face stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
from safetensors import SafetensorError, safe_open

from awq2trt.errors import CheckpointError, UsageError
from awq2trt.models.families import describe_model
from awq2trt.models.sources.base import Array, ModelSource, copy_tokenizer, read_config, refuse_remote_code

INDEX_FILE: Final = "model.safetensors.index.json"

SINGLE_FILE: Final = "model.safetensors"

PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class SafetensorsFiles:
    """The tensors of one or many safetensors files, opened lazily and memory-mapped.

    Args:
        file_of: Tensor name -> the file that holds it.
        where: What the files are together, for errors.
    """

    def __init__(self, file_of: Mapping[str, Path], where: str) -> None:
        self._file_of = file_of
        self._where = where

    @classmethod
    def in_directory(cls, directory: Path) -> SafetensorsFiles:
        """All tensors of a checkpoint directory, single file or sharded."""
        return cls(_tensor_files(directory), str(directory))

    @classmethod
    def of_file(cls, path: Path) -> SafetensorsFiles:
        """The tensors of one file."""
        with _open_safetensors(path) as file:
            return cls(dict.fromkeys(file.keys(), path), str(path))

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(sorted(set(self._file_of.values())))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def tensor(self, name: str) -> Array:
        """One tensor in its stored dtype.

        Raises:
            CheckpointError: Missing, or the file is damaged.
        """
        if name not in self._file_of:
            raise CheckpointError(
                "the checkpoint has no such tensor.",
                where=f"{self._where}: {name}",
                fix="download the checkpoint again; a shard may be missing.",
            )
        path = self._file_of[name]
        with _open_safetensors(path) as file:
            try:
                value: Array = file.get_tensor(name)
            except (SafetensorError, ValueError, TypeError) as error:
                raise _damaged(path, error) from error
        return value


class SafetensorsSource(ModelSource):
    """A Hugging Face directory: config.json, safetensors (single or sharded), tokenizer files."""

    def __init__(self, directory: Path, name: str | None = None) -> None:
        self.directory = directory
        self.name = name or str(directory)
        self.config = read_config(directory)
        refuse_remote_code(self.config, directory)
        if "quantization_config" in self.config:
            raise UsageError(
                "this checkpoint is already quantized.",
                where=str(directory),
                fix=f"export it as it is with `awq2trt export {directory} -o DIR`, or quantize the original model.",
            )
        self._tensors = SafetensorsFiles.in_directory(directory)
        self.spec = describe_model(self.config, [*self._tensors])

    @property
    def files(self) -> tuple[Path, ...]:
        return self._tensors.files

    def tensor(self, name: str) -> Array:
        return self._tensors.tensor(self._stored_name(name))

    def has(self, name: str) -> bool:
        return self._stored_name(name) in self._tensors

    def _stored_name(self, name: str) -> str:
        """The name in the file, which may lack the part that only the model with its head has."""
        short = name.removeprefix(self.spec.optional_prefix)
        return short if name not in self._tensors and short in self._tensors else name

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self.directory, directory)


def _tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index where there is one, else from the files' headers."""
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"not a safetensors index: {error}.", where=str(index), fix="download it again."
            ) from error
        missing = sorted({file for file in weight_map.values() if not (directory / file).is_file()})
        if missing:
            raise CheckpointError(
                f"the index names files that are not there: {', '.join(missing)}.",
                where=str(index),
                fix="download them.",
            )
        return {name: directory / file for name, file in weight_map.items()}
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickled = sorted(path for pattern in PICKLED for path in directory.glob(pattern))
        if pickled:
            raise pickled_error(pickled[0])
        raise CheckpointError(
            "no .safetensors files in this directory.",
            where=str(directory),
            fix="name the directory that holds the weights.",
        )
    found: dict[str, Path] = {}
    for path in files:
        with _open_safetensors(path) as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"not a readable safetensors file ({error}).",
        where=str(path),
        fix="it is truncated or damaged; download it again.",
    )


def pickled_error(path: Path) -> CheckpointError:
    """The refusal of a file that can run code when it is loaded."""
    return CheckpointError(
        "pickled weights can run code when they are loaded and are refused.",
        where=str(path),
        fix="convert them to safetensors with the model's own tools, e.g. save_pretrained(safe_serialization=True).",
    )
