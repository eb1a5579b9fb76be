"""The parts of a manifest: what an artifact says of its model, its quantization, its graphs, and what runs it.

The normative text is the section "Manifest" of `plugins/FORMAT.md`. Some fields and records are there for models and
targets to come (images, exceptions to the scheme, models lowered for ONNX Runtime), so that these need no new format.
"""

from __future__ import annotations

from typing import TypeAlias

from pydantic import BaseModel, Field, JsonValue

from awq2trt.io_contract import DECODER, IMAGES, SEQUENCE, IoContract, engine_of_graph
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


class RopeRecord(BaseModel, frozen=True, extra="forbid"):
    """A rotary embedding, as far as its tables of cosines and sines can be computed from it.

    Attributes:
        inv_freq: Angular frequency of each channel pair.
        factor: Of cosines and sines.
        sections: Channel pairs that follow time, height and width where positions have three numbers; None where they
            have one.
        interleaved: Sections take turns pair by pair, instead of lying one after the other.
    """

    inv_freq: tuple[float, ...]
    factor: float = 1.0
    sections: tuple[int, ...] | None = None
    interleaved: bool = False


class DecoderRecord(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a decoder, and what its executor must compute beside its graphs.

    Attributes:
        max_positions: That the model was made for; the cache may hold fewer.
        tie_embeddings: The head is the embedding matrix.
        ropes: Its rotary embeddings, each once.
        rope_of_layer: Index in `ropes`, layer by layer; None for none.
        window_of_layer: Positions that a query sees, itself included, layer by layer; None for all before it.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tie_embeddings: bool
    ropes: tuple[RopeRecord, ...]
    rope_of_layer: tuple[int | None, ...]
    window_of_layer: tuple[int | None, ...]


class VisionRecord(BaseModel, frozen=True, extra="forbid"):
    """How images come into a model.

    Attributes:
        family: Of the tower; it decides how images are prepared and placed.
        image_token: Stands for a piece of an image among the tokens.
        tokens_per_image: None where that depends on the image's size.
        settings: What preparing and placing need, under the names of the model's own configuration.
    """

    family: str
    image_token: int
    tokens_per_image: int | None
    settings: dict[str, JsonValue]


class ModelRecord(BaseModel, frozen=True, extra="forbid"):
    """What a runtime needs to know of a model beside its graphs; `awq2trt.models.spec.ModelSpec` is the whole.

    Attributes:
        vision: None for a model of text.
    """

    decoder: DecoderRecord
    vision: VisionRecord | None = None


class TokensRecord(BaseModel, frozen=True, extra="forbid"):
    """Tokens that mean something to a runtime.

    Attributes:
        bos: Begins a text; None if the tokenizer has none. Likewise `eos`, which ends one, `pad` and `unk`.
        stop: All that end an answer, in ascending order.
    """

    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    stop: tuple[int, ...]


class CalibrationRecord(BaseModel, frozen=True, extra="forbid"):
    """The text that the scales were searched on.

    Attributes:
        text: As `--calib` names it.
        sha256: Of the token ids, as int64 little-endian bytes.
        samples: Windows used.
        seqlen: Tokens in a window.
        seed: Of what was drawn at random.
        images_sha256: Of the image files, one after the other; None where there were none.
    """

    text: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    samples: int
    seqlen: int
    seed: int
    images_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class WeightRecord(BaseModel, frozen=True, extra="forbid"):
    """How a weight is stored.

    Attributes:
        dtype: NumPy's name of its element type, `bfloat16` included; of its scales where it is quantized.
        scheme: None for a weight that is not quantized.
    """

    dtype: str
    scheme: QuantScheme | None = None


class LayerSchemeRecord(BaseModel, frozen=True, extra="forbid"):
    """Linears that are quantized otherwise than the rest.

    Attributes:
        layers: Their names in the checkpoint; `*` stands for any characters.
        scheme: None for linears that are not quantized.
    """

    layers: str
    scheme: QuantScheme | None


class QuantizationRecord(BaseModel, frozen=True, extra="forbid"):
    """How the weights were quantized.

    Attributes:
        method: As the recipe names it, or as the checkpoint of another tool names it.
        scheme: Bits, group size, zero points of the linears in the decoder's blocks.
        exceptions: Linears with another scheme, those of a vision tower included; the first that fits counts.
        head: How the head is stored, and likewise the `embedding`; None where a manifest of format 1 did not say.
        calibration: None where the method uses no text, or the text is not known.
        effort: Of the search; None where there was none, or it is not known.
    """

    method: str
    scheme: QuantScheme
    exceptions: tuple[LayerSchemeRecord, ...] = ()
    head: WeightRecord | None = None
    embedding: WeightRecord | None = None
    calibration: CalibrationRecord | None = None
    effort: str | None = None

    def with_ends(self, dtype: str, head: QuantScheme | None, *, tied: bool) -> QuantizationRecord:
        """The same with what is known of embedding and head.

        Args:
            dtype: Of both, and of the scales of what is quantized.
            head: Its scheme; None where it is not quantized.
            tied: The embedding is the head.
        """
        of_head = WeightRecord(dtype=dtype, scheme=head)
        embedding = of_head if tied else WeightRecord(dtype=dtype)
        return self.model_copy(update={"head": of_head, "embedding": embedding})


class GraphRecord(BaseModel, frozen=True, extra="forbid"):
    """One graph of a model.

    Attributes:
        model: Its ONNX file.
        engine: Its engine's file: of an engine, or of a kit once it is finished; else None.
        io: Its inputs and outputs.
    """

    model: str
    engine: str | None = None
    io: IoContract


class RangeRecord(BaseModel, frozen=True, extra="forbid"):
    """Sizes that a dynamic axis may have.

    Attributes:
        typical: What kernels were chosen for.
    """

    shortest: int
    typical: int
    longest: int


class ProfileRecord(BaseModel, frozen=True, extra="forbid"):
    """An optimization profile: which sizes a call of it may have.

    Attributes:
        name: Of a decoder and an embedding: `prefill` or `decode`; of a vision graph: `image`.
        axes: By the dynamic axis' name in the graph's contract; an axis that is not named is 1.
    """

    name: str
    axes: dict[str, RangeRecord]

    @staticmethod
    def of_tokens(name: str, shortest: int, typical: int, longest: int) -> ProfileRecord:
        """A profile for so many new tokens."""
        return ProfileRecord(
            name=name, axes={SEQUENCE: RangeRecord(shortest=shortest, typical=typical, longest=longest)}
        )

    @staticmethod
    def of_one_image(name: str) -> ProfileRecord:
        """A profile for an image at a time."""
        return ProfileRecord(name=name, axes={IMAGES: RangeRecord(shortest=1, typical=1, longest=1)})

    @property
    def tokens(self) -> RangeRecord:
        """New tokens that a call may have."""
        return self.axes[SEQUENCE]


Profiles: TypeAlias = dict[str, tuple[ProfileRecord, ...]]
"""By graph, each in its engine's order."""


class EngineRecord(BaseModel, frozen=True, extra="forbid"):
    """What the engine runs on.

    Attributes:
        target: Name in the target table.
        compute_capabilities: Of the GPUs it runs on, as TensorRT names them, e.g. `SM86`.
        flavour: `tensorrt` or `tensorrt-rtx`.
        tensorrt_version: That built it, and runs it.
        plugin_version: Of the plugin library inside the engine; None if it has none.
        profiles: Of every graph.
        gpu: Name of the GPU that built it, where it runs on such a one alone; None where the capabilities decide.
    """

    target: str
    compute_capabilities: tuple[str, ...]
    flavour: str
    tensorrt_version: str
    plugin_version: str | None
    profiles: Profiles
    gpu: str | None = None


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
        profiles: Of the engines to be, by graph.
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
    profiles: Profiles
    build_bytes: int
    run_bytes: int
    disk_bytes: int


class LoweredRecord(BaseModel, frozen=True, extra="forbid"):
    """What runs a model that is written for one execution provider of ONNX Runtime.

    Attributes:
        target: Name in the target table.
        provider: As ONNX Runtime names it, e.g. `CUDAExecutionProvider`.
        minimum_onnxruntime: Lowest ONNX Runtime that takes the model, (major, minor).
        minimum_compute_capability: Of the GPU, as NVIDIA writes it; None where it runs on the CPU.
        minimum_cuda: Lowest CUDA of the driver, (major, minor); None where it runs on the CPU.
        cpus: As `uname -m` says them; empty for any.
        plugin_version: Of the library with our operators that it needs; None if it needs none.
        profiles: Of every graph: which sizes a call should have. Longer prompts go in pieces.
    """

    target: str
    provider: str
    minimum_onnxruntime: tuple[int, int]
    minimum_compute_capability: str | None
    minimum_cuda: tuple[int, int] | None
    cpus: tuple[str, ...]
    plugin_version: str | None
    profiles: Profiles


class Contents(BaseModel, frozen=True, extra="forbid"):
    """What a stage says about the artifact it made.

    Attributes:
        source: The model that it comes from.
        quantization: Of its weights.
        model: What a runtime needs to know of it; None where a manifest of format 1 did not say.
        tokens: Of its tokenizer; None for a checkpoint, and where a manifest of format 1 did not say.
        graphs: By name: `decoder`, and beside it what a model that sees has; empty for a checkpoint.
        operators: Our operators in the graphs, by name, with the version of each.
        engine: Of kind `engine`, and likewise `kit` and `lowered`.
    """

    source: SourceRecord
    quantization: QuantizationRecord
    model: ModelRecord | None = None
    tokens: TokensRecord | None = None
    graphs: dict[str, GraphRecord] = {}
    operators: dict[str, str] = {}
    engine: EngineRecord | None = None
    kit: KitRecord | None = None
    lowered: LoweredRecord | None = None

    @property
    def decoder(self) -> IoContract | None:
        """Inputs and outputs of the decoder; None for a checkpoint."""
        return self.graphs[DECODER].io if DECODER in self.graphs else None

    @property
    def beside(self) -> dict[str, GraphRecord]:
        """Graphs beside the decoder, by name."""
        return {name: graph for name, graph in self.graphs.items() if name != DECODER}

    def with_engines(self, decoder: IoContract | None = None) -> Contents:
        """The same where every graph has an engine.

        Args:
            decoder: Inputs and outputs of the decoder's; None for those of the ONNX model.
        """
        graphs = {
            name: graph.model_copy(update={"engine": engine_of_graph(graph.model)})
            for name, graph in self.graphs.items()
        }
        if decoder is not None:
            graphs[DECODER] = graphs[DECODER].model_copy(update={"io": decoder})
        return self.model_copy(update={"graphs": graphs})
