"""Gemma 3 that sees: SigLIP's tower, means of squares of patches, and Gemma 3's decoder.

Source: `Gemma3ForConditionalGeneration` of transformers 5.24 and arXiv:2503.19786. Keys that config.json leaves out
have the defaults of its classes, as published checkpoints expect.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import (
    PUBLISHED,
    config_flag,
    config_part,
    config_size,
    config_token,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.families.siglip import siglip_tower
from awq2trt.models.families.text_part import describe_text
from awq2trt.models.vision.description import VisionFamily
from awq2trt.models.vision.pooled import IMAGE_BLOCKS, PooledVisionSpec, PoolerSpec

_NAME: Final = "gemma3-vision"

_IMAGE_TOKEN: Final = 262144
_TOKENS_PER_IMAGE: Final = 256

_TEXT_DEFAULTS: Final[Mapping[str, Any]] = {"model_type": "gemma3_text"}
"""Those of a model without `text_config`."""

_CLASS_NAMES: Final = "model."
"""Begins the names that transformers' classes give their parts; some versions before 5 saved these."""

_INNER_TOWER: Final = "vision_model."
"""A part of names that stood behind `vision_tower.` before transformers 5."""


def describe(config: Mapping[str, Any], tensor_names: Collection[str]) -> tuple[DecoderSpec, PooledVisionSpec]:
    """Describes a Gemma 3 model that sees.

    Args:
        config: config.json.
        tensor_names: Names of the checkpoint's tensors, which show its naming; empty for the published naming.

    Raises:
        UnsupportedError: The decoder is of another kind, or a key has a value that no such model has.
    """
    of_classes = any(name.startswith(f"{_CLASS_NAMES}language_model.") for name in tensor_names)
    outer = _CLASS_NAMES if of_classes else ""
    inner = f"{outer}vision_tower.{_INNER_TOWER}"
    has_inner = not tensor_names or any(name.startswith(inner) for name in tensor_names)
    text = {**_TEXT_DEFAULTS, **config_part(config, "text_config")}
    refuse_unless(text, {"final_logit_softcapping": None})  # which transformers' class does not read
    decoder = describe_text(
        text,
        prefix="model.language_model." if of_classes else "language_model.model.",
        head="lm_head" if of_classes else "language_model.lm_head",
        tied=config_flag(config, "tie_word_embeddings", True),
    )
    tower = siglip_tower(config_part(config, "vision_config"), inner if has_inner else f"{outer}vision_tower.")
    key = "image_token_index" if config.get("image_token_index") is not None else "image_token_id"
    pooler = PoolerSpec(
        in_features=tower.hidden_size,
        out_features=decoder.hidden_size,
        merge=_merge(config, tower.side),
        norm_eps=tower.norm_eps,
        prefix=f"{outer}multi_modal_projector.",
    )
    vision = PooledVisionSpec(
        family=_NAME,
        image_token=config_token(config, key, _IMAGE_TOKEN, decoder.vocab_size),
        tower=tower,
        feature_layers=(tower.num_layers,),
        keeps_class=False,
        pooler=pooler,
    )
    return replace(decoder, image_blocks=True), vision


def _merge(config: Mapping[str, Any], side: int) -> int:
    """Patches along the side of a square that becomes a token.

    Raises:
        UnsupportedError: The tower's patches cannot be divided into so many squares.
    """
    tokens = config_size(config, IMAGE_BLOCKS, _TOKENS_PER_IMAGE)
    squares = math.isqrt(tokens)
    if squares**2 != tokens or side % squares:
        raise UnsupportedError(
            f"{IMAGE_BLOCKS}: expected the square of a divisor of the tower's {side} patches a side, got {tokens}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return side // squares


FAMILY: Final = VisionFamily(name=_NAME, architectures=("Gemma3ForConditionalGeneration",), describe=describe)
