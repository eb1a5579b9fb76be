"""Opens a directory's model in ONNX Runtime, on the device that the user names, or on the fastest available.

In: an artifact. Out: a backend, and what it runs on. A model that was built for `cpu` or `cuda` is used unchanged; an
exported one is lowered in memory. Everything that can fail, including memory, is checked before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import Awq2trtError, OutOfMemoryError, ToolError, UsageError
from awq2trt.graph import ort_lowering
from awq2trt.graph.next_token import drop_next_token_
from awq2trt.graph.provider_file import Lowering, lower_
from awq2trt.graph.read import DecoderSizes, open_decoder
from awq2trt.machine.gpu import INSTALL, PROVIDER, CudaMemory, open_cuda, require_gpu, require_onnxruntime
from awq2trt.machine.plugin_library import find_operators, find_plugin_library
from awq2trt.runtime.bits import STORED
from awq2trt.runtime.ort.backend import OrtBackend
from awq2trt.runtime.ort.cuda import PREFILL_CHUNK, CudaBackend, CudaOptions, dtype_name
from awq2trt.runtime.ort.embedder import open_embedder, require_embedder, vision_bytes
from awq2trt.runtime.ort.session import CPU_PROVIDER, Execution, open_session
from awq2trt.target import CPU_TARGET, CUDA_TARGET

if TYPE_CHECKING:
    import onnxruntime

CPU: Final = "cpu"

PROVIDERS: Final = {CPU_TARGET: CPU_PROVIDER, CUDA_TARGET: PROVIDER}
"""ONNX Runtime's name of the execution provider for each target."""

_GIB: Final = 1 << 30

_RUNTIME_BYTES: Final = 512 << 20
"""Bytes for cuBLAS's workspaces and the kernels' code; an H100 used 0.4 GiB beyond weights, caches and activations."""

_SCORE_BYTES: Final = 8
"""Bytes of an attention score while ONNX Runtime computes it: products and their softmax in fp32, if it fuses
nothing."""

_KEEP_SCORES: Final = ("Attention", "Softmax")
"""Nodes whose kernels keep scores in memory."""

_LONGEST_CHUNK: Final = 2048
"""The longest chunk: longer calls were no faster on an H100."""

_ROWS_SHARE: Final = 0.02
"""Share of a GPU's memory that the rows of a call's tokens may take, if `PREFILL_CHUNK` tokens take less."""

_LIVE_ROWS: Final = 6
"""Number of widest rows that live at once: gate, up, their product, and the normed stream, which is at most as wide."""


