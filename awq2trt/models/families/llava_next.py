"""LLaVA 1.6, which transformers calls LLaVA-NeXT: LLaVA 1.5's parts, which see an image in tiles, and as a whole.

Source: `LlavaNextForConditionalGeneration` of transformers 5.24. Keys that config.json leaves out have the defaults of
its class, which are those of LLaVA 1.5.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import llava
from awq2trt.models.families.config_keys import PUBLISHED
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.vision.description import VisionFamily
from awq2trt.models.vision.mosaic import PINPOINTS, WANTED_SIZES, MosaicSpec, sizes_in

_NAME: Final = "llava_next"

_NEWLINE: Final = "image_newline"
"""The end of the name of the tensor that stands behind every row of pieces."""


def describe(config: Mapping[str, Any], tensor_names: Collection[str]) -> tuple[DecoderSpec, MosaicSpec]:
    """Describes a LLaVA 1.6 model.

    Args:
        config: config.json.
        tensor_names: Names of the checkpoint's tensors, which show its naming; empty for the published naming.

    Raises:
        UnsupportedError: The decoder or the tower is of another kind, or a key has a value that no such model has.
    """
    decoder, tile = llava.describe(config, tensor_names)
    if tile.keeps_class:
        raise UnsupportedError(
            "vision_feature_select_strategy: expected default, since a class token has no place in a row of pieces, "
            "got full.",
            where="config.json",
            fix=PUBLISHED,
        )
    sizes = sizes_in(config, tile.tower.image_size)
    if not sizes:
        raise UnsupportedError(
            f"{PINPOINTS}: expected {WANTED_SIZES.format(tile.tower.image_size)}, got {config.get(PINPOINTS)!r}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return decoder, MosaicSpec(
        family=_NAME,
        image_token=tile.image_token,
        tile=replace(tile, family=_NAME),
        newline=f"{tile.projector.prefix.removesuffix(llava.PROJECTOR)}{_NEWLINE}",
        sizes=sizes,
    )


FAMILY: Final = VisionFamily(name=_NAME, architectures=("LlavaNextForConditionalGeneration",), describe=describe)
