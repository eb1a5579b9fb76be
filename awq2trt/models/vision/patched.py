"""Towers for images of any size as data: what those with windows and those with deepstack have in common.

In: sizes. Out: names and shapes of tensors, and what a manifest says. An image keeps its proportion and becomes
patches; of each square of them a merger behind the tower makes a piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from awq2trt.artifact.records import VisionRecord
from awq2trt.models.vision.description import CHANNELS, SeeingSpec
from awq2trt.models.vision.patch_layout import FRAMES, MERGE, PATCH_SIZE, PatchLayout


@dataclass(frozen=True, kw_only=True)
class PatchTowerSpec(ABC):
    """A tower for images of any size, and the merger behind it, which makes one piece of a square of patches.

    Attributes:
        hidden_size: Channels of a patch, H.
        intermediate_size: Channels within the MLPs.
        patch_size: Pixels along a patch's side.
        frames: Frames of a patch; a still image is repeated to fill them.
        merge: Patches along the side of a merged square.
        out_features: Width of a piece, which is that of the decoder's embeddings.
        activation: Activation function of the MLPs.
        norm_eps: Epsilon of its norms.
        prefix: Prefix of the names of all its tensors.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    frames: int
    merge: int
    out_features: int
    activation: str
    norm_eps: float
    prefix: str

    @property
    def patch_numbers(self) -> int:
        """How many numbers a prepared patch has, channel by channel, frame by frame."""
        return CHANNELS * self.frames * self.patch_size**2

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of the weight that reads patches."""
        return (self.hidden_size, CHANNELS, self.frames, self.patch_size, self.patch_size)

    @property
    def square_size(self) -> int:
        """Channels of a square of patches, which become a piece."""
        return self.hidden_size * self.merge**2

    @property
    def piece_width(self) -> int:
        """Channels of a piece, with all that is behind those of the decoder's embeddings."""
        return self.out_features

    @property
    def layout(self) -> PatchLayout:
        """How the tower divides images."""
        return PatchLayout(self.patch_size, self.merge)

    @property
    def settings(self) -> dict[str, int]:
        """What a runtime needs to know of it, for the manifest."""
        return {PATCH_SIZE: self.patch_size, FRAMES: self.frames, MERGE: self.merge}

    def layer_prefix(self, layer: int) -> str:
        """Prefix of the tensors of one layer."""
        return f"{self.prefix}blocks.{layer}."

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""


@dataclass(frozen=True, kw_only=True)
class PatchVisionSpec(SeeingSpec):
    """How a model sees images of any size, each with as many pieces as its size gives.

    Attributes:
        tower: Its tower and merger.
        around: Tokens before and after an image's in a conversation, under the names of the model's configuration.
    """

    tower: PatchTowerSpec
    around: Mapping[str, int] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Layers of its tower."""
        return self.tower.num_layers

    @property
    def pixels_shape(self) -> tuple[int]:
        """Numbers of a prepared patch."""
        return (self.tower.patch_numbers,)

    @property
    def modules(self) -> tuple[str]:
        """Name of the tower."""
        return (self.tower.prefix.rstrip("."),)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return self.tower.shapes()

    def record(self) -> VisionRecord:
        """What a runtime needs to know, for the manifest."""
        return VisionRecord(
            family=self.family,
            image_token=self.image_token,
            tokens_per_image=None,
            settings={**self.tower.settings, **self.around},
        )
