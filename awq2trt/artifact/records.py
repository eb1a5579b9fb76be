"""The parts of a manifest, which describe an artifact's model, its quantization, its graphs, and what runs it.

The normative text is the section "Manifest" of `plugins/FORMAT.md`. Some fields and records exist for future models and
targets (images, exceptions to the scheme, models lowered for ONNX Runtime), so that these need no new format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from pydantic import BaseModel, Field, JsonValue

from awq2trt.io_contract import DECODER, IMAGES, SEQUENCE, IoContract, engine_of_graph
from awq2trt.scheme import QuantScheme


class FileRecord(BaseModel, frozen=True, extra="forbid"):
    """The size and hash of one file."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceRecord(BaseModel, frozen=True, extra="forbid"):
    """The model that the artifact comes from.

    Attributes:
        model: The name that the user gave it.
        family: Its family, e.g. `llama`.
        files: Records of its weight files, by name.
    """

    model: str
    family: str
    files: dict[str, FileRecord]


class RopeRecord(BaseModel, frozen=True, extra="forbid"):
    """A rotary embedding, as far as its tables of cosines and sines can be computed from it.

    Attributes:
        inv_freq: Angular frequency of each channel pair.
        factor: Factor of cosines and sines.
        sections: Numbers of channel pairs for time, height and width if positions have three numbers; None if they have
            one.
        interleaved: Whether sections alternate pair by pair, instead of following one another.
    """

    inv_freq: tuple[float, ...]
    factor: float = 1.0
    sections: tuple[int, ...] | None = None
    interleaved: bool = False


