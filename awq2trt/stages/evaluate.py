"""`awq2trt eval`: perplexity, and scores of tasks, of any number of models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.artifact.manifest import (
    Artifact,
)
from awq2trt.artifact.opening import is_exported
from awq2trt.checkpoint.opening import open_any
from awq2trt.evaluation.results import EvalRequest, EvalResult, TaskRequest, TaskResult
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.stages.opening import portable_name, refuse_missing_device
from awq2trt.text.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.tasks import Example
    from awq2trt.runtime.ort.loading import OpenedModel


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Perplexity of every model on the same text, each as it is done; a device that is not there is refused at once."""
    _refuse_missing_device(request)
    return (_evaluate(model, request, progress) for model in request.models)


def _evaluate(model: str, request: EvalRequest, progress: Progress) -> EvalResult:
    started = time.monotonic()
    evaluate = _evaluate_onnx if is_exported(model) else _evaluate_torch
    executor, scheme, perplexity = evaluate(model, request, progress)
    return EvalResult(model, executor, scheme, perplexity, time.monotonic() - started)


def task_stage(request: TaskRequest, progress: Progress) -> Iterator[TaskResult]:
    """A task's score of every model, each as it is done; its file is read, and the device looked for, at once."""
    from awq2trt.evaluation.tasks import read_task

    _refuse_missing_device(request)
    examples = read_task(request.task, request.data, request.limit)
    return (_score(model, examples, request, progress) for model in request.models)


def _score(model: str, examples: list[Example], request: TaskRequest, progress: Progress) -> TaskResult:
    from awq2trt.evaluation.likelihood import backend_scores, tokenize, torch_scores
    from awq2trt.evaluation.tasks import score_task
    from awq2trt.machine.device import computing_on
    from awq2trt.text.tokenizer import bos_of

    started = time.monotonic()
    continuations = [continuation for example in examples for continuation in example.continuations]
    if is_exported(model):
        artifact = Artifact.open(Path(model))
        tokenizer = tokenizer_of(artifact.directory)
        opened = _open(artifact, request.device)
        bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
        requests = [tokenize(tokenizer, continuation, bos) for continuation in continuations]
        scores = backend_scores(opened.backend, requests, progress, f"{request.task}, {portable_name(model)}")
        executor, scheme = opened.title, artifact.manifest.contents.quantization.scheme.describe()
    else:
        source, found = open_any(model)
        tokenizer = tokenizer_of(source)
        bos = bos_of(tokenizer, source.spec.family)
        requests = [tokenize(tokenizer, continuation, bos) for continuation in continuations]
        with computing_on(request.device):
            scores = torch_scores(source, requests, progress, f"{request.task}, {portable_name(model)}")
        executor, scheme = "PyTorch", found or ""
    score = score_task(request.task, examples, scores)
    return TaskResult(model, executor, scheme or None, score, time.monotonic() - started)


def _evaluate_torch(model: str, request: EvalRequest, progress: Progress) -> tuple[str, str | None, Perplexity]:
    from awq2trt.evaluation.perplexity import first_windows, perplexity, torch_logits
    from awq2trt.machine.device import computing_on
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import bos_of, encode

    source, scheme = open_any(model)
    tokenizer = tokenizer_of(source)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, source.spec.family)
    with computing_on(request.device):
        windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
        logits = torch_logits(source, windows, progress, f"running {portable_name(model)}")
        return "PyTorch", scheme, perplexity(windows, logits, progress, "perplexity")


def _evaluate_onnx(model: str, request: EvalRequest, progress: Progress) -> tuple[str, str | None, Perplexity]:
    import torch

    from awq2trt.evaluation.perplexity import first_windows, perplexity
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import bos_of, encode, load_tokenizer

    artifact = Artifact.open(Path(model))
    tokenizer = load_tokenizer(artifact.directory)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
    windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
    opened = _open(artifact, request.device)

    def logits(window: torch.Tensor) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(rows) for rows in opened.backend.logits(window.tolist()))

    measured = perplexity(windows, logits, progress, f"running {portable_name(model)} in {opened.title}")
    return opened.title, artifact.manifest.contents.quantization.scheme.describe(), measured


def _open(artifact: Artifact, device: str) -> OpenedModel:
    """A model in ONNX Runtime, with the scores of every position; one that was built for a device runs there."""
    from awq2trt.runtime.ort.loading import DeviceOptions, open_backend

    lowered = artifact.manifest.contents.lowered is not None
    chosen = None if lowered and device == DEFAULT_DEVICE else device
    return open_backend(artifact, DeviceOptions(chosen, all_logits=True))


def _refuse_missing_device(request: EvalRequest | TaskRequest) -> None:
    """Refuses a device that is not there; PyTorch need not see one on which only ONNX Runtime shall run."""
    if not all(is_exported(model) for model in request.models):
        refuse_missing_device(request.device)
    elif request.device != DEFAULT_DEVICE:
        from awq2trt.machine.gpu import require_gpu

        require_gpu(request.device)


def _characters(request: EvalRequest) -> int:
    """How much of a data set to read."""
    from awq2trt.text.read import CHARACTERS_PER_TOKEN

    return request.windows * request.seqlen * CHARACTERS_PER_TOKEN
