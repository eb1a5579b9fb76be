"""Golden inputs and outputs: a short conversation and the scores that must follow, in small files beside each model.

In: calls of a decoder with their expected logits (`awq2trt.checking.golden` computes them in PyTorch).
Out, and back in, in a model's directory:

- `golden.json`: the calls in order: name, tokens, position, which of them start a conversation, how far logits may be
  off;
- `golden.npz`: `NAME.input_ids` int64 [1, S], `NAME.cache_position` int64 [1], `NAME.logits` float32 [1, 1, V];
- raw little-endian files of the calls that start a conversation, for `trtexec --loadInputs=input_ids:FILE,...`.

A decoder that reads embeddings has `NAME.inputs_embeds` beside its tokens in a raw file, in its own type, and with
deepstack `NAME.deepstack_embeds`, which are zeros, since these conversations are of text. A model that sees has an
image, in both: the inputs of its vision graph, `vision.pixel_values` in float16 and whole numbers in int64, and what
must come out, `vision.image_embeddings` float32 [pieces, W]. A decoder that takes its rotary tables as inputs has them
in raw files, in its own type, for a conversation of text. The conversations of a decoder that attends to images begin
with the image, and what it then reads beside tokens is in raw files, too.

Caches are not stored: slots from `cache_position` on are not read (`plugins/FORMAT.md`), so a call at position 0 works
with any finite cache, and calls at later positions continue the conversation before them. It needs only NumPy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.arrays import read_arrays, write_arrays
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import read_json, reading
from awq2trt.io_contract import (
    CACHE_POSITION,
    DEEPSTACK_EMBEDS,
    IMAGE_EMBEDDINGS,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    PIXEL_VALUES,
    VISION,
)

DESCRIPTION_FILE: Final = "golden.json"
ARRAYS_FILE: Final = "golden.npz"

FORMAT_VERSION: Final = 1

TABLES: Final = "tables"
"""Key of golden.json with the files of a decoder's tables."""

ATTENDED: Final = "attended"
"""Key of golden.json, of the image: whether conversations begin with it."""

_DTYPES: Final = {INPUT_IDS: "<i8", CACHE_POSITION: "<i8", LOGITS: "<f4", IMAGE_EMBEDDINGS: "<f4"}

_AGAIN: Final = "export the model again."

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")

_LARGEST: Final = 1 << 31
"""A limit above any token id or position."""


@dataclass(frozen=True)
class GoldenCall:
    """One call of the decoder.

    Attributes:
        name: Name of the call, e.g. `prefill`.
        tokens: The new tokens.
        position: Cache slot of the first token; 0 starts a conversation, anything else continues the call before.
        logits: Scores of the next token, float32 [V].
        embeddings: Embeddings of the tokens, [S, H] in the decoder's type, if it reads embeddings and the call starts a
            conversation; they are written, and not read again, since whoever runs the call has the embedding's graph.
        deepstack: What such a decoder's first blocks add for them, if it has deepstack: zeros, [S, channels].
    """

    name: str
    tokens: tuple[int, ...]
    position: int
    logits: NDArray[np.float32]
    embeddings: NDArray[np.generic] | None = None
    deepstack: NDArray[np.generic] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Inputs and outputs under the names and shapes of the I/O contract, logits in fp32."""
        return {
            INPUT_IDS: np.asarray([self.tokens], _DTYPES[INPUT_IDS]),
            CACHE_POSITION: np.asarray([self.position], _DTYPES[CACHE_POSITION]),
            LOGITS: self.logits.astype(_DTYPES[LOGITS])[None, None],
        }


@dataclass(frozen=True)
class GoldenImage:
    """An image, and what the vision graph must make of it.

    Attributes:
        inputs: Inputs of the graph by name, float16 or int64.
        embeddings: float32 [pieces, H].
        relative_tolerance: How far an executor may be off, as `Golden.relative_tolerance` counts it.
    """

    inputs: Mapping[str, NDArray[Any]]
    embeddings: NDArray[np.float32]
    relative_tolerance: float

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Input and output under the names of the I/O contract, embeddings in fp32."""
        return {**self.inputs, IMAGE_EMBEDDINGS: self.embeddings.astype(_DTYPES[IMAGE_EMBEDDINGS])}


