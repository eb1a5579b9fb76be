"""Models that see averages of patches, whose tokens see each other (Gemma 3), as data.

In: sizes. Out: shapes of tensors, and what is written around the pieces of an image. NumPy only.

Source: arXiv:2503.19786, section 2.1; `Gemma3Model` and `Gemma3Processor` of transformers 5.24.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.description import StillSpec
from awq2trt.models.vision.prepared import Pixels, PreparedImage

IMAGE_BLOCKS: Final = "mm_tokens_per_image"
"""Key of config.json and of an exported model's settings; no other family has it."""

BEFORE_IMAGE: Final = "<start_of_image>"
"""What a chat template writes where an image stands; the processor makes the rest of it."""

_TEXTS: Final = (f"\n\n{BEFORE_IMAGE}", "<end_of_image>\n\n")
"""What is written before and behind the tokens of an image's pieces."""


@dataclass(frozen=True, kw_only=True)
class PoolerSpec:
    """What makes a piece of a square of patches: their mean, a norm without an offset, and a linear without a bias.

    Attributes:
        in_features: Channels of a patch.
        out_features: Channels of the decoder's embeddings.
        merge: Patches along the side of a square.
        norm_eps: Epsilon of the norm, whose gain is 1 + weight.
        prefix: Prefix of its tensors.
    """

    in_features: int
    out_features: int
    merge: int
    norm_eps: float
    prefix: str

    @property
    def norm(self) -> str:
        """Name of the norm's weight."""
        return f"{self.prefix}mm_soft_emb_norm.weight"

    @property
    def projection(self) -> str:
        """Name of the linear's weight, which is stored [in_features, out_features]."""
        return f"{self.prefix}mm_input_projection_weight"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return {self.norm: (self.in_features,), self.projection: (self.in_features, self.out_features)}


@dataclass(frozen=True, kw_only=True)
class PooledVisionSpec(StillSpec):
    """How a model sees whose tower's patches are averaged, and whose image tokens see all of their image.

    Attributes:
        pooler: What is behind the tower.
    """

    pooler: PoolerSpec

    @property
    def tokens_per_image(self) -> int:
        """Number of image tokens that stand for one image."""
        return (self.tower.side // self.pooler.merge) ** 2

    @property
    def pieces_shape(self) -> tuple[int, int]:
        """Shape of what stands for one image among the decoder's embeddings."""
        return self.tokens_per_image, self.pooler.out_features

    @property
    def modules(self) -> tuple[str, str]:
        """Names of the tower and the pooler, whose linears are not quantized."""
        return self.tower.prefix.rstrip("."), self.pooler.prefix.rstrip(".")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by full name."""
        return self.tower.shapes() | self.pooler.shapes()

    def record(self) -> VisionRecord:
        """What a runtime needs to know about it, for the manifest."""
        record = super().record()
        return record.model_copy(update={"settings": {**record.settings, IMAGE_BLOCKS: self.tokens_per_image}})


def pooled_image(pixels: Pixels, pieces: int) -> PreparedImage:
    """An image as the vision graph takes it, and what is written around its pieces."""
    return PreparedImage({PIXEL_VALUES: pixels.values[None]}, pieces, texts=_TEXTS)
