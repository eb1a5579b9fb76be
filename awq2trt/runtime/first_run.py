"""Checks a model's golden outputs once on every GPU that runs it.

In: a backend on a GPU. Out: nothing, or an error, before the first answer. A file in the user's cache directory records
that a model has passed on a GPU with a version of ONNX Runtime, so that later runs start at once.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from awq2trt.artifact.golden import DESCRIPTION_FILE, read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ToolError
from awq2trt.runtime.backend import Backend
from awq2trt.runtime.golden import compare_golden


def check_first_run(backend: Backend, artifact: Artifact, gpu: str) -> bool:
    """Runs the golden calls if this model has not passed them on this GPU yet.

    Args:
        backend: The backend of the model; its conversation is forgotten.
        artifact: The model's artifact.
        gpu: Name of the GPU.

    Returns:
        Whether the calls were run.

    Raises:
        ToolError: A call fails.
    """
    import onnxruntime

    runtime_version = str(onnxruntime.__version__)
    mark = passed_mark(artifact.manifest.fingerprint, gpu, runtime_version)
    if mark.is_file() or not (artifact.directory / DESCRIPTION_FILE).is_file():
        return False
    results = compare_golden(backend, read_golden(artifact.directory))
    backend.reset()
    failed = [result for result in results if not result.passed]
    if failed:
        worst = max(failed, key=lambda result: result.error)
        raise ToolError(
            f"{gpu} does not give the model's golden outputs: relative error {worst.error:.2g} in call {worst.name}.",
            where=str(artifact.directory),
            fix="report it with the output of `awq2trt doctor`; --no-golden runs the model anyway.",
        )
    write_mark(mark, f"{gpu}, ONNX Runtime {runtime_version}")
    return True


def write_mark(mark: Path, text: str) -> None:
    """Records that a model has passed; `text` is for people who look into the file."""
    with suppress(OSError):  # the home directory is not writable: then outputs are checked at every start
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{text}\n", encoding="utf-8")


def passed_mark(*parts: str) -> Path:
    """Returns the file that records that a model has passed.

    Args:
        parts: The model's fingerprint, and names of everything that runs it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return cache / "awq2trt" / "golden" / key
