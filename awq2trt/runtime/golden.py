"""Compares an executor with a model's golden outputs. It needs only NumPy, so that `run` can do it, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from awq2trt.artifact.golden import Golden, GoldenImage, relative_error
from awq2trt.io_contract import VISION
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.runtime.backend import Backend, SeeingBackend


@dataclass(frozen=True)
class GoldenResult:
    """The comparison of one call with its golden output.

    Attributes:
        name: Name of the call, or of the vision graph.
        error: The relative error, measured like `Golden.relative_tolerance`.
        top1: Whether the best token is the expected one; None for a graph without scores.
        passed: Whether the error is a number within the tolerance.
    """

    name: str
    error: float
    top1: bool | None
    passed: bool


def compare_golden(backend: Backend, golden: Golden) -> list[GoldenResult]:
    """Runs the calls and compares their outputs; first the vision graph's for the golden image, if there is one."""
    results, shown = [], list[PreparedImage]()
    if golden.image is not None and isinstance(backend, SeeingBackend):
        shown = [_prepared(golden.image)]
        error = relative_error(backend.see(shown[0]), golden.image.embeddings)
        results.append(GoldenResult(VISION, error, None, passed=error <= golden.image.relative_tolerance))
    for call in golden.calls:
        if call.position == 0:
            backend.reset()
            if golden.attended and isinstance(backend, SeeingBackend):
                backend.show(shown)
        got = backend.forward(call.tokens)
        error = relative_error(got, call.logits)
        results.append(
            GoldenResult(
                name=call.name,
                error=error,
                top1=bool(got.argmax() == call.logits.argmax()),
                passed=error <= golden.relative_tolerance,  # False for NaN
            )
        )
    return results


def _prepared(image: GoldenImage) -> PreparedImage:
    """The image as a backend takes it."""
    inputs = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in image.inputs.items()
    }
    return PreparedImage(inputs, len(image.embeddings))
