"""`awq2trt eval`: any number of models -> each one's perplexity on a text or on captions, or its score in a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from awq2trt.artifact.opening import is_exported
from awq2trt.errors import UsageError
from awq2trt.evaluation.results import CaptionedImages, EvalRequest, EvalResult, TaskExamples, TextWindows
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.stages.opening import portable_name, refuse_missing_device
from awq2trt.stages.readiness import require_images, require_models

if TYPE_CHECKING:
    from awq2trt.evaluation.opening import EvaluatedModel
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.results import CaptionPerplexity
    from awq2trt.evaluation.tasks import TaskScore

    Measure = Callable[[EvaluatedModel, str, Progress], Perplexity | TaskScore | CaptionPerplexity]
    """Takes a model and its name, for the progress; returns the measurement."""


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Yields the perplexity or a task's score of every model, each when it is measured.

    A missing device, task file, caption or picture is refused at once.

    Raises:
        UsageError: There is no such device, task or model, or the text is shorter than a window.
    """
    require_models(request.models)
    _refuse_missing_device(request)
    measure = _measure(request.on)
    return (_evaluate(model, measure, request.device, progress) for model in request.models)


def _refuse_missing_device(request: EvalRequest) -> None:
    """Refuses a missing device; one on which only ONNX Runtime will run need not be visible to PyTorch."""
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
    """Measures perplexity on the first windows of a text, which every model tokenizes for itself."""
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
    """Measures the score in a task, whose file is read at once."""
    from awq2trt.evaluation.likelihood import tokenize
    from awq2trt.evaluation.tasks import read_task, score_task

    examples = read_task(on.task, on.data, on.limit)

    def measure(model: EvaluatedModel, name: str, progress: Progress) -> TaskScore:
        continuations = [continuation for example in examples for continuation in example.continuations]
        requests = [tokenize(model.opened.tokenizer, text, model.opened.bos) for text in continuations]
        return score_task(on.task, examples, model.scores(requests, progress, f"{on.task}, {name}"))

    return measure


def _captions(on: CaptionedImages) -> Measure:
    """Measures perplexity of captions given their pictures, which are looked for at once."""
    from awq2trt.evaluation.captions import CaptionedModel
    from awq2trt.evaluation.opening import TorchModel
    from awq2trt.images.pairs import read_pairs

    pairs = read_pairs(on.images.expanduser())[: on.limit]
    require_images(pairs)

    def measure(model: EvaluatedModel, name: str, progress: Progress) -> CaptionPerplexity:
        vision = model.source.vision if isinstance(model, TorchModel) else None
        if not isinstance(model, TorchModel) or vision is None:
            raise UsageError(
                "expected the original or a quantized checkpoint of a model that sees images, got "
                f"{'a model of text' if isinstance(model, TorchModel) else 'an exported model'}.",
                where=f"{name}, --images {on.images}",
                fix="name such a model, or measure with --text or --task.",
            )
        captioned = CaptionedModel(model.source, vision, model.opened.tokenizer, model.opened.bos)
        return captioned.perplexity(pairs, progress, f"captions, {name}")

    return measure
