"""How a model sees images, as data: a vision tower, the projector behind it, and the tokens that stand for an image.

A family turns a Hugging Face `config.json` into a `VisionSpec`; code that runs, copies or exports a tower reads only
that. It needs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from awq2trt.artifact.records import VisionRecord
from awq2trt.models.vision.prepared import Grid

if TYPE_CHECKING:
    from awq2trt.models.families.description import DecoderSpec

QUICK_GELU: Final = "quick_gelu"
QUICK_GELU_SLOPE: Final = 1.702
"""x * sigmoid(1.702 x), the activation of OpenAI's CLIP; no decoder has it."""

CHANNELS: Final = 3
"""Red, green, blue."""


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """A vision transformer like CLIP's (arXiv:2103.00020): learned positions, norms before each part.

    Attributes:
        image_size: Side of an image in pixels.
        patch_size: Side of a patch in pixels.
        activation: Activation function of the MLPs.
        prefix: Prefix of all its tensors.
        class_token: Whether a class token precedes the patches and a norm the layers, as in CLIP. Without, the tower is
            one as SigLIP's (arXiv:2303.15343), whose patches have a bias.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float
    prefix: str
    class_token: bool = True

    @property
    def side(self) -> int:
        """Number of patches along an image's side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of patches in an image."""
        return self.side**2

    def layer_prefix(self, layer: int) -> str:
        """Prefix of the tensors of one layer."""
        return f"{self.prefix}encoder.layers.{layer}."

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        size, patch = self.hidden_size, self.patch_size
        embeddings = f"{self.prefix}embeddings."
        shapes: dict[str, tuple[int, ...]] = {
            f"{embeddings}patch_embedding.weight": (size, CHANNELS, patch, patch),
            f"{embeddings}position_embedding.weight": (self.num_patches + self.class_token, size),
            **_norm(f"{self.prefix}post_layernorm", size),
        }
        if self.class_token:
            shapes[f"{embeddings}class_embedding"] = (size,)
            shapes |= _norm(f"{self.prefix}pre_layrnorm", size)  # this is how OpenAI's weights spell it
        else:
            shapes[f"{embeddings}patch_embedding.bias"] = (size,)
        for layer in range(self.num_layers):
            prefix = self.layer_prefix(layer)
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= _norm(prefix + norm, size)
            for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _linear(f"{prefix}self_attn.{linear}", size, size, bias=True)
            shapes |= _linear(f"{prefix}mlp.fc1", self.intermediate_size, size, bias=True)
            shapes |= _linear(f"{prefix}mlp.fc2", size, self.intermediate_size, bias=True)
        return shapes


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """Two linears with an activation function between them, from the tower's channels to the decoder's.

    Attributes:
        in_features: Channels of its input.
        out_features: Channels of the decoder's embeddings, and between the linears.
        prefix: Prefix of all its tensors.
    """

    in_features: int
    out_features: int
    activation: str
    bias: bool
    prefix: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return {
            **_linear(f"{self.prefix}linear_1", self.out_features, self.in_features, bias=self.bias),
            **_linear(f"{self.prefix}linear_2", self.out_features, self.out_features, bias=self.bias),
        }


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """A perceiver: trained latents that read an image's patches, layer after layer (arXiv:2204.14198, section 2.1).

    In each layer they attend to the patches and to themselves, then pass through an MLP with GELU; both are behind
    LayerNorms, and a last one follows. Nothing but the norms has a bias.

    Attributes:
        width: Channels of patches and latents.
        num_latents: Number of pieces that it makes of every image.
        intermediate_size: Channels within the MLPs.
        prefix: Prefix of all its tensors.
    """

    width: int
    num_latents: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    prefix: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        width, inner = self.width, self.num_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.prefix}latents": (self.num_latents, width),
            **_norm(f"{self.prefix}norm", width),
        }
        for layer in range(self.num_layers):
            attention, mlp = f"{self.prefix}layers.{layer}.0.", f"{self.prefix}layers.{layer}.1."
            for norm in (f"{attention}norm_media", f"{attention}norm_latents", f"{mlp}0"):
                shapes |= _norm(norm, width)
            shapes |= _linear(f"{attention}to_q", inner, width, bias=False)
            shapes |= _linear(f"{attention}to_kv", 2 * inner, width, bias=False)
            shapes |= _linear(f"{attention}to_out", width, inner, bias=False)
            shapes |= _linear(f"{mlp}1", self.intermediate_size, width, bias=False)
            shapes |= _linear(f"{mlp}3", width, self.intermediate_size, bias=False)
        return shapes


