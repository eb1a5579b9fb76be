"""What a model provides wherever it is stored: its config and one tensor at a time, under Hugging Face names.

Tensors are NumPy arrays, and later stages do not know where a model came from. Pickled weights and remote code are
refused (architecture decision: no pickle, no remote code).
"""

from __future__ import annotations

import json
import reprlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.folder import no_directory
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import read_json, reading
from awq2trt.models.families import DecoderSpec, SeeingSpec, find_family
from awq2trt.models.sources.tokenizer_parts import TOKENIZER_FILE, reading_tokenizer
from awq2trt.models.spec import ModelSpec

Array = NDArray[Any]

CONFIG_FILE: Final = "config.json"

QUANTIZATION_KEY: Final = "quantization_config"
"""Key of config.json that says how weights are quantized; `read_config` puts it there, whichever file had it."""

_COMPRESSION_KEY: Final = "compression_config"
"""The same key in configs of the first compressed-tensors versions."""

_QUANTIZATION_FILES: Final = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which AutoGPTQ and AutoAWQ wrote it before transformers knew them -> the `quant_method` they omitted."""

FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
"""NumPy's names of the types that weights may have."""

GENERATION_CONFIG_FILE: Final = "generation_config.json"

PROCESSOR_TEMPLATE_FILE: Final = "chat_template.json"
"""Chat template of models that see, if published before transformers kept templates in files of their own."""

TOKENIZER_FILES: Final = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    PROCESSOR_TEMPLATE_FILE,
    "preprocessor_config.json",  # how a model that sees images wants them
    "processor_config.json",
    GENERATION_CONFIG_FILE,
)

_LOOKED_AT_ONCE: Final = 1 << 18
"""How many numbers of a tensor are compared at once: those of 16 bits stay in a CPU's cache."""

_END_TOKENS: Final = "eos_token_id"

_GENERATION_TOKENS: Final = ("bos_token_id", _END_TOKENS, "pad_token_id")


class ModelSource(ABC):
    """A model's config and tensors; tensors are read one at a time.

    Attributes:
        name: What the user called it.
        config: config.json.
        spec: The description of its decoder.
        vision: The description of how it sees images; None for a model of text.
    """

    name: str
    config: dict[str, Any]
    spec: DecoderSpec
    vision: SeeingSpec | None = None

    @property
    def model_spec(self) -> ModelSpec:
        """The description of the complete model."""
        return ModelSpec(self.spec, self.vision)

    @property
    def text_config(self) -> dict[str, Any]:
        """The decoder's part of config.json: all of it, unless the model sees images."""
        return decoder_config(self.config)

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights, to be hashed."""

    @property
    def side_files(self) -> tuple[Path, ...]:
        """Files beside the weights that affect the model (configuration and tokenizer), to be hashed."""
        return ()

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """Returns one tensor by its Hugging Face name, in its stored dtype (fp16, bf16 or fp32).

        Raises:
            CheckpointError: The tensor is missing, or its bytes cannot be read.
        """

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a tensor with this name."""

    @abstractmethod
    def save_tokenizer(self, directory: Path) -> None:
        """Writes the tokenizer and generation files that the model has into `directory`."""

    @abstractmethod
    def header_shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor by its Hugging Face name, from a header; None if there is no such tensor."""

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that the model needs, as they are stored, by Hugging Face name."""
        spec = self.spec
        blocks = {
            spec.prefix(layer) + name: shape
            for layer in range(spec.num_layers)
            for name, shape in (spec.stored_block_shapes() | spec.cross_shapes(layer)).items()
        }
        return {**spec.outer_shapes(), **blocks}

    def require_tensors(self) -> None:
        """Refuses a model that lacks a tensor, or has one with a wrong shape; it reads only headers.

        Raises:
            CheckpointError: A tensor is missing or has a wrong shape.
        """
        for name, expected in self.expected_shapes().items():
            found = self.header_shape(name)
            if found is None:
                raise CheckpointError(
                    "the checkpoint has no such tensor.",
                    where=f"{self.name}: {name}",
                    fix="download the checkpoint again; a shard may be missing.",
                )
            if found != expected:
                raise _misshapen(f"{self.name}: {name}", expected, found)

    def checked_tensor(self, name: str, shape: tuple[int, ...]) -> Array:
        """Returns a tensor after checking its shape, its type, and that all values are finite.

        Raises:
            CheckpointError: It is missing, has a wrong shape, holds integers, or has NaN or infinite values.
        """
        value = self.tensor(name)
        if value.shape != shape:
            raise _misshapen(name, shape, value.shape)
        if value.dtype.name not in FLOATS:
            raise CheckpointError(
                f"expected weights of a floating-point type ({', '.join(FLOATS)}), got {value.dtype}.",
                where=name,
                fix="use the model in fp16, bf16 or fp32.",
            )
        if not np.isfinite(largest_magnitude(value)):
            count = int(np.count_nonzero(~np.isfinite(value)))
            raise CheckpointError(
                f"{count} of {value.size} weights are NaN or infinite.",
                where=name,
                fix="the checkpoint is damaged; download it again or train it to finite weights.",
            )
        return value

    def block(self, layer: int) -> dict[str, Array]:
        """Returns all tensors of a block, checked, by name relative to the block; fused linears are split."""
        prefix, spec = self.spec.prefix(layer), self.spec
        shapes = spec.stored_block_shapes() | spec.cross_shapes(layer)
        shapes.update({name: shape for name, shape in spec.optional_block_shapes().items() if self.has(prefix + name)})
        return spec.split_block({name: self.checked_tensor(prefix + name, shape) for name, shape in shapes.items()})

    def outer(self) -> dict[str, Array]:
        """Returns all tensors outside the blocks, checked, by full name."""
        return {name: self.checked_tensor(name, shape) for name, shape in self.spec.outer_shapes().items()}

    def vision_tensors(self, without: Collection[str] = ()) -> dict[str, Array]:
        """Returns the tensors of vision tower and projector, checked, by full name; none for a model of text.

        Args:
            without: Full names of linears that are left out.
        """
        shapes = self._vision_shapes().items()
        wanted = {name: shape for name, shape in shapes if name.rpartition(".")[0] not in without}
        return {name: self.checked_tensor(name, shape) for name, shape in wanted.items()}

    def unquantized_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the decoder's blocks, by full name."""
        return self.spec.outer_shapes() | self._vision_shapes()

    def _vision_shapes(self) -> dict[str, tuple[int, ...]]:
        return {} if self.vision is None else dict(self.vision.shapes())


def largest_magnitude(value: Array) -> float:
    """The largest |x| of a tensor of floating-point numbers, infinite or NaN if any is; 0 if it has none.

    Without its sign a floating-point number is ordered as the integer of its bits is, NaN last. NumPy compares integers
    of 16 bits by the vector, and halves one at a time: Llama-3-8B's embedding takes a tenth of the time so.
    """
    bits = np.dtype(f"u{value.dtype.itemsize}")
    flat, mask = np.ascontiguousarray(value).reshape(-1).view(bits), bits.type(np.iinfo(bits).max >> 1)
    starts = range(0, len(flat), _LOOKED_AT_ONCE)
    largest = max(((flat[start : start + _LOOKED_AT_ONCE] & mask).max() for start in starts), default=bits.type(0))
    return float(np.array([largest], bits).view(value.dtype)[0])


def _misshapen(where: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(
        f"expected shape {list(expected)}, got {list(found)}.",
        where=where,
        fix="config.json and the weights do not belong together; download both again.",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """Reads config.json of a checkpoint directory.

    How the weights are quantized, if they are, is put under `QUANTIZATION_KEY`, whichever file and key had it.

    Raises:
        CheckpointError: The directory has no config.json, or it is not a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"no {CONFIG_FILE} in this directory." if directory.is_dir() else no_directory(directory),
            where=str(directory),
            fix="name the directory that holds config.json and the .safetensors files.",
        )
    config = read_json(path)
    own = config.pop(QUANTIZATION_KEY, None)
    old = config.pop(_COMPRESSION_KEY, None)
    if own is None and isinstance(old, dict):
        own = {"quant_method": "compressed-tensors", **old}
    for name, method in _QUANTIZATION_FILES.items():
        if own is None and (directory / name).is_file():
            own = {"quant_method": method, **read_json(directory / name)}
    if own is not None and not isinstance(own, dict):
        raise CheckpointError(
            f"{QUANTIZATION_KEY}: expected an object, got {own!r}.", where=str(path), fix="download it again."
        )
    return config if own is None else {**config, QUANTIZATION_KEY: own}


def decoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the decoder; a model that sees images has it under `text_config`."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def refuse_remote_code(config: Mapping[str, Any], directory: Path) -> None:
    """Refuses a model whose config names Python code to run, unless transformers has that code built in by now.

    Raises:
        UnsupportedError: config.json has an `auto_map` for the model.
    """
    with reading("a model's configuration", directory / CONFIG_FILE):
        family = find_family(config)
        if family is not None and family.published_with_code:
            return
        wants_code = any(key.startswith("AutoModel") for key in config.get("auto_map") or {})
    if wants_code:
        raise UnsupportedError(
            "the checkpoint wants its own Python code to run (auto_map, trust_remote_code).",
            where=str(directory / CONFIG_FILE),
            fix="use a model whose architecture is built into transformers; awq2trt runs no remote code.",
        )


def files_beside_weights(directory: Path) -> tuple[Path, ...]:
    """The configuration and tokenizer files that a model's directory has."""
    names = (CONFIG_FILE, *_QUANTIZATION_FILES, *TOKENIZER_FILES)
    return tuple(path for name in names if (path := directory / name).is_file())


def _make_tokenizer_json(source: Path, destination: Path) -> None:
    """Makes tokenizer.json, which all runtimes read, from tokenizer.model, or from vocab.json and merges.txt."""
    from awq2trt.models.sources.sentencepiece import MODEL_FILE, convert_sentencepiece

    with reading_tokenizer(source):
        if (source / MODEL_FILE).is_file():
            convert_sentencepiece(source, destination)
            return
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        tokenizer.save_pretrained(destination)


def _refuse_link_elsewhere(path: Path) -> None:
    """Refuses a tokenizer file that links to another place: copying it would disclose the file that it points to.

    The Hugging Face hub's cache has links from `snapshots/REVISION` into `blobs` of the same model.

    Raises:
        CheckpointError: The link leads out of the model's directory, and not into the hub's store of its files.
    """
    directory, target = path.parent.resolve(), path.resolve()
    homes = [directory]
    if directory.parent.name == "snapshots":
        homes.append(directory.parent.parent / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"expected one of the model's own files, got a link to {target}.",
            where=str(path),
            fix="put the file itself there, or remove the link.",
        )


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer and generation files of `source`, and makes a tokenizer.json if it has none.

    Without a generation_config.json, one is written with the tokens of config.json that begin and end texts, as
    transformers does (`GenerationConfig.from_model_config`), since config.json itself is not copied.

    Raises:
        CheckpointError: There is no tokenizer in `source`, or the tokens that end an answer are not ids.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name in ("tokenizer.json", "tokenizer.model", "vocab.json") for path in found):
        raise CheckpointError(
            "found no tokenizer (tokenizer.json, tokenizer.model or vocab.json).",
            where=str(source),
            fix="put the model's tokenizer files beside its weights.",
        )
    for path in found:
        _refuse_link_elsewhere(path)
        shutil.copyfile(path, destination / path.name)
    if not (source / TOKENIZER_FILE).is_file():
        _make_tokenizer_json(source, destination)
    if not (source / GENERATION_CONFIG_FILE).is_file() and (source / CONFIG_FILE).is_file():
        config = decoder_config(read_config(source))
        tokens = {key: config[key] for key in _GENERATION_TOKENS if config.get(key) is not None}
        if tokens:
            text = json.dumps({"_from_model_config": True, **tokens}, indent=2)
            (destination / GENERATION_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    if (destination / GENERATION_CONFIG_FILE).is_file():
        _require_end_ids(read_json(destination / GENERATION_CONFIG_FILE), source)


def _require_end_ids(config: Mapping[str, Any], source: Path) -> None:
    """Refuses end tokens that are not ids.

    Raises:
        CheckpointError: They are something else.
    """
    ends = config.get(_END_TOKENS)
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends])) and ends is not None:
        named = GENERATION_CONFIG_FILE if (source / GENERATION_CONFIG_FILE).is_file() else CONFIG_FILE
        raise CheckpointError(
            f"{_END_TOKENS}: expected the id of a token, or a list of ids, got {reprlib.repr(ends)}.",
            where=str(source / named),
            fix=f"use the {named} that the model was published with.",
        )
