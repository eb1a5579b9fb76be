"""awq2trt: a Hugging Face checkpoint to a 4-bit (W4A16) TensorRT engine, on any machine.

    import awq2trt

    checkpoint, onnx, engine = awq2trt.build("smollm2-135m-instruct", "out", target="rtx4090")
    print(awq2trt.load(onnx.directory).generate_text("What is the capital of France?"))

`awq2trt.api` documents the functions. A name is imported from its module when it is first used, so that `import
awq2trt` itself loads no library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from awq2trt.api import build, check, check_golden, evaluate, export, load, quantize, quantize_on_ranks
    from awq2trt.artifact.manifest import Artifact, Manifest
    from awq2trt.checking.outcome import CheckOutcome, GoldenOutcome
    from awq2trt.errors import (
        ArtifactError,
        Awq2trtError,
        BuildError,
        CalibrationError,
        CheckpointError,
        PeerFailedError,
        RankLostError,
        ToolError,
        UnsupportedError,
        UsageError,
    )
    from awq2trt.evaluation.results import CaptionedImages, EvalResult, TaskExamples, TextWindows
    from awq2trt.progress import Progress, SilentProgress, terminal_progress
    from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe, load_recipe
    from awq2trt.runtime.chat import Message
    from awq2trt.runtime.loaded_model import Model
    from awq2trt.runtime.sampling import Sampling
    from awq2trt.version import __version__

__all__ = [
    "Artifact",
    "ArtifactError",
    "Awq2trtError",
    "BuildError",
    "BuildOptions",
    "CalibrationError",
    "CaptionedImages",
    "CheckOutcome",
    "CheckpointError",
    "EvalResult",
    "ExportOptions",
    "GoldenOutcome",
    "Manifest",
    "Message",
    "Model",
    "PeerFailedError",
    "Progress",
    "QuantizeOptions",
    "RankLostError",
    "Recipe",
    "Sampling",
    "SilentProgress",
    "TaskExamples",
    "TextWindows",
    "ToolError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "build",
    "check",
    "check_golden",
    "evaluate",
    "export",
    "load",
    "load_recipe",
    "quantize",
    "quantize_on_ranks",
    "terminal_progress",
]

_NAMES: Final = {
    "api": ("build", "check", "check_golden", "evaluate", "export", "load", "quantize", "quantize_on_ranks"),
    "artifact.manifest": ("Artifact", "Manifest"),
    "checking.outcome": ("CheckOutcome", "GoldenOutcome"),
    "errors": (
        "ArtifactError",
        "Awq2trtError",
        "BuildError",
        "CalibrationError",
        "CheckpointError",
        "PeerFailedError",
        "RankLostError",
        "ToolError",
        "UnsupportedError",
        "UsageError",
    ),
    "evaluation.results": ("CaptionedImages", "EvalResult", "TaskExamples", "TextWindows"),
    "progress": ("Progress", "SilentProgress", "terminal_progress"),
    "recipe": ("BuildOptions", "ExportOptions", "QuantizeOptions", "Recipe", "load_recipe"),
    "runtime.chat": ("Message",),
    "runtime.loaded_model": ("Model",),
    "runtime.sampling": ("Sampling",),
    "version": ("__version__",),
}
"""Public names by the module that has them. The imports above tell type checkers the same; a test compares the two."""

_HOMES: Final = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # with a visible `__getattr__`, type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Imports a public name from its module."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
