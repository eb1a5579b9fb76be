"""The parts of a manifest: what an artifact says of its model, its quantization, its engine or its kit."""

from __future__ import annotations

from pydantic import BaseModel, Field

from awq2trt.io_contract import IoContract
from awq2trt.scheme import QuantScheme


class FileRecord(BaseModel, frozen=True, extra="forbid"):
    """Size and hash of one file."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceRecord(BaseModel, frozen=True, extra="forbid"):
    """The model that the artifact comes from.

    Attributes:
        model: What the user called it.
        family: Its family, e.g. `llama`.
        files: Its weight files, by name.
    """

    model: str
    family: str
    files: dict[str, FileRecord]


class CalibrationRecord(BaseModel, frozen=True, extra="forbid"):
    """The text that the scales were searched on.

    Attributes:
        text: As `--calib` names it.
        sha256: Of the token ids, as int64 little-endian bytes.
        samples: Windows used.
        seqlen: Tokens in a window.
        seed: Of what was drawn at random.
    """

    text: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    samples: int
    seqlen: int
    seed: int


class QuantizationRecord(BaseModel, frozen=True, extra="forbid"):
    """How the weights were quantized.

    Attributes:
        method: As the recipe names it, or as the checkpoint of another tool names it.
        scheme: Bits, group size, zero points.
        calibration: None where the method uses no text, or the text is not known.
        effort: Of the search; None where there was none, or it is not known.
    """

    method: str
    scheme: QuantScheme
    calibration: CalibrationRecord | None = None
    effort: str | None = None


class ProfileRecord(BaseModel, frozen=True, extra="forbid"):
    """An optimization profile: how many new tokens a call of it may have.

    Attributes:
        name: `prefill` or `decode`.
        typical: What kernels were chosen for.
    """

    name: str
    shortest: int
    typical: int
    longest: int


class EngineRecord(BaseModel, frozen=True, extra="forbid"):
    """What the engine runs on.

    Attributes:
        target: Name in the target table.
        compute_capabilities: Of the GPUs it runs on, as TensorRT names them, e.g. `SM86`.
        flavour: `tensorrt` or `tensorrt-rtx`.
        tensorrt_version: That built it, and runs it.
        plugin_version: Of the plugin library inside the engine; None if it has none.
        profiles: In the engine's order.
    """

    target: str
    compute_capabilities: tuple[str, ...]
    flavour: str
    tensorrt_version: str
    plugin_version: str | None
    profiles: tuple[ProfileRecord, ...]


class KitRecord(BaseModel, frozen=True, extra="forbid"):
    """What a kit is for, and what its script holds the machine to.

    Attributes:
        target: Name in the target table.
        compute_capability: Of its GPU, as NVIDIA writes it: `8.7`.
        cpu: As `uname -m` says it.
        jetpack: Release that the kit is for.
        minimum_tensorrt: Lowest TensorRT that takes the model.
        plugin_version: Of the plugin library, or of its sources.
        plugin_cuda: CUDA runtime in the library; None where the kit has sources.
        profiles: Of the engine to be, in its order.
        build_bytes: Memory that building takes, predicted.
        run_bytes: Memory that running takes, predicted.
        disk_bytes: Disk that the engine takes, predicted.
    """

    target: str
    compute_capability: str
    cpu: str
    jetpack: str
    minimum_tensorrt: tuple[int, int]
    plugin_version: str
    plugin_cuda: tuple[int, int] | None
    profiles: tuple[ProfileRecord, ...]
    build_bytes: int
    run_bytes: int
    disk_bytes: int


class LoweredRecord(BaseModel, frozen=True, extra="forbid"):
    """What a model lowered for a provider of ONNX Runtime runs on.

    Attributes:
        target: Name in the target table: `cpu` or `cuda`.
        lowering: Form of the graph, as `graph.provider_file.Lowering` names it.
        minimum_onnxruntime: Lowest ONNX Runtime that takes the model.
        minimum_capability: Lowest compute capability of a GPU; None for a CPU.
        operators_version: Of the plugin library whose operators the graph calls; None if it calls none.
    """

    target: str
    lowering: str
    minimum_onnxruntime: tuple[int, int]
    minimum_capability: tuple[int, int] | None
    operators_version: str | None


class Contents(BaseModel, frozen=True, extra="forbid"):
    """What a stage says about the artifact it made.

    Attributes:
        io: Inputs and outputs of the graph; of all kinds but `checkpoint`.
        engine: Of kind `engine`.
        kit: Of kind `kit`.
        lowered: Of kind `lowered`.
    """

    source: SourceRecord
    quantization: QuantizationRecord
    io: IoContract | None = None
    engine: EngineRecord | None = None
    kit: KitRecord | None = None
    lowered: LoweredRecord | None = None
