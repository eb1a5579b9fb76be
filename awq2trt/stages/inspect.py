"""`awq2trt inspect`: a directory -> what it holds and, for a checkpoint, a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.artifact.manifest import (
    MANIFEST_FILE,
    Artifact,
)
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY

if TYPE_CHECKING:
    from awq2trt.report.inspection import Inspection


def inspect_stage(directory: Path) -> tuple[Artifact, Inspection | None]:
    """Describes what a directory holds, after verifying every hash; for a checkpoint also what it consists of."""
    from awq2trt.report.inspection import inspect_checkpoint

    artifact = Artifact.open(directory)
    return artifact, inspect_checkpoint(artifact) if artifact.manifest.kind == "checkpoint" else None


def report_stage(directory: Path, output: Path, results: Path | None = None) -> Path:
    """Writes a checkpoint's report as one HTML page.

    Args:
        directory: A checkpoint, or the directory that `build` wrote.
        output: The page.
        results: A file that `eval --json` wrote, whose perplexities become bars.

    Raises:
        UsageError: `results` is not such a file.
    """
    from awq2trt.report.html import read_perplexities, render_page
    from awq2trt.report.inspection import input_channels, inspect_checkpoint, worst_block

    inside = directory / CHECKPOINT_DIRECTORY
    built = not (directory / MANIFEST_FILE).is_file() and (inside / MANIFEST_FILE).is_file()
    artifact = Artifact.open(inside if built else directory, kind="checkpoint")
    inspection = inspect_checkpoint(artifact)
    channels = input_channels(artifact, worst_block(inspection))
    perplexities = read_perplexities(results) if results else []
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_page(inspection, channels, perplexities), encoding="utf-8")
    return output