@dataclass(frozen=True)
class Golden:
    """The outputs that a model must give.

    Attributes:
        text: The text that the tokens come from.
        relative_tolerance: How far the logits of an executor may be off: the norm of the difference, over the norm of
            the expected logits around their mean.
        calls: The calls, in order.
        image: What it must see; None for a model of text.
        tables: Inputs of the decoder that are the same in every call, by name, in their own type; like embeddings, they
            are written and not read again.
        attended: Whether conversations begin with the image's token, since the decoder attends to images.
    """

    text: str
    relative_tolerance: float
    calls: tuple[GoldenCall, ...]
    image: GoldenImage | None = None
    tables: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    attended: bool = False


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over the norm of `expected` around its mean; NaN if anything is NaN.

    It is measured around the mean, since a constant added to all logits changes no probability and would only hide
    errors.
    """
    wide = expected.astype(np.float64)
    scale = np.linalg.norm(wide - wide.mean())
    return float(np.linalg.norm(got.astype(np.float64) - wide) / max(scale, np.finfo(np.float64).tiny))


def write_golden(golden: Golden, directory: Path) -> tuple[Path, ...]:
    """Writes the files into a model's directory; returns their paths."""
    written = [directory / ARRAYS_FILE]
    arrays = {call.name: call.arrays() for call in golden.calls}
    raw = {call.name: _raw_arrays(call) for call in golden.calls}
    dtypes = {INPUT_IDS: "int64", CACHE_POSITION: "int64", LOGITS: "float32"}
    dtypes |= {name: str(array.dtype.name) for call in raw.values() for name, array in call.items()}
    if golden.image is not None:
        arrays[VISION] = raw[VISION] = golden.image.arrays()
    flat = {f"{call}.{name}": array for call, named in arrays.items() for name, array in named.items()}
    write_arrays(directory / ARRAYS_FILE, flat)
    files = {call: {name: f"golden.{call}.{name}.bin" for name in named} for call, named in raw.items()}
    table_files = {name: f"golden.{name}.bin" for name in golden.tables}
    raw_files = [(files[call][name], array) for call, named in raw.items() for name, array in named.items()]
    raw_files += [(table_files[name], table) for name, table in golden.tables.items()]
    for file, array in raw_files:
        written.append(directory / file)
        written[-1].write_bytes(np.ascontiguousarray(array).tobytes())
    description = {
        "format_version": FORMAT_VERSION,
        "text": golden.text,
        "relative_tolerance": golden.relative_tolerance,
        "dtypes": dtypes,
        "calls": [
            {
                "name": call.name,
                "tokens": list(call.tokens),
                "cache_position": call.position,
                "files": files[call.name],
            }
            for call in golden.calls
        ],
    }
    if golden.tables:
        description[TABLES] = {"files": table_files}
    if golden.image is not None:
        said: dict[str, object] = {"files": files[VISION], "relative_tolerance": golden.image.relative_tolerance}
        description[VISION] = {**said, ATTENDED: True} if golden.attended else said
    _write_description(directory / DESCRIPTION_FILE, description)
    return (directory / DESCRIPTION_FILE, *written)


def _raw_arrays(call: GoldenCall) -> dict[str, NDArray[Any]]:
    """What goes into files of its own: of a call that starts a conversation, all that goes in and comes out."""
    if call.position:
        return {}
    read = {INPUTS_EMBEDS: call.embeddings, DEEPSTACK_EMBEDS: call.deepstack}
    return call.arrays() | {name: array[None] for name, array in read.items() if array is not None}


def _write_description(path: Path, description: Mapping[str, Any]) -> None:
    text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def loosen_golden_(directory: Path, error: float) -> None:
    """Allows an executor a larger error, because of a cause that is independent of those already allowed for.

    Args:
        directory: The model's directory, whose golden.json is changed; nothing happens if it has none.
        error: The error of that cause, measured like `Golden.relative_tolerance`.

    Raises:
        ArtifactError: golden.json is damaged.
    """
    path = directory / DESCRIPTION_FILE
    if not path.is_file():
        return
    with reading("golden outputs", path, fix=_AGAIN, error=ArtifactError):
        description = read_json(path, fix=_AGAIN, error=ArtifactError)
        description["relative_tolerance"] = math.hypot(float(description["relative_tolerance"]), error)
    _write_description(path, description)


def read_golden(directory: Path) -> Golden:
    """Reads the files of a model's directory.

    Raises:
        ArtifactError: The files are missing or damaged.
    """
    path = directory / DESCRIPTION_FILE
    if not path.is_file():
        raise ArtifactError(
            f"no {DESCRIPTION_FILE}: the model has no golden outputs.", where=str(directory), fix="export it again."
        )
    with reading("golden outputs", path, fix=_AGAIN, error=ArtifactError):
        description = read_json(path, fix=_AGAIN, error=ArtifactError)
        if description["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {description['format_version']!r}, expected {FORMAT_VERSION}")
        arrays = read_arrays(directory / ARRAYS_FILE, fix=_AGAIN)
        calls = tuple(_read_call(entry, arrays) for entry in description["calls"])
        image = _read_image(description[VISION], arrays) if VISION in description else None
        attended = bool(description.get(VISION, {}).get(ATTENDED, False))
        tolerance = float(description["relative_tolerance"])
        return Golden(str(description["text"]), tolerance, calls, image, attended=attended)


def _read_image(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> GoldenImage:
    inputs = {name: arrays[f"{VISION}.{name}"] for name in entry["files"]}
    embeddings = inputs.pop(IMAGE_EMBEDDINGS).astype(np.float32)
    if PIXEL_VALUES not in inputs:
        raise ValueError(f"the golden image has no {PIXEL_VALUES}")
    flat = embeddings.reshape(-1, embeddings.shape[-1])  # files of older versions have an axis of one image
    return GoldenImage(inputs, flat, float(entry["relative_tolerance"]))


def _read_call(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> GoldenCall:
    """Reads one call from golden.json; its name becomes part of file names, and a word in a script.

    Raises:
        ValueError: It is not a valid call.
        LookupError, TypeError: A part is missing or has the wrong type.
    """
    name, tokens, position = entry["name"], entry["tokens"], entry["cache_position"]
    if not _NAME.fullmatch(name):
        raise ValueError(f"name of a call: expected letters, digits, - and _, got {name!r}")
    if not tokens or not all(type(number) is int and 0 <= number < _LARGEST for number in (*tokens, position)):
        raise ValueError(f"call {name}: expected token ids and a position, got {tokens!r:.60} and {position!r:.60}")
    return GoldenCall(name, tuple(tokens), position, arrays[f"{name}.{LOGITS}"].astype(np.float32)[0, 0])
