"""`awq2trt run`: a prompt -> pieces of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import open_model
from awq2trt.errors import UsageError
from awq2trt.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from awq2trt.runtime import Sampling
    from awq2trt.runtime.ort.opening import OpenedModel


@dataclass(frozen=True)
class RunRequest:
    """`awq2trt run`.

    Attributes:
        directory: ONNX model, engine, or what was built for `cpu` or `cuda`.
        prompt: What the user says.
        sampling: How tokens are chosen.
        backend: `ort`.
        system: System message.
        raw: Continue the prompt as plain text, without the chat template.
        max_new_tokens: None for as many as the cache holds.
        stop: Strings that end the answer.
        device: `cpu`, `cuda` or `cuda:N`; None for the fastest that is there.
        golden: Check the golden outputs at the first run on a GPU.
        trust_library: Load the operator library that lies in the directory.
    """

    directory: Path
    prompt: str
    sampling: Sampling
    backend: str = "ort"
    system: str | None = None
    raw: bool = False
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    device: str | None = None
    golden: bool = True
    trust_library: bool = False


BACKENDS: Final = ("ort",)


def run_stage(request: RunRequest, progress: Progress | None = None) -> Iterator[str]:
    """Pieces of the answer as they come.

    Args:
        request: What is asked.
        progress: Told what runs the model; None to say nothing.

    Raises:
        ArtifactError: The directory holds no whole model.
        ToolError: This machine lacks something that the device needs.
        UsageError: The prompt is empty or does not fit, or backend or device are unknown.
    """
    from awq2trt.runtime import ChatTokenizer, Sampler, generate, stream_text
    from awq2trt.runtime.ort.opening import DeviceOptions, open_backend

    if request.backend not in BACKENDS:
        raise UsageError(
            f"unknown backend {request.backend!r}, expected one of: {', '.join(BACKENDS)}.",
            where="--backend",
            fix="--backend ort runs everywhere.",
        )
    artifact = open_model(request.directory)
    tokenizer = ChatTokenizer.load(artifact.directory)
    prompt = tokenizer.encode(request.prompt, chat=not request.raw, system=request.system)
    progress = progress or SilentProgress()
    opened = open_backend(artifact, DeviceOptions(request.device, trust_library=request.trust_library))
    progress.note(f"running in {opened.title}")
    if request.golden:
        _check_golden(opened, artifact, progress)
    tokens = generate(
        opened.backend,
        prompt,
        Sampler(request.sampling),
        stop_tokens=tokenizer.stop_tokens,
        max_new_tokens=request.max_new_tokens,
    )
    yield from stream_text(tokens, tokenizer.decode, request.stop)


def _check_golden(opened: OpenedModel, artifact: Artifact, progress: Progress) -> None:
    """The golden outputs, where this GPU has not shown yet that it gives them."""
    import onnxruntime

    from awq2trt.runtime.first_run import check_first_run

    if opened.memory is None:
        return
    gpu = opened.memory.gpu.name
    if check_first_run(opened.backend, artifact, gpu, str(onnxruntime.__version__)):
        progress.note(f"first run on {gpu}: golden outputs passed")
