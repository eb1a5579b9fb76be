"""`awq2trt check`: compares each stage of a build with the one before it, or with its golden outputs."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from awq2trt.artifact.folder import refuse_links
from awq2trt.artifact.opening import CHECK_DIRECTORY, open_model
from awq2trt.checking.outcome import CheckOutcome, GoldenOutcome
from awq2trt.errors import ToolError, UsageError
from awq2trt.progress import Progress
from awq2trt.recipe import DEFAULT_DEVICE
from awq2trt.stages.readiness import require_folder

if TYPE_CHECKING:
    from awq2trt.artifact.golden import Golden
    from awq2trt.artifact.manifest import Artifact
    from awq2trt.runtime.golden import GoldenResult
    from awq2trt.runtime.trt.engine import EngineBuild


@dataclass(frozen=True)
class CheckRequest:
    """`awq2trt check`.

    Attributes:
        directory: The directory that `build` wrote, or a checkpoint, ONNX model or engine in it.
        model: The original model; None for the one that the manifest names.
        checkpoint: The checkpoint of an ONNX model; None for the one beside it.
        text: A .txt or .jsonl file, or a data set's name; None for a text of our own.
        tokens: How many tokens of it to use.
        output: Where to write files that repeat the check with polygraphy; None for `check` beside the checkpoint.
        bisect: Reduce a failing block of the exported model to the nodes that fail.
    """

    directory: Path
    model: str | None = None
    checkpoint: Path | None = None
    text: str | None = None
    tokens: int = 192
    output: Path | None = None
    bisect: bool = False


def check_stage(request: CheckRequest, progress: Progress) -> CheckOutcome:
    """Compares every stage of a build with the one before it, on a text.

    Raises:
        CheckpointError: The original lacks a tensor.
        ToolError: polygraphy is not installed.
        UsageError: The text has no tokens, more tokens are wanted than the model has positions, or a part of the build
            is missing.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise ToolError("polygraphy is not installed.", where="check", fix="pip install 'awq2trt[check]'")
    from awq2trt.runtime.trt.engine import choose_flavour

    choose_flavour(request.directory)  # before polygraphy is imported
    from awq2trt.checking.beside import shown_first
    from awq2trt.checking.bisect import bisect
    from awq2trt.checking.chain import run_chain
    from awq2trt.checking.polygraphy_files import write_folder
    from awq2trt.checking.results import QUANTIZED
    from awq2trt.checking.subject import find_subject
    from awq2trt.checking.text import DEFAULT_TEXT
    from awq2trt.graph.read import open_decoder
    from awq2trt.models.positions import require_positions
    from awq2trt.text.read import read_text
    from awq2trt.text.tokenizer import CHARACTERS_PER_TOKEN, first_tokens, load_tokenizer

    subject = find_subject(request.directory, model=request.model, checkpoint=request.checkpoint)
    require_positions(subject.checkpoint.spec, request.tokens, where="--tokens")
    text = DEFAULT_TEXT
    if request.text is not None:
        text = read_text(request.text, characters=request.tokens * CHARACTERS_PER_TOKEN, flag="--text")
    capacity = open_decoder(subject.onnx)[1].capacity if subject.onnx else request.tokens
    tokens = first_tokens(load_tokenizer(subject.checkpoint.directory), text, request.tokens)
    if not tokens:
        raise UsageError("the text has no tokens.", where=str(request.text or "check"), fix="name another with --text.")
    tokens = shown_first(subject.checkpoint.vision, tokens)[: min(request.tokens, capacity)]
    output = request.output or subject.checkpoint.directory.parent / CHECK_DIRECTORY
    if subject.onnx is not None:
        require_folder(output, "-o")
    refuse_links(output)
    if subject.original is not None:
        subject.original.require_tensors()
    result = run_chain(subject, tokens, progress)
    # A checkpoint that is too damaged to run gives no expected outputs, so polygraphy has nothing to repeat.
    runs = not any(stage.stage == QUANTIZED and stage.skipped for stage in result.stages)
    commands = write_folder(subject, tokens, output) if runs else ()
    cut = bisect(subject, result, output / "bisect") if request.bisect else None
    return CheckOutcome(result, commands, cut)


def golden_stage(directory: Path, device: str | None = None) -> GoldenOutcome:
    """Runs a model's golden inputs in ONNX Runtime and in its engine, and compares with its golden outputs.

    Args:
        directory: Directory of the model.
        device: Where ONNX Runtime runs it; None for the device that it was built for, or else the CPU.

    Raises:
        ArtifactError: The directory holds no complete model, or its model has no golden outputs.
        ToolError: TensorRT refuses the engine, or the device lacks something.
    """
    from awq2trt.artifact.golden import read_golden
    from awq2trt.runtime.golden import compare_golden
    from awq2trt.runtime.ort.loading import DeviceOptions, open_backend
    from awq2trt.runtime.trt.engine import engine_of

    artifact = open_model(directory)
    golden = read_golden(artifact.directory)
    lowered = artifact.manifest.contents.lowered
    opened = open_backend(artifact, DeviceOptions(device or (lowered.target if lowered else DEFAULT_DEVICE)))
    results = tuple(compare_golden(opened.backend, golden))
    engine = engine_of(artifact)
    if engine is None:
        return GoldenOutcome(results, opened.title)
    reason = _why_no_engine(engine)
    return GoldenOutcome(results, opened.title, () if reason else _engine_golden(engine, golden, artifact), reason)


def _why_no_engine(engine: EngineBuild) -> str | None:
    """Says why this machine cannot run an engine; None if it can."""
    from awq2trt.runtime.trt.engine import choose_flavour, this_machine, why_not_here

    reason = why_not_here(engine, this_machine())
    if reason is None and importlib.util.find_spec("polygraphy") is None:
        reason = "polygraphy is not installed: pip install 'awq2trt[check]'"
    if reason is not None:
        return reason
    choose_flavour(engine.path.parent)  # before polygraphy is imported
    from awq2trt.runtime.trt.session import unmet_needs

    return unmet_needs(engine.flavour)


def _engine_golden(engine: EngineBuild, golden: Golden, artifact: Artifact) -> tuple[GoldenResult, ...]:
    """Runs the golden calls in an engine that this machine can run, and the golden image in the one beside it."""
    from awq2trt.runtime.golden import compare_golden
    from awq2trt.runtime.trt.backend import EngineBackend
    from awq2trt.runtime.trt.embedder import open_engine_embedder
    from awq2trt.runtime.trt.session import TrtSession

    with ExitStack() as opened:
        session = opened.enter_context(closing(TrtSession.open(engine)))
        embedder = open_engine_embedder(artifact)
        if embedder is not None:
            opened.enter_context(closing(embedder))
        return tuple(compare_golden(EngineBackend(session, engine.contract, engine.profiles, embedder), golden))