class DecoderRecord(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a decoder, and what its executor must compute in addition to its graphs.

    Attributes:
        max_positions: Positions that the model was made for; the cache may hold fewer.
        tie_embeddings: Whether the head is the embedding matrix.
        ropes: Its different rotary embeddings.
        rope_of_layer: Index in `ropes` for each layer; None for a layer without one.
        window_of_layer: Number of positions that a query sees in each layer, itself included; None for all before it.
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
    """How images enter a model.

    Attributes:
        family: Family of the tower; it decides how images are prepared and placed.
        image_token: The token that stands for a piece of an image.
        tokens_per_image: Number of image tokens for an image; None if it depends on the image's size.
        settings: Settings for preparing and placing, under the names of the model's own configuration.
    """

    family: str
    image_token: int
    tokens_per_image: int | None
    settings: dict[str, JsonValue]


class ModelRecord(BaseModel, frozen=True, extra="forbid"):
    """What a runtime needs to know about a model besides its graphs; `awq2trt.models.spec.ModelSpec` has everything.

    Attributes:
        vision: How images enter the model; None for a model of text.
    """

    decoder: DecoderRecord
    vision: VisionRecord | None = None


class TokensRecord(BaseModel, frozen=True, extra="forbid"):
    """Tokens that have a meaning for a runtime.

    Attributes:
        bos: The token that begins a text; None if the tokenizer has none. The same holds for `eos`, which ends a text,
            `pad` and `unk`.
        stop: All tokens that end an answer, in ascending order.
    """

    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    stop: tuple[int, ...]


class CalibrationRecord(BaseModel, frozen=True, extra="forbid"):
    """The text on which the scales were searched.

    Attributes:
        text: The value of `--calib`.
        sha256: Hash of the token ids, as int64 little-endian bytes.
        samples: Number of windows used.
        seqlen: Tokens in a window.
        seed: Seed of random numbers.
        images_sha256: Hash of the image files, one after the other; None if there were none.
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
        dtype: NumPy's name of its element type, `bfloat16` included; if it is quantized, that of its scales.
        scheme: Its scheme; None for a weight that is not quantized.
    """

    dtype: str
    scheme: QuantScheme | None = None


class LayerSchemeRecord(BaseModel, frozen=True, extra="forbid"):
    """Linears that are quantized in another way than the rest.

    Attributes:
        layers: Their names in the checkpoint; `*` stands for any characters.
        scheme: Their scheme; None for linears that are not quantized.
    """

    layers: str
    scheme: QuantScheme | None


class QuantizationRecord(BaseModel, frozen=True, extra="forbid"):
    """How the weights were quantized.

    Attributes:
        method: Its name in the recipe, or in another tool's checkpoint.
        scheme: Bits, group size and zero points of the linears in the decoder's blocks.
        exceptions: Linears with another scheme, including those of a vision tower; the first entry that matches counts.
        head: How the head is stored; `embedding` has the same for the embedding. None if a manifest of format 1 did not
            say.
        calibration: The text; None if the method uses no text, or the text is unknown.
        effort: Effort of the search; None if there was no search, or it is unknown.
    """

    method: str
    scheme: QuantScheme
    exceptions: tuple[LayerSchemeRecord, ...] = ()
    head: WeightRecord | None = None
    embedding: WeightRecord | None = None
    calibration: CalibrationRecord | None = None
    effort: str | None = None

    def with_ends(self, dtype: str, head: QuantScheme | None, *, tied: bool) -> QuantizationRecord:
        """Returns this record with what is known about embedding and head.

        Args:
            dtype: Type of both, or of their scales if they are quantized.
            head: Scheme of the head; None if it is not quantized.
            tied: Whether the embedding is the head.
        """
        of_head = WeightRecord(dtype=dtype, scheme=head)
        embedding = of_head if tied else WeightRecord(dtype=dtype)
        return self.model_copy(update={"head": of_head, "embedding": embedding})

    def with_vision(self, linears: Iterable[str]) -> QuantizationRecord:
        """Returns this record with the linears that the model sees with and that are quantized as its blocks are."""
        added = tuple(LayerSchemeRecord(layers=name, scheme=self.scheme) for name in linears)
        return self.model_copy(update={"exceptions": (*self.exceptions, *added)})


class GraphRecord(BaseModel, frozen=True, extra="forbid"):
    """One graph of a model.

    Attributes:
        model: Its ONNX file.
        engine: Its engine's file, in an engine or a finished kit; otherwise None.
        io: Its inputs and outputs.
    """

    model: str
    engine: str | None = None
    io: IoContract


class RangeRecord(BaseModel, frozen=True, extra="forbid"):
    """The sizes that a dynamic axis may have.

    Attributes:
        typical: The size for which kernels were chosen.
    """

    shortest: int
    typical: int
    longest: int


class ProfileRecord(BaseModel, frozen=True, extra="forbid"):
    """An optimization profile: the sizes that its calls may have.

    Attributes:
        name: Name of the profile: `prefill` or `decode` for a decoder and an embedding, `image` for a vision graph.
        axes: Ranges by the name of the dynamic axis in the graph's contract; an axis that is missing here is 1.
    """

    name: str
    axes: dict[str, RangeRecord]

    @staticmethod
    def of_tokens(name: str, shortest: int, typical: int, longest: int) -> ProfileRecord:
        """Makes a profile for this many new tokens."""
        return ProfileRecord(
            name=name, axes={SEQUENCE: RangeRecord(shortest=shortest, typical=typical, longest=longest)}
        )

    @staticmethod
    def of_one_image(name: str) -> ProfileRecord:
        """Makes a profile for one image at a time."""
        return ProfileRecord(name=name, axes={IMAGES: RangeRecord(shortest=1, typical=1, longest=1)})

    @property
    def tokens(self) -> RangeRecord:
        """The number of new tokens that a call may have."""
        return self.axes[SEQUENCE]


Profiles: TypeAlias = dict[str, tuple[ProfileRecord, ...]]
"""Profiles by graph, in the order of its engine."""


class EngineRecord(BaseModel, frozen=True, extra="forbid"):
    """What the engine runs on.

    Attributes:
        target: Name in the target table.
        compute_capabilities: Compute capabilities of its GPUs, as TensorRT names them, e.g. `SM86`.
        flavour: `tensorrt` or `tensorrt-rtx`.
        tensorrt_version: Version of the TensorRT that built it and has to run it.
        plugin_version: Version of the plugin library inside the engine; None if it has none.
        profiles: Profiles of every graph.
        gpu: Name of the GPU that built it, if it runs only on such a GPU; None if the capabilities decide.
    """

    target: str
    compute_capabilities: tuple[str, ...]
    flavour: str
    tensorrt_version: str
    plugin_version: str | None
    profiles: Profiles
    gpu: str | None = None


class KitRecord(BaseModel, frozen=True, extra="forbid"):
    """What a kit is for, and what its script requires of the machine.

    Attributes:
        target: Name in the target table.
        compute_capability: Compute capability of its GPU, as NVIDIA writes it: `8.7`.
        cpu: The CPU, as `uname -m` prints it.
        jetpack: The release that the kit is for.
        minimum_tensorrt: The lowest TensorRT that accepts the model.
        plugin_version: Version of the plugin library, or of its sources.
        plugin_cuda: CUDA runtime in the library; None if the kit has sources.
        profiles: Profiles of the future engines, by graph.
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
        provider: Its name in ONNX Runtime, e.g. `CUDAExecutionProvider`.
        minimum_onnxruntime: The lowest ONNX Runtime that accepts the model, (major, minor).
        minimum_compute_capability: Lowest compute capability, as NVIDIA writes it; None for the CPU.
        minimum_cuda: The lowest CUDA of the driver, (major, minor); None for the CPU.
        cpus: The CPUs, as `uname -m` prints them; empty for any.
        plugin_version: Version of the library with our operators, if it needs it; otherwise None.
        profiles: For every graph, the sizes that a call should have; longer prompts are split into pieces.
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
    """What a stage records about the artifact that it made.

    Attributes:
        source: The original model.
        quantization: How its weights were quantized.
        model: What a runtime needs to know about the model; None if a manifest of format 1 did not say.
        tokens: Special tokens of its tokenizer; None for a checkpoint, or if a manifest of format 1 did not say.
        graphs: Graphs by name: `decoder`, and those that a model with images has in addition; empty for a checkpoint.
        operators: Our operators in the graphs, by name, with the version of each.
        engine: The record of an engine, only in artifacts of the kind `engine`; likewise `kit` and `lowered`.
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
        """Returns these contents for graphs that all have engines.

        Args:
            decoder: Inputs and outputs of the decoder's engine; None for those of the ONNX model.
        """
        graphs = {
            name: graph.model_copy(update={"engine": engine_of_graph(graph.model)})
            for name, graph in self.graphs.items()
        }
        if decoder is not None:
            graphs[DECODER] = graphs[DECODER].model_copy(update={"io": decoder})
        return self.model_copy(update={"graphs": graphs})
