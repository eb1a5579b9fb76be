"""Opens weights that a user names: an original model, or a quantized checkpoint."""

from __future__ import annotations

from pathlib import Path

from awq2trt.artifact.manifest import (
    MANIFEST_FILE,
    Artifact,
)
from awq2trt.models.sources.base import QUANTIZATION_KEY, ModelSource, read_config
from awq2trt.models.sources.eight_bit import EightBits
from awq2trt.models.sources.opening import open_source


def open_any(model: str) -> tuple[ModelSource, str | None]:
    """Returns an original model, or a quantized checkpoint and its scheme."""
    from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint

    path = Path(model).expanduser()
    config = read_config(path) if path.is_dir() else {}
    if QUANTIZATION_KEY in config and EightBits.of(config, str(path)) is None:
        if (path / MANIFEST_FILE).is_file():
            Artifact.open(path, kind="checkpoint")
        checkpoint = QuantizedCheckpoint.open(path)
        return checkpoint, checkpoint.scheme.describe()
    return open_source(model), None
