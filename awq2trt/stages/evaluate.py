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
from awq2trt.errors import UsageError
from awq2trt.evaluation.results import EvalRequest, EvalResult, TaskRequest, TaskResult
from awq2trt.models.positions import require_positions
from awq2trt.progress import Progress
from awq2trt.stages.opening import portable_name, refuse_missing_device
from awq2trt.text.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from awq2trt.evaluation.perplexity import Perplexity
    from awq2trt.evaluation.tasks import Example


def eval_stage(request: EvalRequest, progress: Progress) -> Iterator[EvalResult]:
    """Perplexity of every model on the same text, each as it is done; a device that is not there is refused at once."""
    refuse_missing_device(request.device)
    return (_evaluate(model, request, progress) for model in request.models)


def _evaluate(model: str, request: EvalRequest, progress: Progress) -> EvalResult:
    started = time.monotonic()
    onnx = is_exported(model)
    evaluate = _evaluate_onnx if onnx else _evaluate_torch
    scheme, perplexity = evaluate(model, request, progress)
    executor = "ONNX Runtime" if onnx else "PyTorch"
    return EvalResult(model, executor, scheme, perplexity, time.monotonic() - started)


def task_stage(request: TaskRequest, progress: Progress) -> Iterator[TaskResult]:
    """A task's score of every model, each as it is done; its file is read, and the device looked for, at once."""
    from awq2trt.evaluation.tasks import read_task

    refuse_missing_device(request.device)
    examples = read_task(request.task, request.data, request.limit)
    return (_score(model, examples, request, progress) for model in request.models)


def _score(model: str, examples: list[Example], request: TaskRequest, progress: Progress) -> TaskResult:
    from awq2trt.evaluation.likelihood import backend_scores, tokenize, torch_scores
    from awq2trt.evaluation.tasks import score_task
    from awq2trt.machine.device import computing_on
    from awq2trt.runtime import OrtBackend
    from awq2trt.text.tokenizer import bos_of

    started = time.monotonic()
    continuations = [continuation for example in examples for continuation in example.continuations]
    if is_exported(model):
        artifact = Artifact.open(Path(model))
        tokenizer = tokenizer_of(artifact.directory)
        backend = OrtBackend.load(artifact.directory, all_logits=True)
        bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
        requests = [tokenize(tokenizer, continuation, bos) for continuation in continuations]
        scores = backend_scores(backend, requests, progress, f"{request.task}, {portable_name(model)}")
        executor, scheme = "ONNX Runtime", artifact.manifest.contents.quantization.scheme.describe()
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


def _evaluate_torch(model: str, request: EvalRequest, progress: Progress) -> tuple[str | None, Perplexity]:
    from awq2trt.evaluation.perplexity import first_windows, perplexity, torch_logits
    from awq2trt.machine.device import computing_on
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import bos_of, encode

    source, scheme = open_any(model)
    require_positions(source.spec, request.seqlen, where="--seqlen")
    tokenizer = tokenizer_of(source)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, source.spec.family)
    with computing_on(request.device):
        windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
        logits = torch_logits(source, windows, progress, f"running {portable_name(model)}")
        return scheme, perplexity(windows, logits, progress, "perplexity")


def _evaluate_onnx(model: str, request: EvalRequest, progress: Progress) -> tuple[str | None, Perplexity]:
    import torch

    from awq2trt.evaluation.perplexity import first_windows, perplexity
    from awq2trt.runtime import OrtBackend
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import bos_of, encode, load_tokenizer

    artifact = Artifact.open(Path(model))
    decoder = artifact.manifest.contents.decoder
    if decoder is not None and request.seqlen > decoder.capacity:
        raise UsageError(
            f"expected at most {decoder.capacity} tokens, which is what the exported model's cache holds, got "
            f"{request.seqlen}.",
            where="--seqlen",
            fix=f"use --seqlen {decoder.capacity} or less, or export again with a larger --max-seq-len.",
        )
    tokenizer = load_tokenizer(artifact.directory)
    ids = encode(tokenizer, read_text(request.text, characters=_characters(request)))
    bos = bos_of(tokenizer, artifact.manifest.contents.source.family)
    windows = first_windows(ids, request.windows, request.seqlen, where=request.text, bos=bos)
    backend = OrtBackend.load(artifact.directory, all_logits=True)

    def logits(window: torch.Tensor) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(rows) for rows in backend.logits(window.tolist()))

    measured = perplexity(windows, logits, progress, f"running {portable_name(model)} in ONNX Runtime")
    return artifact.manifest.contents.quantization.scheme.describe(), measured


def _characters(request: EvalRequest) -> int:
    """How much of a data set to read."""
    from awq2trt.text.read import CHARACTERS_PER_TOKEN

    return request.windows * request.seqlen * CHARACTERS_PER_TOKEN
