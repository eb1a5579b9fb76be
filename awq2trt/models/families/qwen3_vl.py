"""Qwen3-VL, and NVIDIA's Cosmos-Reason2, which is one: a tower with deepstack, and Qwen3's decoder.

Source: `Qwen3VLForConditionalGeneration` of transformers 5.24 and arXiv:2511.21631. Keys that config.json leaves out
have the defaults of transformers' classes. Positions have three numbers where the decoder reads an image, and pairs of
channels follow them in turns. What the tower's deepstack gives is added behind the decoder's first blocks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import qwen
from awq2trt.models.families.config_keys import (
    GELU_TANH,
    MOST_LAYERS,
    PUBLISHED,
    config_activation,
    config_flag,
    config_heads,
    config_part,
    config_size,
    config_token,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.families.qwen_vl import IMAGE_TOKEN, NORM_EPS, mixed_decoder, tokens_around, without_sections
from awq2trt.models.vision.description import CHANNELS, VisionFamily
from awq2trt.models.vision.patch_layout import ROPE_BASE
from awq2trt.models.vision.stacked import StackedTowerSpec, StackedVisionSpec

_NAME: Final = "qwen3_vl"

_SECTIONS: Final = (24, 20, 20)
_INTERLEAVED: Final = "mrope_interleaved"
_DEEPSTACK: Final = "deepstack_visual_indexes"
_DEEPSTACK_LAYERS: Final = (8, 16, 24)

_TOWER_DEFAULTS: Final[Mapping[str, int]] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "depth": 27,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}

_TEXT_DEFAULTS: Final[Mapping[str, Any]] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 128000,
    "rope_theta": 500000.0,
}
"""Where they differ from Qwen3's, which has no defaults for sizes here."""

_DECODER: Final = "model.language_model."
_TOWER: Final = "model.visual."


def describe(config: Mapping[str, Any], _: Collection[str]) -> tuple[DecoderSpec, StackedVisionSpec]:
    """Describes a Qwen3-VL model.

    Args:
        config: config.json.

    Raises:
        UnsupportedError: A key has a value that no model has.
    """
    text = config_part(config, "text_config")
    refuse_unless(text, {"is_causal": True, "per_layer_config": None})
    for key in ("rope_scaling", "rope_parameters"):
        refuse_unless(config_part(text, key), {_INTERLEAVED: True})
    missing = {key: value for key, value in _TEXT_DEFAULTS.items() if text.get(key) is None}
    plain, sections = without_sections({**text, **missing}, _SECTIONS)
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(plain.get(key), dict):
            plain[key].pop(_INTERLEAVED, None)
    spec = mixed_decoder(qwen.describe_qwen3(plain), _DECODER, sections, interleaved=True)
    tower = _tower(config_part(config, "vision_config"), spec.hidden_size)
    if len(tower.deepstack_layers) > spec.num_layers:
        raise UnsupportedError(
            f"{_DEEPSTACK}: expected at most as many layers as the decoder has, {spec.num_layers}, got "
            f"{len(tower.deepstack_layers)}.",
            where="config.json",
            fix=PUBLISHED,
        )
    decoder = replace(
        spec,
        tie_embeddings=spec.tie_embeddings or config_flag(config, "tie_word_embeddings", False),
        deepstack=len(tower.deepstack_layers),
    )
    image_token = config_token(config, "image_token_id", IMAGE_TOKEN, decoder.vocab_size)
    around = tokens_around(config, decoder.vocab_size)
    return decoder, StackedVisionSpec(family=_NAME, image_token=image_token, tower=tower, around=around)


def _tower(config: Mapping[str, Any], out_features: int) -> StackedTowerSpec:
    refuse_unless(config, {"in_channels": CHANNELS})
    refuse_unless(config_part(config, "rope_parameters"), {"rope_type": "axial", "rope_theta": ROPE_BASE})
    sizes = {key: config_size(config, key, default) for key, default in _TOWER_DEFAULTS.items()}
    heads, _ = config_heads(sizes, "num_heads", sizes["hidden_size"])
    if sizes["out_hidden_size"] != out_features:
        raise UnsupportedError(
            f"vision_config: expected pieces of {out_features} channels, as the decoder reads, got out_hidden_size "
            f"{sizes['out_hidden_size']}.",
            where="config.json",
            fix=PUBLISHED,
        )
    depth = config_size(config, "depth", sizes["depth"], largest=MOST_LAYERS)
    positions = sizes["num_position_embeddings"]
    if math.isqrt(positions) ** 2 != positions:
        raise UnsupportedError(
            f"num_position_embeddings: expected those of a square, got {positions}.", where="config.json", fix=PUBLISHED
        )
    return StackedTowerSpec(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=depth,
        num_heads=heads,
        patch_size=sizes["patch_size"],
        frames=sizes["temporal_patch_size"],
        merge=sizes["spatial_merge_size"],
        out_features=sizes["out_hidden_size"],
        activation=config_activation(config, "hidden_act", "gelu_pytorch_tanh", (GELU_TANH,)),
        norm_eps=NORM_EPS,
        prefix=_TOWER,
        num_positions=positions,
        deepstack_layers=_deepstack_layers(config, depth),
    )


def _deepstack_layers(config: Mapping[str, Any], depth: int) -> tuple[int, ...]:
    layers = config.get(_DEEPSTACK)
    layers = list(_DEEPSTACK_LAYERS) if layers is None else layers
    if (
        not isinstance(layers, list)
        or not all(type(layer) is int and 0 <= layer < depth for layer in layers)
        or sorted(set(layers)) != layers
    ):
        raise UnsupportedError(
            f"{_DEEPSTACK}: expected different layers of {depth}, in ascending order, got {layers!r}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return tuple(layers)


FAMILY: Final = VisionFamily(name=_NAME, architectures=("Qwen3VLForConditionalGeneration",), describe=describe)
