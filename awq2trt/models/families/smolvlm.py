"""SmolVLM and Idefics3: an image in tiles through SigLIP's tower, pieces of squares of patches, and a decoder of text.

Source: `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration` of transformers 5.24, which compute the
same; arXiv:2408.12637 and arXiv:2504.05299. Keys that config.json leaves out have the defaults of these classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import (
    PUBLISHED,
    config_flag,
    config_part,
    config_size,
    config_token,
)
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.families.siglip import siglip_tower
from awq2trt.models.families.text_part import describe_text
from awq2trt.models.vision.description import VisionFamily
from awq2trt.models.vision.tiled import SCALE_FACTOR, ConnectorSpec, TiledVisionSpec

_NAME: Final = "smolvlm"

_DECODER: Final = "model.text_model."
_TOWER: Final = "model.vision_model."
_CONNECTOR: Final = "model.connector."
_HEAD: Final = "lm_head"

_IMAGE_TOKEN: Final = 128257
_SCALE_FACTOR: Final = 2

_TOWER_SIZES: Final[Mapping[str, int]] = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
"""Those of a tower whose config leaves them out, where SigLIP's own class has others."""

_TEXT_DEFAULTS: Final[Mapping[str, Any]] = {"model_type": "llama", "rms_norm_eps": 1e-5}
"""Those of a model without `text_config`."""


def describe(config: Mapping[str, Any], _: Collection[str]) -> tuple[DecoderSpec, TiledVisionSpec]:
    """Describes a SmolVLM or Idefics3 model.

    Args:
        config: config.json.

    Raises:
        UnsupportedError: The decoder is of another kind, or a key has a value that no such model has.
    """
    tied = config_flag(config, "tie_word_embeddings", False)
    text = config_part(config, "text_config") or _TEXT_DEFAULTS
    decoder = describe_text(text, prefix=_DECODER, head=_HEAD, tied=tied)
    tower = siglip_tower(config_part(config, "vision_config"), _TOWER, _TOWER_SIZES)
    merge = config_size(config, SCALE_FACTOR, _SCALE_FACTOR)
    if tower.side % merge:
        raise UnsupportedError(
            f"{SCALE_FACTOR}: expected a divisor of the tower's {tower.side} patches a side, got {merge}.",
            where="config.json",
            fix=PUBLISHED,
        )
    image_token = config_token(config, "image_token_id", _IMAGE_TOKEN, decoder.vocab_size)
    connector = ConnectorSpec(
        in_features=tower.hidden_size, out_features=decoder.hidden_size, merge=merge, prefix=_CONNECTOR
    )
    return decoder, TiledVisionSpec(family=_NAME, image_token=image_token, tower=tower, connector=connector)


FAMILY: Final = VisionFamily(
    name=_NAME,
    architectures=("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    describe=describe,
)
