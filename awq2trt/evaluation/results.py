"""Requests and results of `awq2trt eval`: the stage returns a result for each model, and the report prints it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.recipe import DEFAULT_DEVICE

if TYPE_CHECKING:
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.tasks import TaskScore


@dataclass(frozen=True)
class TextWindows:
    """A text on which perplexity is measured.

        on = awq2trt.TextWindows("novel.txt", windows=2, seqlen=256)
        (result,) = awq2trt.evaluate("out/onnx", on)

    Attributes:
        text: A .txt or .jsonl file, or a data set's name.
        windows: How many windows of the text, from its start.
        seqlen: Tokens in a window.
    """

    text: str
    windows: int = 8
    seqlen: int = 1024


@dataclass(frozen=True)
class TaskExamples:
    """Examples of a task on which accuracy is measured.

        on = awq2trt.TaskExamples("piqa", Path("piqa-valid.jsonl"), limit=2)
        (result,) = awq2trt.evaluate("out/onnx", on)

    Attributes:
        task: A name in `tasks.TASKS`.
        data: Its JSONL file.
        limit: Number of examples from the start of the file; None for all.
    """

    task: str
    data: Path
    limit: int | None = None


CAPTION: Final = "caption"
CHOICE: Final = "choice"
IMAGE_TASKS: Final = (CAPTION, CHOICE)
"""What a model that sees may be asked to do: write captions, or choose answers."""


@dataclass(frozen=True)
class CaptionedImages:
    """Pictures with texts about them.

        on = awq2trt.CaptionedImages(Path("photos"), limit=2)
        (result,) = awq2trt.evaluate("llava-1.5-7b-hf", on)

    Attributes:
        images: A folder of pictures with captions beside them, or a .jsonl file with `image` and `messages`.
        limit: Number of pictures, from the first; None for all.
        task: A name in `IMAGE_TASKS`; None for perplexity of what is said, given the pictures.
    """

    images: Path
    limit: int | None = None
    task: str | None = None


@dataclass(frozen=True)
class CaptionPerplexity:
    """The perplexity of captions, given their pictures.

    Attributes:
        value: exp(mean NLL of all tokens of all captions).
        caption_nll: Mean NLL of a token, for each caption.
        tokens: Number of tokens in all captions.
    """

    value: float
    caption_nll: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class CaptionScore:
    """Captions that a model wrote.

    Attributes:
        cider: CIDEr-D of all together, 0 to 10; papers show 100 times this.
        scores: CIDEr-D of each caption.
        captions: The captions that it wrote.
    """

    cider: float
    scores: tuple[float, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class EvalRequest:
    """`awq2trt eval`.

    Attributes:
        models: Any number of original models, quantized checkpoints and ONNX models.
        on: The text, task or images to measure them on.
        device: Where PyTorch or ONNX Runtime computes; a model built for `cuda` always runs on the GPU.
    """

    models: tuple[str, ...]
    on: TextWindows | TaskExamples | CaptionedImages
    device: str = DEFAULT_DEVICE


@dataclass(frozen=True)
class EvalResult:
    """What was measured of one model.

        (result,) = awq2trt.evaluate("out/onnx", "novel.txt")
        print(f"{result.model} in {result.executor}: {result.measured.value:.2f}")

    Attributes:
        model: Its name, as the user gave it.
        executor: What ran it: `PyTorch`, or `ONNX Runtime` with its device.
        scheme: How it is quantized; None for an original.
        measured: A perplexity, with the windows or captions that it was measured on, or a task's score, with the
            outcome of every example, or the score of captions, with the captions.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    measured: Perplexity | TaskScore | CaptionPerplexity | CaptionScore
    seconds: float
