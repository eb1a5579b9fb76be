"""`awq2trt eval`: any number of models -> the perplexity of each on a text or on captions, or its score in a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from awq2trt.artifact.opening import is_exported
from awq2trt.errors import UsageError
from awq2trt.evaluation.results import (
    CAPTION,
    CHOICE,
    IMAGE_TASKS,
    CaptionedImages,
    EvalRequest,
    EvalResult,
    TaskExamples,
    TextWindows,
)
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.stages.opening import portable_name, refuse_missing_device
from awq2trt.stages.readiness import require_images, require_models

if TYPE_CHECKING:
    from awq2trt.evaluation.opening import EvaluatedModel
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.results import CaptionPerplexity, CaptionScore
    from awq2trt.evaluation.tasks import TaskScore

    Measured = Perplexity | TaskScore | CaptionPerplexity | CaptionScore
    Measure = Callable[[EvaluatedModel, str, Progress], Measured]
    """A model and its name, for the progress -> what is measured of it."""


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Perplexity or a task's score of every model, each as it is done.

    A device that is not there, and a task's file, captions or pictures that cannot be found, are refused at once.

    Raises:
        UsageError: There is no such device, task or model, or the text is shorter than a window.
    """
    require_models(request.models)
    _refuse_missing_device(request)
    measure = _measure(request.on)
    return (_evaluate(model, measure, request.device, progress) for model in request.models)


def _refuse_missing_device(request: EvalRequest) -> None:
    """Refuses a device that is not there; PyTorch need not see one on which only ONNX Runtime shall run."""
    if not all(is_exported(model) for model in request.models):
        refuse_missing_device(request.device)
    elif request.device != DEFAULT_DEVICE:
        from awq2trt.machine.gpu import require_gpu

        require_gpu(request.device)


def _evaluate(name: str, measure: Measure, device: str, progress: Progress) -> EvalResult:
    from awq2trt.evaluation.opening import PYTORCH, open_evaluated
    from awq2trt.machine.device import computing_on

    started = time.monotonic()
    model = open_evaluated(name, device)
    known = model.opened
    with computing_on(device if known.executor == PYTORCH else DEFAULT_DEVICE):
        measured = measure(model, portable_name(name), progress)
    return EvalResult(name, known.executor, known.scheme, measured, time.monotonic() - started)


def _measure(on: TextWindows | TaskExamples | CaptionedImages) -> Measure:
    if isinstance(on, TaskExamples):
        return _task(on)
    return _captions(on) if isinstance(on, CaptionedImages) else _text(on)


def _text(on: TextWindows) -> Measure:
    """Perplexity on the first windows of a text, which every model tokenizes for itself."""
    from awq2trt.evaluation.perplexity import first_windows
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import CHARACTERS_PER_TOKEN, first_tokens

    def measure(model: EvaluatedModel, name: str, progress: Progress) -> Perplexity:
        text = read_text(on.text, characters=on.windows * on.seqlen * CHARACTERS_PER_TOKEN, flag="--text")
        ids = first_tokens(model.opened.tokenizer, text, on.windows * on.seqlen)
        windows = first_windows(ids, on.windows, on.seqlen, where=on.text, bos=model.opened.bos)
        return model.perplexity(windows, progress, name)

    return measure


def _task(on: TaskExamples) -> Measure:
    """Score in a task, whose file is read now."""
    from awq2trt.evaluation.likelihood import tokenize
    from awq2trt.evaluation.tasks import read_task, score_task

    examples = read_task(on.task, on.data, on.limit)

    def measure(model: EvaluatedModel, name: str, progress: Progress) -> TaskScore:
        continuations = [continuation for example in examples for continuation in example.continuations]
        requests = [tokenize(model.opened.tokenizer, text, model.opened.bos) for text in continuations]
        return score_task(on.task, examples, model.scores(requests, progress, f"{on.task}, {name}"))

    return measure


def _captions(on: CaptionedImages) -> Measure:
    """Perplexity of what is said of pictures, or a task of theirs; the pictures are looked for now."""
    from awq2trt.evaluation.captions import CaptionedModel
    from awq2trt.evaluation.image_tasks import choose, require_rows, write_captions
    from awq2trt.evaluation.opening import TorchModel
    from awq2trt.images.pairs import read_pairs

    if on.task is not None and on.task not in IMAGE_TASKS:
        raise UsageError(
            f"got {on.task}, expected one of: {', '.join(IMAGE_TASKS)}.",
            where="--task",
            fix="tasks of text take --data instead of --images.",
        )
    pairs = read_pairs(on.images.expanduser())[: on.limit]
    require_rows(on.task, pairs)
    require_images(pairs)

    def measure(model: EvaluatedModel, name: str, progress: Progress) -> Measured:
        vision = model.source.vision if isinstance(model, TorchModel) else None
        if not isinstance(model, TorchModel) or vision is None:
            raise UsageError(
                "expected an original or a quantized checkpoint of a model that sees, got "
                f"{'a model of text' if isinstance(model, TorchModel) else 'an exported model'}.",
                where=f"{name}, --images {on.images}",
                fix="name such a model, or measure with --text or --task.",
            )
        captioned = CaptionedModel(model.source, vision, model.opened.tokenizer, model.opened.bos)
        if on.task == CAPTION:
            return write_captions(captioned, pairs, progress, f"captions, {name}")
        if on.task == CHOICE:
            return choose(captioned, pairs, progress, f"choices, {name}")
        return captioned.perplexity(pairs, progress, f"captions, {name}")

    return measure
