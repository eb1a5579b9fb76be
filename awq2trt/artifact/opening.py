"""Opens a model that a user names: an exported model, or an engine's directory, which also holds one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from awq2trt.artifact.manifest import (
    MANIFEST_FILE,
    Artifact,
    Verify,
)
from awq2trt.errors import UsageError

CHECKPOINT_DIRECTORY: Final = "checkpoint"

ONNX_DIRECTORY: Final = "onnx"
"""The directory that `awq2trt build -o DIR` makes in DIR, beside one named after the target."""

CHECK_DIRECTORY: Final = "check"
"""The directory that `awq2trt check DIR` adds."""


def open_model(directory: Path, verify: Verify = "full") -> Artifact:
    """Opens an ONNX model or an engine's directory, which also holds one.

    Args:
        directory: The directory.
        verify: As of `Artifact.open`.

    Raises:
        ArtifactError: It is not complete.
        UsageError: The directory contains several models, or a checkpoint.
    """
    below = sorted(path.parent.name for path in directory.glob(f"*/{MANIFEST_FILE}"))
    if below and not (directory / MANIFEST_FILE).is_file():
        models = [name for name in below if name != CHECKPOINT_DIRECTORY]
        raise UsageError(
            f"expected a model's directory, got one that contains {', '.join(below)}.",
            where=str(directory),
            fix=f"name one of them, e.g. {directory / (models or below)[-1]}.",
        )
    artifact = Artifact.open(directory, verify=verify)
    if artifact.manifest.kind == "checkpoint":
        raise UsageError(
            "expected an ONNX model or an engine, got a checkpoint.",
            where=str(directory),
            fix=f"export it first: awq2trt export {directory} -o DIR",
        )
    return artifact


def is_exported(model: str) -> bool:
    """Whether this is an ONNX model or an engine's directory, which also holds one."""
    manifest = Path(model) / MANIFEST_FILE
    return manifest.is_file() and Artifact.open(Path(model), verify="size").manifest.kind != "checkpoint"
