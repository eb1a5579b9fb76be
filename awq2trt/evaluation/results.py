"""What `awq2trt eval` is asked and what it finds, model by model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.recipe import DEFAULT_DEVICE

if TYPE_CHECKING:
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.tasks import TaskScore


if TYPE_CHECKING:
    from awq2trt.evaluation.perplexity import Perplexity


@dataclass(frozen=True)
class EvalResult:
    """Perplexity of one model.

    Attributes:
        model: As the user named it.
        executor: What ran it: `PyTorch` or `ONNX Runtime`.
        scheme: How it is quantized; None for an original.
        perplexity: With the windows it was measured on.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    perplexity: Perplexity
    seconds: float


@dataclass(frozen=True)
class TaskResult:
    """A task's score of one model.

    Attributes:
        model: As the user named it.
        executor: What ran it: `PyTorch` or `ONNX Runtime`.
        scheme: How it is quantized; None for an original.
        score: With every example's outcome.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    score: TaskScore
    seconds: float


@dataclass(frozen=True)
class EvalRequest:
    """`awq2trt eval`.

    Attributes:
        models: Original models, quantized checkpoints, ONNX models, lowered or not, in any number.
        text: A .txt or .jsonl file, or a data set's name.
        windows: How many windows of the text, from its start.
        seqlen: Tokens in a window.
        device: Where PyTorch or ONNX Runtime computes; what was built for `cuda` runs there anyway.
    """

    models: tuple[str, ...]
    text: str
    windows: int
    seqlen: int
    device: str = DEFAULT_DEVICE


@dataclass(frozen=True)
class TaskRequest:
    """`awq2trt eval --task`.

    Attributes:
        models: Original models, quantized checkpoints, ONNX models, lowered or not, in any number.
        task: A name in `tasks.TASKS`.
        data: Its JSONL file.
        limit: Examples, from the start of the file; None for all.
        device: Where PyTorch or ONNX Runtime computes; what was built for `cuda` runs there anyway.
    """

    models: tuple[str, ...]
    task: str
    data: Path
    limit: int | None = None
    device: str = DEFAULT_DEVICE
