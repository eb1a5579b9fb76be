"""`awq2trt run`: a prompt -> pieces of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact.opening import open_model
from awq2trt.errors import UsageError

if TYPE_CHECKING:
    from awq2trt.runtime import Sampling


@dataclass(frozen=True)
class RunRequest:
    """`awq2trt run`.

    Attributes:
        directory: ONNX model or engine.
        prompt: What the user says.
        sampling: How tokens are chosen.
        backend: `ort`.
        system: System message.
        raw: Continue the prompt as plain text, without the chat template.
        max_new_tokens: None for as many as the cache holds.
        stop: Strings that end the answer.
    """

    directory: Path
    prompt: str
    sampling: Sampling
    backend: str = "ort"
    system: str | None = None
    raw: bool = False
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


BACKENDS: Final = ("ort",)


def run_stage(request: RunRequest) -> Iterator[str]:
    """Pieces of the answer as they come.

    Raises:
        ArtifactError: The directory holds no whole model.
        UsageError: The prompt is empty or does not fit, or the backend is unknown.
    """
    from awq2trt.runtime import ChatTokenizer, OrtBackend, Sampler, generate, stream_text

    if request.backend not in BACKENDS:
        raise UsageError(
            f"unknown backend {request.backend!r}, expected one of: {', '.join(BACKENDS)}.",
            where="--backend",
            fix="--backend ort runs everywhere.",
        )
    artifact = open_model(request.directory)
    tokenizer = ChatTokenizer.load(artifact.directory)
    prompt = tokenizer.encode(request.prompt, chat=not request.raw, system=request.system)
    special = artifact.manifest.contents.tokens or tokenizer.special
    tokens = generate(
        OrtBackend.load(artifact.directory),
        prompt,
        Sampler(request.sampling),
        stop_tokens=special.stop,
        max_new_tokens=request.max_new_tokens,
    )
    yield from stream_text(tokens, tokenizer.decode, request.stop)