@dataclass(frozen=True, kw_only=True)
class SeeingSpec(ABC):
    """How a model sees images: what all kinds of towers have in common.

    Attributes:
        family: Family of the model; it decides how images are prepared and placed.
        image_token: The token that stands for a piece of an image.
    """

    family: str
    image_token: int

    @property
    @abstractmethod
    def depth(self) -> int:
        """Layers of its tower, as far as they are run."""

    @property
    @abstractmethod
    def pixels_shape(self) -> tuple[int, ...]:
        """Shape of a prepared image, or of a patch of one."""

    @property
    @abstractmethod
    def example_grid(self) -> Grid | None:
        """Grid of an image that shows all that the tower does with images; None if it takes images of one size."""

    @property
    @abstractmethod
    def modules(self) -> tuple[str, ...]:
        """Names of what it sees with, whose linears are quantized only if that is asked for."""

    @property
    def idle(self) -> tuple[str, ...]:
        """Prefixes of the tensors of layers that are stored, but not run."""
        return ()

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""

    @abstractmethod
    def record(self) -> VisionRecord:
        """What a runtime needs to know, for the manifest."""


@dataclass(frozen=True, kw_only=True)
class StillSpec(SeeingSpec):
    """How a model sees with a tower as CLIP's, which makes as many pieces of every image.

    Attributes:
        feature_layers: Layers of the tower whose outputs are read side by side; 0 is the first one's input.
        keeps_class: Whether the class token is a piece of the image, too.
    """

    tower: TowerSpec
    feature_layers: tuple[int, ...]
    keeps_class: bool

    @property
    def depth(self) -> int:
        """Layers of its tower, as far as they are run."""
        return max(self.feature_layers)

    @property
    def idle(self) -> tuple[str, ...]:
        """Prefixes of the tensors of layers behind the last one that is read."""
        return tuple(self.tower.layer_prefix(layer) for layer in range(self.depth, self.tower.num_layers))

    @property
    def pixels_shape(self) -> tuple[int, int, int]:
        """Shape of a prepared image."""
        return CHANNELS, self.tower.image_size, self.tower.image_size

    @property
    def example_grid(self) -> None:
        """All images are of one size."""
        return None

    @property
    @abstractmethod
    def tokens_per_image(self) -> int:
        """Number of image tokens that stand for one image."""

    @property
    @abstractmethod
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of what the vision graph makes of one image."""

    def record(self) -> VisionRecord:
        """What a runtime needs to know about it, for the manifest."""
        return VisionRecord(
            family=self.family,
            image_token=self.image_token,
            tokens_per_image=self.tokens_per_image,
            settings={"image_size": self.tower.image_size, "patch_size": self.tower.patch_size},
        )


@dataclass(frozen=True, kw_only=True)
class VisionSpec(StillSpec):
    """How a model sees whose decoder reads pieces of an image in the place of image tokens."""

    projector: ProjectorSpec

    @property
    def tokens_per_image(self) -> int:
        """Number of image tokens that stand for one image."""
        return self.tower.num_patches + self.keeps_class

    @property
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of what stands for one image among the decoder's embeddings."""
        return self.tokens_per_image, self.projector.out_features

    @property
    def modules(self) -> tuple[str, str]:
        """Names of the tower and the projector."""
        return self.tower.prefix.rstrip("."), self.projector.prefix.rstrip(".")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return self.tower.shapes() | self.projector.shapes()


@dataclass(frozen=True, kw_only=True)
class AttendedSpec(StillSpec):
    """How a model sees whose decoder attends to pieces of an image (`DecoderSpec.cross`), marked by one image token.

    Attributes:
        cross: Name of what attends to them, within a block.
        readers: Full names of the linears that make keys and values of them.
        reader_channels: Channels of what one of those makes.
    """

    resampler: ResamplerSpec
    cross: str
    readers: tuple[str, ...]
    reader_channels: int

    @property
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of the keys and values of one image, for all layers."""
        return self.resampler.num_latents, len(self.readers) * self.reader_channels

    @property
    def tokens_per_image(self) -> int:
        """Number of image tokens that stand for one image."""
        return 1

    @property
    def modules(self) -> tuple[str, str, str]:
        """Names of the tower, the resampler and the cross-attention."""
        return self.tower.prefix.rstrip("."), self.resampler.prefix.rstrip("."), self.cross

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the decoder, by full name."""
        return self.tower.shapes() | self.resampler.shapes()


Describe = Callable[[Mapping[str, Any], Collection[str]], "tuple[DecoderSpec, SeeingSpec]"]
"""Takes config.json and the names of the checkpoint's tensors; returns the descriptions of decoder and tower."""


@dataclass(frozen=True)
class VisionFamily:
    """A family of models that see images.

    Attributes:
        name: Its name in manifests.
        architectures: Values of config.json's `architectures` that belong to it.
        describe: Describes a model; raises `UnsupportedError` if the family cannot express it.
    """

    name: str
    architectures: tuple[str, ...]
    describe: Describe


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight
