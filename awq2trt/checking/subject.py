"""Finds what can be checked in a directory: its checkpoint, its exported model, and the original they come from.

In: a directory that `build`, `quantize` or `export` wrote. Out: a `Subject`, with a reason for every stage that cannot
be run here, since a stage that is silently left out would look as if it had passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from awq2trt.artifact.arrays import read_arrays
from awq2trt.artifact.folder import no_directory
from awq2trt.artifact.manifest import MANIFEST_FILE, Artifact, record_file, record_files
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY
from awq2trt.artifact.records import QuantizationRecord, SourceRecord
from awq2trt.checking.folding import FoldedSource
from awq2trt.checking.results import ENGINE, FOLDED, ON_GPU, ONNX, ONNX_CUDA, ORIGINAL, RUNTIME
from awq2trt.checking.runners import ScoringBackend
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import SEARCH_FILE
from awq2trt.errors import Awq2trtError, ToolError, UsageError
from awq2trt.io_contract import SCALED_LAYOUT, IoContract
from awq2trt.machine.gpu import open_cuda
from awq2trt.methods import METHODS
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.quantization.effort import EFFORTS
from awq2trt.runtime.ort.loading import DeviceOptions, open_backend
from awq2trt.runtime.trt.embedder import EngineEmbedder, open_engine_embedder
from awq2trt.runtime.trt.engine import EngineBuild, engine_of, this_machine, why_not_here
from awq2trt.runtime.trt.session import EngineSession, TrtSession, unmet_needs
from awq2trt.target import CPU_TARGET, CUDA_TARGET


@dataclass(frozen=True)
class Subject:
    """Everything that is checked.

    Attributes:
        checkpoint: The quantized model.
        nearest: Whether its codes must be the nearest to the folded weights, which holds unless the method moved them
            for a better sum.
        original: The original model; None if it is not available.
        search: Arrays of `quantization.npz`: the scales to fold again.
        onnx: Directory of the exported model; None to check only the checkpoint.
        dtype: Type of the exported model's activations.
        engine: Record of the engine built from it; None if there is none.
        open_engine: Loads the engine on this machine.
        for_cuda: Directory of the model that runs on a GPU: the one built for it, or else the exported one.
        open_on_gpu: Loads it on this machine's GPU; None without a GPU.
        open_on_cpu: Loads the model that was built for the CPU with a cache of codes, or a model that sees images with
            all its graphs; None to run only the exported decoder there.
        open_embedder: Loads the engines beside the decoder's for a model that sees images; None without an engine.
        coded: Stages whose cache holds codes.
        changed: Files that were changed since they were written, by their manifest's hashes.
        missing: Why a stage cannot be run.
    """

    checkpoint: QuantizedCheckpoint
    nearest: bool
    original: ModelSource | None
    search: Mapping[str, Array]
    onnx: Path | None
    dtype: str = "float16"
    engine: EngineBuild | None = None
    open_engine: Callable[[], EngineSession] | None = None
    for_cuda: Path | None = None
    open_on_gpu: Callable[[], ScoringBackend] | None = None
    open_on_cpu: Callable[[], ScoringBackend] | None = None
    open_embedder: Callable[[], EngineEmbedder | None] | None = None
    coded: frozenset[str] = frozenset()
    changed: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def folded(self) -> FoldedSource | None:
        """The original, folded again; None if it or its scales are not available."""
        if self.original is None or FOLDED in self.missing:
            return None
        return FoldedSource(self.original, self.checkpoint, self.search)


def find_subject(directory: Path, *, model: str | None = None, checkpoint: Path | None = None) -> Subject:
    """Finds everything that belongs together.

    Args:
        directory: The directory that `build -o` wrote, or a checkpoint, an ONNX model or an engine in it.
        model: The original; None for the one that the manifest names, if it can be found.
        checkpoint: The checkpoint of an ONNX model or engine; None for the one beside it.

    Raises:
        ArtifactError: A directory is incomplete.
        UsageError: There is no checkpoint, or the original is not the one that was quantized.
    """
    quantized, exported, lowered, for_cpu, engines = _artifacts(directory, checkpoint)
    source = quantized.manifest.contents.source
    original, missing = _original(source, model)
    quantization = quantized.manifest.contents.quantization
    search_file = quantized.directory / SEARCH_FILE
    search = read_arrays(search_file, fix="quantize the model again.") if search_file.is_file() else {}
    method = METHODS.get(quantization.method)
    if method and method.searches_scales and not search:
        missing.setdefault(FOLDED, f"not run: the checkpoint has no {SEARCH_FILE} with the scales; quantize again")
    if exported is None:
        missing |= dict.fromkeys((ONNX, ONNX_CUDA, RUNTIME), "not run: no exported model in this directory")
    built, reason = _engine(engines)
    if reason:
        missing[ENGINE] = reason
    for_cuda = lowered or exported
    reason = _why_not_on_gpu() if for_cuda else "no model for CUDA in this directory"
    if reason:
        missing[ON_GPU] = f"not run: {reason}"
    decoder = exported.manifest.contents.decoder if exported else None
    on_cpu = for_cpu or (exported if exported and exported.manifest.contents.beside else None)
    checked = {one.directory: one for one in (quantized, exported, lowered, for_cpu, *engines) if one}
    coded = {RUNTIME: for_cpu is not None, ON_GPU: for_cuda is not None and _has_codes(for_cuda)}
    coded[ENGINE] = built is not None and _keeps_codes(built.contract)
    return Subject(
        checkpoint=QuantizedCheckpoint.open(quantized.directory),
        nearest=_codes_are_nearest(quantization),
        original=original,
        search=search,
        onnx=exported.directory if exported else None,
        dtype=decoder.logits.dtype if decoder else "float16",
        engine=built,
        open_engine=partial(TrtSession.open, built) if built else None,
        for_cuda=for_cuda.directory if for_cuda else None,
        open_on_gpu=partial(_open_on, CUDA_TARGET, for_cuda) if for_cuda and not reason else None,
        open_on_cpu=partial(_open_on, CPU_TARGET, on_cpu) if on_cpu else None,
        open_embedder=partial(_open_engine_embedder, built) if built else None,
        coded=frozenset(stage for stage, is_coded in coded.items() if is_coded),
        changed=tuple(name for one in checked.values() for name in _changed_files(one)),
        missing=missing,
    )


def _codes_are_nearest(record: QuantizationRecord) -> bool:
    """Whether every code must be the nearest to its weight.

    That is not so after GPTQ or learning, which move single codes, nor after an unknown effort, such as one with step
    sizes that were tuned at the end.
    """
    method, search = METHODS.get(record.method), EFFORTS.get(record.effort or "")
    known = record.effort is None or (search is not None and search.keeps_nearest)
    return method is not None and not method.rounds_columns and known


class _Found(NamedTuple):
    """What was found in a directory.

    Attributes:
        quantized: The checkpoint.
        exported: The exported model.
        lowered: The model for CUDA.
        for_cpu: The model for the CPU, if it has a cache of codes.
        engines: Its engines and finished kits.
    """

    quantized: Artifact
    exported: Artifact | None
    lowered: Artifact | None
    for_cpu: Artifact | None
    engines: list[Artifact]


def _artifacts(directory: Path, checkpoint: Path | None) -> _Found:
    """Finds everything that a directory contains or belongs to.

    Raises:
        ArtifactError: A directory in it is incomplete.
        UsageError: There is no checkpoint, or it belongs to another model.
    """
    if (directory / MANIFEST_FILE).is_file():
        found = [Artifact.open(directory, verify="size")]
        beside = checkpoint or directory.parent / CHECKPOINT_DIRECTORY
        if found[0].manifest.kind != "checkpoint" and (beside / MANIFEST_FILE).is_file():
            found.append(Artifact.open(beside, kind="checkpoint", verify="size"))
    elif not directory.is_dir():
        raise UsageError(
            no_directory(directory), where=str(directory), fix="name a directory that `awq2trt build ... -o DIR` wrote."
        )
    else:
        paths = sorted(path.parent for path in directory.glob(f"*/{MANIFEST_FILE}"))
        found = [Artifact.open(path, verify="size") for path in paths]
        if checkpoint:
            found = [one for one in found if one.manifest.kind != "checkpoint"]
            found.append(Artifact.open(checkpoint, kind="checkpoint", verify="size"))
    by_kind = {artifact.manifest.kind: artifact for artifact in reversed(found)}
    quantized = by_kind.get("checkpoint")
    if quantized is None:
        raise UsageError(
            "there is no checkpoint here to compare it with.",
            where=str(directory),
            fix="name it with --checkpoint, or check only the golden outputs with --golden.",
        )
    holding = (one for one in found if one.manifest.kind not in ("checkpoint", "lowered"))
    exported = by_kind.get("onnx") or next(holding, None)
    lowered = next((one for one in found if _is_for(CUDA_TARGET, one)), None)
    for_cpu = next((one for one in found if _is_for(CPU_TARGET, one) and _has_codes(one)), None)
    engines = [one for one in found if engine_of(one) is not None]
    for other in (exported, lowered, for_cpu, *engines):
        if other and other.manifest.contents.source != quantized.manifest.contents.source:
            raise UsageError(
                "this checkpoint was made from another model than the one that is checked.",
                where=str(quantized.directory),
                fix="name the checkpoint that it was exported from with --checkpoint.",
            )
    return _Found(quantized, exported, lowered, for_cpu, engines)


def _is_for(target: str, artifact: Artifact) -> bool:
    record = artifact.manifest.contents.lowered
    return record is not None and record.target == target


def _has_codes(artifact: Artifact) -> bool:
    decoder = artifact.manifest.contents.decoder
    return decoder is not None and _keeps_codes(decoder)


def _keeps_codes(contract: IoContract) -> bool:
    return contract.cache is not None and contract.cache.layout == SCALED_LAYOUT


def _why_not_on_gpu() -> str | None:
    """Says why ONNX Runtime cannot run on a GPU here; None if it can."""
    try:
        open_cuda(CUDA_TARGET)
    except (ToolError, UsageError) as error:
        return error.what.rstrip(".")
    return None


def _open_engine_embedder(engine: EngineBuild) -> EngineEmbedder | None:
    return open_engine_embedder(Artifact.open(engine.path.parent, verify="size"))


def _open_on(target: str, artifact: Artifact) -> ScoringBackend:
    return open_backend(artifact, DeviceOptions(target, all_logits=True)).backend


def _original(record: SourceRecord, model: str | None) -> tuple[ModelSource | None, dict[str, str]]:
    """Opens the model that was quantized, after verifying its weight files; or says why it is not available."""
    name = model or record.model
    try:
        original = open_source(name)
    except Awq2trtError as error:
        if model:
            raise
        reason = f"not run: the original, {name}, was not found ({error.what.rstrip('.')}); name it with --model"
        return None, dict.fromkeys((ORIGINAL, FOLDED), reason)
    if record_files(original.files) == record.files:
        return original, {}
    if model:
        raise UsageError(
            "the checkpoint was made from other weights.",
            where=model,
            fix=f"name {record.model}, from which it was made.",
        )
    reason = f"not run: the weights of {name} have changed; name the original with --model"
    return None, dict.fromkeys((ORIGINAL, FOLDED), reason)


def _changed_files(artifact: Artifact) -> Iterator[str]:
    """Files that were changed since they were written, with their directory's name."""
    for name, record in artifact.manifest.files.items():
        if record_file(artifact.directory / name) != record:
            yield f"{artifact.directory.name}/{name}"


def _engine(found: Sequence[Artifact]) -> tuple[EngineBuild | None, str | None]:
    """Returns the first engine that this machine can run; otherwise the first one, and why it cannot be run."""
    engines = [engine for artifact in found if (engine := engine_of(artifact)) is not None]
    if not engines:
        return None, "not run: no engine in this directory"
    machine = this_machine()
    reasons = [why_not_here(engine, machine) or unmet_needs(engine.flavour) for engine in engines]
    chosen = next((index for index, reason in enumerate(reasons) if reason is None), 0)
    return engines[chosen], f"not run: {reasons[chosen]}" if reasons[chosen] else None