@dataclass(frozen=True)
class DeviceOptions:
    """Where and how a model runs.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`; None for the fastest available.
        all_logits: Whether it gives scores of every position, for `logits`.
        graph: Whether to capture decoding in a CUDA graph.
        trust_library: Whether to load the operator library in the model's directory, not the installed one.
    """

    device: str | None = None
    all_logits: bool = False
    graph: bool = True
    trust_library: bool = False


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to run.

    Attributes:
        backend: Its backend.
        title: Names what runs it.
        memory: Memory of the GPU; None on the CPU.
    """

    backend: OrtBackend | CudaBackend
    title: str
    memory: CudaMemory | None = None


def open_backend(artifact: Artifact, options: DeviceOptions) -> OpenedModel:
    """Opens a model.

    Raises:
        ArtifactError: The model is damaged, or ONNX Runtime refuses it.
        ToolError: This machine lacks something; the message has the command that installs it.
        UsageError: There is no such device, or the model was built for another.
    """
    device = options.device or choose_device(artifact)
    record = artifact.manifest.contents.lowered
    if record is not None and device.partition(":")[0] != record.target:
        raise UsageError(
            f"this model was built for {record.target}, but is supposed to run on {device}.",
            where=f"--device {device}",
            fix=f"leave --device out, or build with --target {device.partition(':')[0]}.",
        )
    if device == CPU:
        return OpenedModel(_open_on_cpu(artifact, options), "ONNX Runtime, CPU")
    memory = open_cuda(device)
    backend = _open_on_cuda(artifact, options, memory)
    return OpenedModel(backend, f"ONNX Runtime, {memory.gpu.name}", memory)


def choose_device(artifact: Artifact) -> str:
    """The fastest available device: a GPU if the model can use one, else the CPU; a lowered model has no choice."""
    record = artifact.manifest.contents.lowered
    if record is not None:
        return CUDA_TARGET if record.target == CUDA_TARGET else CPU_TARGET
    try:
        require_gpu(CUDA_TARGET)
        require_onnxruntime(CUDA_TARGET)
    except Awq2trtError:
        return CPU
    return CUDA_TARGET


@dataclass(frozen=True)
class Needs:
    """GPU memory that a model needs, in bytes.

    Attributes:
        weights: The weights in the file.
        caches: The caches of all conversations at full capacity, and the decoder's tables.
        workspace: An estimate of what the longest call needs in addition.
    """

    weights: int
    caches: int
    workspace: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.caches + self.workspace


def choose_chunk(model: ir.Model, sizes: DecoderSizes, memory_bytes: int) -> int:
    """Chooses the number of new tokens in a call: with fused attention, which keeps no scores, as many as rows allow.

    Args:
        model: A model lowered for CUDA.
        sizes: Sizes of the model.
        memory_bytes: All memory of the GPU.
    """
    chunk = PREFILL_CHUNK
    if _keeps_scores(model):
        return chunk
    while chunk < _LONGEST_CHUNK and _row_bytes(model, sizes) * 2 * chunk <= _ROWS_SHARE * memory_bytes:
        chunk *= 2
    return chunk


def predict_needs(model: ir.Model, sizes: DecoderSizes, batch: int = 1, chunk: int = PREFILL_CHUNK) -> Needs:
    """Predicts the memory that a model lowered for CUDA needs.

    Args:
        model: A model lowered for CUDA.
        sizes: Sizes of the model.
        batch: Number of conversations at once.
        chunk: Most new tokens in a call.
    """
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    tokens = batch * min(chunk, sizes.capacity)
    scores = 0
    if _keeps_scores(model):
        heads = _query_heads(model, sizes) or _widest(model) // sizes.head_dim
        scores = tokens * sizes.capacity * heads * _SCORE_BYTES
    rows = tokens * _row_bytes(model, sizes)
    return Needs(weights, batch * sizes.cache_bytes + sizes.table_bytes, _RUNTIME_BYTES + scores + rows)


def require_memory(needs: Needs, memory: CudaMemory) -> None:
    """Refuses a model that does not fit, before anything is allocated.

    Raises:
        ToolError: The model does not fit.
    """
    if needs.total > memory.read_info()[0]:
        raise _too_little(needs, memory)


def _too_little(needs: Needs, memory: CudaMemory, since: str = "") -> OutOfMemoryError:
    """The error that says what is needed, what is free, and what has changed since the check."""
    free, total = memory.read_info()
    parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in vars(needs).items())
    shorter = "build with a shorter --max-seq-len"
    return OutOfMemoryError(
        f"the model needs {needs.total / _GIB:.2f} GiB of GPU memory ({parts}), but {memory.gpu.name} has only "
        f"{free / _GIB:.2f} free of {total / _GIB:.2f}{since}.",
        where=f"--device cuda:{memory.gpu.index}",
        fix=f"end other programs that use the GPU (nvidia-smi lists them), or {shorter}."
        if needs.total <= total
        else f"use a GPU with more memory, or {shorter}.",
    )


def _open_on_cpu(artifact: Artifact, options: DeviceOptions) -> OrtBackend:
    decoder, embedder = artifact.manifest.contents.decoder, open_embedder(artifact)
    if artifact.manifest.kind == "lowered" and decoder is not None:
        return OrtBackend.load_lowered(
            artifact.directory, decoder.capacity, all_logits=options.all_logits, embedder=embedder
        )
    return OrtBackend.load(artifact.directory, all_logits=options.all_logits, embedder=embedder)


def _open_on_cuda(artifact: Artifact, options: DeviceOptions, memory: CudaMemory) -> CudaBackend:
    record = artifact.manifest.contents.lowered
    lowering, operators = lowering_here() if record is None else (None, None)
    if record is not None and record.plugin_version is not None:
        trusted = artifact.directory if options.trust_library else None
        operators = find_operators(record.plugin_version, trusted)
    plan = CudaPlan(lowering, operators, all_logits=options.all_logits, graph=options.graph, sees=artifact)
    return load_on_cuda(artifact.directory, plan, memory)


@dataclass(frozen=True)
class CudaPlan:
    """How a model is loaded onto a GPU.

    Attributes:
        lowering: The form to lower it to in memory; None for a file that is already lowered.
        operators: Library of custom operators; None if the graph has none.
        all_logits: Whether it gives scores of every position.
        graph: Whether to capture decoding in a CUDA graph.
        capacity: Positions in the cache; None for the file's capacity.
        batch: Number of conversations at once.
        sees: The artifact that has the graphs beside a decoder of embeddings; None for a decoder of tokens.
    """

    lowering: Lowering | None
    operators: Path | None
    all_logits: bool = False
    graph: bool = True
    capacity: int | None = None
    batch: int = 1
    sees: Artifact | None = None


def load_on_cuda(directory: Path, plan: CudaPlan, memory: CudaMemory) -> CudaBackend:
    """Loads an exported or lowered decoder.

    Raises:
        ArtifactError: The model is damaged, or ONNX Runtime refuses it.
        ToolError: The GPU has too little memory, or the provider does not start.
    """
    model, sizes = open_decoder(directory)
    if plan.lowering is not None:
        lower_(model, sizes, plan.lowering)
    if plan.all_logits:
        drop_next_token_(model)
        ort_lowering.keep_all_positions_(model)
    if plan.capacity is not None:
        ort_lowering.fix_capacity_(model, plan.capacity)
        sizes = replace(sizes, capacity=plan.capacity)
    chunk = PREFILL_CHUNK if plan.all_logits else choose_chunk(model, sizes, memory.read_info()[1] // plan.batch)
    needs = predict_needs(model, sizes, plan.batch, chunk)
    if plan.sees is not None:
        needs = replace(needs, weights=needs.weights + vision_bytes(plan.sees))
    require_memory(needs, memory)
    changed = plan.lowering is not None or plan.all_logits or plan.capacity is not None
    execution = cuda_execution(memory.gpu.index, plan.operators, graph=plan.graph)
    backend_options = CudaOptions(all_logits=plan.all_logits, graph=plan.graph, batch=plan.batch, chunk=chunk)
    try:
        session = open_session(model if changed else None, directory, execution)
        require_provider(session)
        on_gpu = cuda_execution(memory.gpu.index, None, graph=False)
        embedder = open_embedder(plan.sees, on_gpu) if plan.sees is not None else None
        require_embedder(sizes, embedder, directory)
        return CudaBackend.start(session, sizes, memory, backend_options, embedder)
    except OutOfMemoryError as error:  # another process has taken the free memory
        raise _too_little(needs, memory, "; there was enough before the model was loaded") from error


def cuda_execution(index: int, operators: Path | None, *, graph: bool) -> Execution:
    """How the CUDA provider executes a decoder on the GPU with this index."""
    return Execution(
        provider=PROVIDER,
        provider_options={
            "device_id": str(index),
            "enable_cuda_graph": "1" if graph else "0",
            "arena_extend_strategy": "kSameAsRequested",  # the default doubles the arena at every step
        },
        operators=operators,
    )


def require_provider(session: onnxruntime.InferenceSession) -> None:
    """Refuses a session that fell back to the CPU; ONNX Runtime only logs why its CUDA provider does not start.

    Raises:
        ToolError: It fell back.
    """
    if PROVIDER not in session.get_providers():
        raise ToolError(
            "ONNX Runtime's CUDA provider does not start here, although the libraries that it needs were found.",
            where="--device cuda",
            fix=f"{INSTALL}; `awq2trt doctor` shows what else it finds.",
        )


def lowering_here() -> tuple[Lowering, Path | None]:
    """How to lower an exported model in memory: for our kernels if they are installed."""
    try:
        return Lowering.CUDA_PLUGIN, find_plugin_library().path
    except ToolError:
        return Lowering.CUDA_ORT, None


def _keeps_scores(model: ir.Model) -> bool:
    return any(node.op_type in _KEEP_SCORES for node in model.graph)


def _widest(model: ir.Model) -> int:
    return max((max(shape) for shape in ort_lowering.linear_shapes(model)), default=0)


def _row_bytes(model: ir.Model, sizes: DecoderSizes) -> int:
    """Bytes that a new token takes in memory while it passes through a block."""
    return _widest(model) * _LIVE_ROWS * STORED[dtype_name(sizes)].itemsize


def _query_heads(model: ir.Model, sizes: DecoderSizes) -> int:
    """Number of query heads, from the constants [0, 0, heads, D] that split rows into heads; 0 without any."""
    shapes = (value.const_value for value in model.graph.initializers.values())
    splits = (tensor.numpy().tolist() for tensor in shapes if tensor is not None and tuple(tensor.shape) == (4,))
    return max((int(split[2]) for split in splits if split[3] == sizes.head_dim), default=0)
