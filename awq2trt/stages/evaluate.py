"""`awq2trt eval`: any number of models -> each one's perplexity on a text or on captions, or its score in a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from awq2trt.artifact.manifest import Artifact
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
from awq2trt.stages.readiness import require_images, require_whole_model

if TYPE_CHECKING:
    from awq2trt.evaluation.opening import Candidate, EvaluatedModel
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.results import CaptionPerplexity, CaptionScore
    from awq2trt.evaluation.tasks import TaskScore

    Work = Callable[[EvaluatedModel, Progress], Perplexity | TaskScore | CaptionPerplexity | CaptionScore]
    """Takes a loaded model; returns the measurement."""

    Measure = Callable[[Candidate, str], Work]
    """Takes a model that is not loaded yet, and its name; returns work that will not refuse anything later."""


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Yields the perplexity or a task's score of every model, each when it is measured.

    Everything that can be refused is refused at once: a text, a task's file or pictures that cannot be read, a model
    that lacks a tensor or has too few positions, a missing device.

    Raises:
        Awq2trtError: Something is.
    """
    measure = _measure(request.on)
    candidates = [_found(model, progress) for model in request.models]
    _refuse_missing_device(request)
    works = [
        measure(candidate, portable_name(name)) for candidate, name in zip(candidates, request.models, strict=True)
    ]
    together = zip(request.models, candidates, works, strict=True)
    return (_evaluate(name, candidate, work, request.device, progress) for name, candidate, work in together)


def _found(name: str, progress: Progress) -> Candidate:
    """A model of which everything is there."""
    from awq2trt.evaluation.opening import find_candidate

    candidate = find_candidate(name)
    if not isinstance(candidate.stored, Artifact):
        require_whole_model(candidate.stored, progress)
    return candidate


def _refuse_missing_device(request: EvalRequest) -> None:
    """Refuses a missing device; one on which only ONNX Runtime will run need not be visible to PyTorch."""
    if not all(is_exported(model) for model in request.models):
        refuse_missing_device(request.device)
    elif request.device != DEFAULT_DEVICE:
        from awq2trt.machine.gpu import require_gpu

        require_gpu(request.device)


def _evaluate(name: str, candidate: Candidate, work: Work, device: str, progress: Progress) -> EvalResult:
    from awq2trt.evaluation.opening import PYTORCH
    from awq2trt.machine.device import computing_on

    started = time.monotonic()
    model = candidate.load(device)
    known = model.opened
    with computing_on(device if known.executor == PYTORCH else DEFAULT_DEVICE):
        measured = work(model, progress)
    return EvalResult(name, known.executor, known.scheme, measured, time.monotonic() - started)


def _measure(on: TextWindows | TaskExamples | CaptionedImages) -> Measure:
    if isinstance(on, TaskExamples):
        return _task(on)
    return _captions(on) if isinstance(on, CaptionedImages) else _text(on)


def _text(on: TextWindows) -> Measure:
    """Measures perplexity on the first windows of a text, read at once, which every model tokenizes for itself."""
    from awq2trt.evaluation.perplexity import first_windows
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import CHARACTERS_PER_TOKEN, first_tokens

    text = read_text(on.text, characters=on.windows * on.seqlen * CHARACTERS_PER_TOKEN, flag="--text")

    def measure(candidate: Candidate, name: str) -> Work:
        candidate.require_length(on.seqlen, where="--seqlen")
        ids = first_tokens(candidate.tokenizer, text, on.windows * on.seqlen)
        windows = first_windows(ids, on.windows, on.seqlen, where=on.text, bos=candidate.bos)
        return lambda model, progress: model.perplexity(windows, progress, name)

    return measure


def _task(on: TaskExamples) -> Measure:
    """Measures the score in a task, whose file is read at once."""
    from awq2trt.evaluation.likelihood import tokenize
    from awq2trt.evaluation.tasks import read_task, score_task

    examples = read_task(on.task, on.data, on.limit)

    def measure(candidate: Candidate, name: str) -> Work:
        continuations = [continuation for example in examples for continuation in example.continuations]
        requests = [tokenize(candidate.tokenizer, text, candidate.bos) for text in continuations]
        longest = max(len(request.tokens) for request in requests)
        candidate.require_length(longest, where=f"{on.task}, {name}: the longest text", fix="leave it out")

        def work(model: EvaluatedModel, progress: Progress) -> TaskScore:
            return score_task(on.task, examples, model.scores(requests, progress, f"{on.task}, {name}"))

        return work

    return measure


def _captions(on: CaptionedImages) -> Measure:
    """Measures perplexity of texts about pictures, or a score in a task; the pictures are checked at once."""
    from awq2trt.evaluation.captions import CaptionedModel
    from awq2trt.evaluation.image_tasks import choose, require_rows, write_captions
    from awq2trt.images.pairs import read_pairs
    from awq2trt.images.read import read_image

    if on.task is not None and on.task not in IMAGE_TASKS:
        raise UsageError(
            f"got {on.task}, expected one of: {', '.join(IMAGE_TASKS)}.",
            where="--task",
            fix="tasks of text take --data instead of --images.",
        )
    pairs = read_pairs(on.images.expanduser())[: on.limit]
    require_rows(on.task, pairs)
    require_images(pairs)
    for path in dict.fromkeys(image for pair in pairs for image in pair.images):
        read_image(path)

    def measure(candidate: Candidate, name: str) -> Work:
        stored = candidate.stored
        vision = None if isinstance(stored, Artifact) else stored.vision
        if isinstance(stored, Artifact) or vision is None:
            raise UsageError(
                "expected the original or a quantized checkpoint of a model that sees images, got "
                f"{'an exported model' if isinstance(stored, Artifact) else 'a model of text'}.",
                where=f"{name}, --images {on.images}",
                fix="name such a model, or measure with --text or --task.",
            )
        captioned = CaptionedModel.of(stored, vision, candidate.tokenizer, candidate.bos)
        where = f"{on.images}, {name}: the longest conversation"
        candidate.require_length(captioned.longest(pairs), where=where, fix="leave it out")
        if on.task == CAPTION:
            return lambda _, progress: write_captions(captioned, pairs, progress, f"captions, {name}")
        if on.task == CHOICE:
            return lambda _, progress: choose(captioned, pairs, progress, f"choices, {name}")
        return lambda _, progress: captioned.perplexity(pairs, progress, f"captions, {name}")

    return measure
