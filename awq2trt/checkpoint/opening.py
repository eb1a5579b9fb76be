"""Opens what a user names as weights: an original model, or a quantized checkpoint."""

from __future__ import annotations

from pathlib import Path

from awq2trt.artifact.manifest import (
    MANIFEST_FILE,
    Artifact,
)
from awq2trt.models.sources.base import ModelSource, read_config
from awq2trt.models.sources.opening import open_source


def open_any(model: str) -> tuple[ModelSource, str | None]:
    """An original model, or a quantized checkpoint and its scheme."""
    from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint

    path = Path(model).expanduser()
    if path.is_dir() and "quantization_config" in read_config(path):
        if (path / MANIFEST_FILE).is_file():
            Artifact.open(path, kind="checkpoint")
        checkpoint = QuantizedCheckpoint.open(path)
        return checkpoint, checkpoint.scheme.describe()
    return open_source(model), None
