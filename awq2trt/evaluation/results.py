"""What `awq2trt eval` is asked, and what it finds, model by model: what the stage hands over and the report prints."""

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
        limit: Examples, from the start of the file; None for all.
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
    """Pictures, and what is said of them.

        on = awq2trt.CaptionedImages(Path("photos"), limit=2)
        (result,) = awq2trt.evaluate("llava-1.5-7b-hf", on)

    Attributes:
        images: A folder of pictures with captions beside them, or a .jsonl file with `image` and `messages`.
        limit: Pictures, from the first on; None for all.
        task: A name in `IMAGE_TASKS`; None for perplexity of what is said, given the pictures.
    """

    images: Path
    limit: int | None = None
    task: str | None = None


@dataclass(frozen=True)
class CaptionPerplexity:
    """Perplexity of captions, given their pictures.

    Attributes:
        value: exp(mean NLL of all tokens of all captions).
        caption_nll: Mean NLL of a token, caption by caption.
        tokens: Of all captions together.
    """

    value: float
    caption_nll: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class CaptionScore:
    """Captions that a model wrote.

    Attributes:
        cider: CIDEr-D of all together, 0 to 10; papers show 100 times this.
        scores: Of each.
        captions: What it wrote.
    """

    cider: float
    scores: tuple[float, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class EvalRequest:
    """`awq2trt eval`.

    Attributes:
        models: Original models, quantized checkpoints, ONNX models, in any number.
        on: What they are measured on.
        device: Where PyTorch or ONNX Runtime computes; what was built for `cuda` runs there anyway.
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
        model: As the user named it.
        executor: What ran it: `PyTorch`, or `ONNX Runtime` with its device.
        scheme: How it is quantized; None for an original.
        measured: Perplexity with the windows or captions it was measured on, or a task's score with every example's
            outcome, or the captions that it wrote with theirs.
        seconds: Wall time.
    """

    model: str
    executor: str
    scheme: str | None
    measured: Perplexity | TaskScore | CaptionPerplexity | CaptionScore
    seconds: float
