"""Golden inputs and outputs: a short conversation and the scores that must follow, in small files beside each model.

In: calls of a decoder with their expected logits (`awq2trt.checking.golden` computes them in PyTorch).
Out, and back in, in a model's directory:

- `golden.json`: the calls in order: name, tokens, position, which of them start a conversation, how far logits may be
  off;
- `golden.npz`: `NAME.input_ids` int64 [1, S], `NAME.cache_position` int64 [1], `NAME.logits` float32 [1, 1, V];
- raw little-endian files of the calls that start a conversation, for `trtexec --loadInputs=input_ids:FILE,...`.

Caches are not stored: slots from `cache_position` on are not read (`plugins/FORMAT.md`), so a call at position 0 works
with any finite cache, and calls at later positions continue the conversation before them. It needs only NumPy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.arrays import read_arrays, write_arrays
from awq2trt.errors import ArtifactError
from awq2trt.foreign_files import read_json, reading
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS

DESCRIPTION_FILE: Final = "golden.json"
ARRAYS_FILE: Final = "golden.npz"

FORMAT_VERSION: Final = 1

_DTYPES: Final = {INPUT_IDS: "<i8", CACHE_POSITION: "<i8", LOGITS: "<f4"}

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
    """

    name: str
    tokens: tuple[int, ...]
    position: int
    logits: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Inputs and outputs under the names and shapes of the I/O contract, logits in fp32."""
        return {
            INPUT_IDS: np.asarray([self.tokens], _DTYPES[INPUT_IDS]),
            CACHE_POSITION: np.asarray([self.position], _DTYPES[CACHE_POSITION]),
            LOGITS: self.logits.astype(_DTYPES[LOGITS])[None, None],
        }


@dataclass(frozen=True)
class Golden:
    """The outputs that a model must give.

    Attributes:
        text: The text that the tokens come from.
        relative_tolerance: How far the logits of an executor may be off: the norm of the difference, over the norm of
            the expected logits around their mean.
        calls: The calls, in order.
    """

    text: str
    relative_tolerance: float
    calls: tuple[GoldenCall, ...]


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
    entries = []
    arrays = {call.name: call.arrays() for call in golden.calls}
    flat = {f"{call}.{name}": array for call, named in arrays.items() for name, array in named.items()}
    write_arrays(directory / ARRAYS_FILE, flat)
    for call in golden.calls:
        files = {}
        for name, array in arrays[call.name].items() if call.position == 0 else ():
            files[name] = f"golden.{call.name}.{name}.bin"
            (directory / files[name]).write_bytes(array.tobytes())
            written.append(directory / files[name])
        entries.append(
            {"name": call.name, "tokens": list(call.tokens), "cache_position": call.position, "files": files}
        )
    description = {
        "format_version": FORMAT_VERSION,
        "text": golden.text,
        "relative_tolerance": golden.relative_tolerance,
        "dtypes": {INPUT_IDS: "int64", CACHE_POSITION: "int64", LOGITS: "float32"},
        "calls": entries,
    }
    _write_description(directory / DESCRIPTION_FILE, description)
    return (directory / DESCRIPTION_FILE, *written)


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
        return Golden(str(description["text"]), float(description["relative_tolerance"]), calls)


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
