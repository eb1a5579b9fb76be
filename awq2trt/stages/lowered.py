"""The last step of `awq2trt build` for `cpu` and `cuda`: an ONNX model in the form its provider runs best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from awq2trt.artifact.golden import loosen_golden_
from awq2trt.artifact.manifest import Artifact, current_artifact, fingerprint_of
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import Contents, LoweredRecord, ProfileRecord
from awq2trt.errors import ArtifactError
from awq2trt.io_contract import DECODER, weights_of
from awq2trt.models.spec import ModelSpec
from awq2trt.progress import Progress
from awq2trt.stages.opening import cache_error, exported_contents
from awq2trt.target import ANY_CPU, CUDA_CPUS, MINIMUM_CAPABILITY, Target
from awq2trt.version import __version__

if TYPE_CHECKING:
    from awq2trt.graph.provider_file import Lowering

_GROWTH: Final = 1.25
"""How many times as large as the exported model a lowered one can be on disk: for the CPU, scales become fp32, and
scales of groups of 32 are a ninth of a linear."""


@dataclass(frozen=True)
class LowerRequest:
    """What `awq2trt build` asks this step for.

    Attributes:
        target: `cpu` or `cuda`.
        output: Directory for the model.
        plugin: For `cuda`: whether our operators compute quantized linears, rather than ONNX Runtime's own.
        fusion: Whether our fused operators are used, too.
        int8_cache: Whether keys and values are kept as codes.
        overwrite: Replace whatever is in `output`.
    """

    target: Target
    output: Path
    plugin: bool = True
    fusion: bool = True
    int8_cache: bool = False
    overwrite: bool = False


def lower_stage(onnx: Artifact, spec: ModelSpec, request: LowerRequest, progress: Progress) -> Artifact:
    """Returns an exported decoder's model for a provider; it is made only if it is not current."""
    from awq2trt.graph.beside_decoder import write_beside
    from awq2trt.graph.provider_file import lowered_contract, write_lowered
    from awq2trt.graph.read import open_decoder, operators_of

    target = request.target
    lowering = _lowering(request)
    files = {name: file.sha256 for name, file in onnx.manifest.files.items()}
    fingerprint = fingerprint_of(kind="lowered", onnx=files, target=target.name, lowering=lowering.value)
    current = current_artifact(request.output, "lowered", fingerprint)
    if current is not None:
        progress.note(f"{request.output} is current")
        return current
    contract = onnx.manifest.contents.decoder
    if contract is None:
        raise ArtifactError("the manifest describes no decoder.", where=str(onnx.directory), fix="export it again.")
    with create_artifact(
        request.output,
        "lowered",
        fingerprint,
        overwrite=request.overwrite,
        expected_bytes=int(_GROWTH * sum(file.size_bytes for file in onnx.manifest.files.values())),
    ) as draft:
        contents = exported_contents(onnx, spec)
        write_lowered(onnx.directory, lowering, draft.files, progress)
        beside = write_beside(onnx.directory, contents.beside, draft.files, on_cpu=lowering.is_for_cpu)
        written = {graph.model for graph in contents.graphs.values()}
        written |= {weights_of(model) for model in written}
        for name in files:
            if name not in written:
                draft.adopt(onnx.path(name))
        if lowering.has_int8_cache:
            loosen_golden_(draft.files, cache_error(spec))
        decoder = contents.graphs[DECODER].model_copy(update={"io": lowered_contract(contract, lowering)})
        calls_operators = target.cuda is not None and request.plugin
        changed = {
            "graphs": {DECODER: decoder, **beside},
            "operators": operators_of(open_decoder(draft.files)[0]) if calls_operators else {},
            "lowered": _record(target, contents, calls_operators=calls_operators),
        }
        return draft.publish(contents.model_copy(update=changed))


def _lowering(request: LowerRequest) -> Lowering:
    """The form that a request asks for; `require_cache` has refused impossible combinations before."""
    from awq2trt.graph.provider_file import Lowering

    if request.target.cuda is None:
        return Lowering.CPU_INT8 if request.int8_cache else Lowering.CPU
    if not request.plugin:
        return Lowering.CUDA_ORT
    if not request.fusion:
        return Lowering.CUDA_PLUGIN
    return Lowering.CUDA_INT8 if request.int8_cache else Lowering.CUDA_FUSED


def _record(target: Target, contents: Contents, *, calls_operators: bool) -> LoweredRecord:
    from awq2trt.engine.profiles import profiles_beside
    from awq2trt.runtime.ort.backend import PREFILL_CHUNK as CPU_CHUNK
    from awq2trt.runtime.ort.cuda import PREFILL_CHUNK as CUDA_CHUNK
    from awq2trt.runtime.ort.loading import PROVIDERS

    capacity = contents.graphs[DECODER].io.capacity
    vision = contents.model.vision if contents.model else None
    longest = min(capacity, CUDA_CHUNK if target.cuda else CPU_CHUNK)
    return LoweredRecord(
        target=target.name,
        provider=PROVIDERS[target.name],
        minimum_onnxruntime=target.minimum_version,
        minimum_compute_capability=".".join(map(str, MINIMUM_CAPABILITY)) if target.cuda else None,
        minimum_cuda=target.cuda,
        cpus=() if target.cuda is None or target.cpu != ANY_CPU else CUDA_CPUS,
        plugin_version=__version__ if calls_operators else None,
        profiles={
            DECODER: (
                ProfileRecord.of_tokens("prefill", 1, longest, longest),
                ProfileRecord.of_tokens("decode", 1, 1, 1),
            ),
            **{name: profiles_beside(name, longest, vision) for name in contents.beside},
        },
    )
