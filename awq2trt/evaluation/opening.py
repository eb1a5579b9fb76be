"""Opens models for evaluation: originals and checkpoints in PyTorch, exported models in ONNX Runtime.

In: the name of a model. Out: an `EvaluatedModel`, whose methods are the same whatever runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import is_exported
from awq2trt.checkpoint.opening import open_any
from awq2trt.errors import UsageError
from awq2trt.evaluation.likelihood import TokenizedContinuation, backend_scores, torch_scores
from awq2trt.evaluation.perplexity import Perplexity, perplexity, torch_logits
from awq2trt.evaluation.tasks import Score
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.runtime import OrtBackend
from awq2trt.runtime.ort.cuda import CudaBackend
from awq2trt.runtime.ort.loading import DeviceOptions, open_backend
from awq2trt.text.tokenizer import bos_of, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PYTORCH: Final = "PyTorch"


@dataclass(frozen=True)
class Opened:
    """What is known about a model for evaluation, whatever runs it.

    Attributes:
        executor: What runs it: `PYTORCH`, or ONNX Runtime with its device.
        scheme: How it is quantized; None for an original.
        tokenizer: Its own.
        bos: Token that texts begin with; None if its family needs none.
    """

    executor: str
    scheme: str | None
    tokenizer: PreTrainedTokenizerBase
    bos: int | None


class EvaluatedModel(Protocol):
    """A model that computes how likely texts are."""

    @property
    def opened(self) -> Opened:
        """What is known about the model."""

    def perplexity(self, windows: Tensor, progress: Progress, name: str) -> Perplexity:
        """Measures perplexity on int64 [windows, S]; `name` is the model's name, for the progress.

        Raises:
            UsageError: The windows are longer than the model has positions, or than its cache.
        """

    def scores(self, requests: Sequence[TokenizedContinuation], progress: Progress, description: str) -> list[Score]:
        """Scores continuations, in order."""


@dataclass(frozen=True)
class TorchModel:
    """An original or a quantized checkpoint, with one block in memory at a time.

    Attributes:
        opened: What is known about it.
        source: Its weights.
    """

    opened: Opened
    source: ModelSource

    def perplexity(self, windows: Tensor, progress: Progress, name: str) -> Perplexity:
        require_positions(self.source.spec, windows.shape[1], where="--seqlen")
        logits = torch_logits(self.source, windows, progress, f"running {name}")
        return perplexity(windows, logits, progress, "perplexity")

    def scores(self, requests: Sequence[TokenizedContinuation], progress: Progress, description: str) -> list[Score]:
        return torch_scores(self.source, requests, progress, description)


@dataclass(frozen=True)
class OnnxModel:
    """An exported model.

    Attributes:
        opened: What is known about it.
        backend: Its backend, loaded with `all_logits`.
    """

    opened: Opened
    backend: OrtBackend | CudaBackend

    def perplexity(self, windows: Tensor, progress: Progress, name: str) -> Perplexity:
        seqlen, capacity = windows.shape[1], self.backend.capacity
        if seqlen > capacity:
            raise UsageError(
                f"expected at most {capacity} tokens, the capacity of the exported model's cache, got {seqlen}.",
                where="--seqlen",
                fix=f"use --seqlen {capacity} or less, or export again with a larger --max-seq-len.",
            )

        def logits(window: Tensor) -> Iterator[Tensor]:
            return (torch.from_numpy(rows) for rows in self.backend.logits(window.tolist()))

        return perplexity(windows, logits, progress, f"running {name} in {self.opened.executor}")

    def scores(self, requests: Sequence[TokenizedContinuation], progress: Progress, description: str) -> list[Score]:
        return backend_scores(self.backend, requests, progress, description)


def open_evaluated(model: str, device: str = DEFAULT_DEVICE) -> EvaluatedModel:
    """Opens an original model, a quantized checkpoint or an ONNX model.

    Args:
        model: The model's name, as the user gave it.
        device: Where ONNX Runtime runs it; a model built for `cuda` always runs on the GPU.

    Raises:
        ArtifactError: The model is not complete.
        CheckpointError: The model is damaged, or has no tokenizer.
        UsageError: There is no such model.
    """
    if is_exported(model):
        artifact = Artifact.open(Path(model))
        tokenizer = tokenizer_of(artifact.directory)
        contents = artifact.manifest.contents
        chosen = None if contents.lowered is not None and device == DEFAULT_DEVICE else device
        loaded = open_backend(artifact, DeviceOptions(chosen, all_logits=True))
        scheme, bos = contents.quantization.scheme.describe(), bos_of(tokenizer, contents.source.family)
        return OnnxModel(Opened(loaded.title, scheme, tokenizer, bos), loaded.backend)
    source, found = open_any(model)
    tokenizer = tokenizer_of(source)
    return TorchModel(Opened(PYTORCH, found, tokenizer, bos_of(tokenizer, source.spec.family)), source)
