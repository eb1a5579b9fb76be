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
        """Measures perplexity on int64 [windows, S], of a length that `Candidate.require_length` allows.

        Args:
            windows: The windows.
            progress: Receives the progress.
            name: The model's name, for the progress.
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
        def logits(window: Tensor) -> Iterator[Tensor]:
            return (torch.from_numpy(rows) for rows in self.backend.logits(window.tolist()))

        return perplexity(windows, logits, progress, f"running {name} in {self.opened.executor}")

    def scores(self, requests: Sequence[TokenizedContinuation], progress: Progress, description: str) -> list[Score]:
        return backend_scores(self.backend, requests, progress, description)


@dataclass(frozen=True)
class Candidate:
    """A model that is to be evaluated, before it is loaded: what can be known is known of all, then the first is run.

    Attributes:
        stored: Weights of an original or of a quantized checkpoint, or an exported model.
        scheme: How it is quantized; None for an original.
        tokenizer: Its own.
        bos: Token that texts begin with; None if its family needs none.
    """

    stored: ModelSource | Artifact
    scheme: str | None
    tokenizer: PreTrainedTokenizerBase
    bos: int | None

    def require_length(self, tokens: int, *, where: str, fix: str | None = None) -> None:
        """Refuses a text that is longer than the model has positions, or than its cache.

        Args:
            tokens: Length of the text in tokens.
            where: What the user gave that makes it so long, for errors.
            fix: What the user can do, without a full stop; None for the flag `where` with a value that fits.

        Raises:
            UsageError: It is longer.
        """
        if not isinstance(self.stored, Artifact):
            require_positions(self.stored.spec, tokens, where=where, fix=fix and f"{fix}.")
            return
        decoder = self.stored.manifest.contents.decoder
        if decoder is not None and 0 < decoder.capacity < tokens:
            most = decoder.capacity
            raise UsageError(
                f"expected at most {most} tokens, which is what the exported model's cache holds, got {tokens}.",
                where=where,
                fix=f"{fix or f'use {where} {most} or less'}, or export again with a larger --max-seq-len.",
            )

    def load(self, device: str = DEFAULT_DEVICE) -> EvaluatedModel:
        """Loads it.

        Args:
            device: Where ONNX Runtime runs it; what was built for `cuda` runs there anyway.

        Raises:
            ArtifactError: It is not whole.
        """
        if not isinstance(self.stored, Artifact):
            return TorchModel(Opened(PYTORCH, self.scheme, self.tokenizer, self.bos), self.stored)
        chosen = None if self.stored.manifest.contents.lowered is not None and device == DEFAULT_DEVICE else device
        loaded = open_backend(self.stored, DeviceOptions(chosen, all_logits=True))
        return OnnxModel(Opened(loaded.title, self.scheme, self.tokenizer, self.bos), loaded.backend)


def find_candidate(model: str) -> Candidate:
    """Finds an original model, a quantized checkpoint or an ONNX model, and opens its tokenizer.

    Args:
        model: The model's name, as the user gave it.

    Raises:
        ArtifactError: The model is not complete.
        CheckpointError: The model is damaged, or has no tokenizer.
        UsageError: There is no such model.
    """
    if is_exported(model):
        artifact = Artifact.open(Path(model))
        tokenizer, contents = tokenizer_of(artifact.directory), artifact.manifest.contents
        scheme = contents.quantization.scheme.describe()
        return Candidate(artifact, scheme, tokenizer, bos_of(tokenizer, contents.source.family))
    source, found = open_any(model)
    tokenizer = tokenizer_of(source)
    return Candidate(source, found, tokenizer, bos_of(tokenizer, source.spec.family))


def open_evaluated(model: str, device: str = DEFAULT_DEVICE) -> EvaluatedModel:
    """Opens an original model, a quantized checkpoint or an ONNX model; as `find_candidate` and `Candidate.load`."""
    return find_candidate(model).load(device)
