"""LLaVA 1.5: a CLIP tower, a projector of two linears, and a decoder of text that reads their output.

Source: `LlavaForConditionalGeneration` of transformers and arXiv:2310.03744; the tower is `CLIPVisionModel`. Keys that
config.json leaves out have the defaults of transformers' classes, as published checkpoints expect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.clip import clip_tower
from awq2trt.models.families.config_keys import (
    GELU,
    GELU_TANH,
    PUBLISHED,
    RELU,
    SILU,
    config_activation,
    config_flag,
    config_part,
    config_token,
)
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.families.text_part import describe_text
from awq2trt.models.vision.description import ProjectorSpec, VisionFamily, VisionSpec

_NAME: Final = "llava"

_IMAGE_TOKEN: Final = 32000
_FEATURE_LAYER: Final = -2
_FULL: Final = "full"
_WITHOUT_CLASS: Final = "default"

_TOWER_DEFAULTS: Final[Mapping[str, Any]] = {
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
"""The tower of a model without `vision_config`."""


PROJECTOR: Final = "multi_modal_projector."
"""The end of the prefix of the projector's tensors."""


@dataclass(frozen=True)
class _Names:
    """The names under which a checkpoint keeps the parts of a model.

    Attributes:
        decoder: What replaces `model.` in the names of a decoder's tensors.
        head: Name of the head.
        tower: Prefix of the tower's tensors.
        projector: Prefix of the projector's tensors.
    """

    decoder: str
    head: str
    tower: str
    projector: str


_PUBLISHED_NAMES: Final = _Names("language_model.model.", "language_model.lm_head", "vision_tower.", PROJECTOR)
"""Names in published checkpoints; transformers 5 saves the same."""

_CLASS_NAMES: Final = _Names("model.language_model.", "lm_head", "model.vision_tower.", f"model.{PROJECTOR}")
"""Names that transformers' classes give their parts; some versions before 5 saved these."""

_INNER_TOWER: Final = "vision_model."
"""A part of names that stood behind `vision_tower.` before transformers 5."""


def describe(config: Mapping[str, Any], tensor_names: Collection[str]) -> tuple[DecoderSpec, VisionSpec]:
    """Describes a LLaVA model.

    Args:
        config: config.json.
        tensor_names: Names of the checkpoint's tensors, which show its naming; empty for the published naming.

    Raises:
        UnsupportedError: The decoder or the tower is of another kind, or a key has a value that no such model has.
    """
    names = _names_in(tensor_names)
    decoder = _decoder(config, names)
    return decoder, _vision(config, names, decoder)


def _names_in(tensor_names: Collection[str]) -> _Names:
    of_classes = any(name.startswith(_CLASS_NAMES.decoder) for name in tensor_names)
    names = _CLASS_NAMES if of_classes else _PUBLISHED_NAMES
    inner = names.tower + _INNER_TOWER
    has_inner = not tensor_names or any(name.startswith(inner) for name in tensor_names)
    return replace(names, tower=inner) if has_inner else names


def _decoder(config: Mapping[str, Any], names: _Names) -> DecoderSpec:
    """Describes the decoder by its part of config.json, under the checkpoint's names."""
    tied = config_flag(config, "tie_word_embeddings", False)
    return describe_text(config_part(config, "text_config"), prefix=names.decoder, head=names.head, tied=tied)


def _vision(config: Mapping[str, Any], names: _Names, decoder: DecoderSpec) -> VisionSpec:
    tower = clip_tower(config_part(config, "vision_config") or _TOWER_DEFAULTS, names.tower)
    layers = _feature_layers(config, tower.num_layers)
    key = "image_token_index" if config.get("image_token_index") is not None else "image_token_id"
    image_token = config_token(config, key, _IMAGE_TOKEN, decoder.vocab_size)
    strategy = config.get("vision_feature_select_strategy") or _WITHOUT_CLASS
    if strategy not in (_WITHOUT_CLASS, _FULL):
        raise UnsupportedError(
            f"vision_feature_select_strategy: expected {_WITHOUT_CLASS} or {_FULL}, got {strategy!r}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return VisionSpec(
        family=_NAME,
        image_token=image_token,
        tower=tower,
        projector=ProjectorSpec(
            in_features=tower.hidden_size * len(layers),
            out_features=decoder.hidden_size,
            activation=config_activation(config, "projector_hidden_act", "gelu", (GELU, GELU_TANH, RELU, SILU)),
            bias=config_flag(config, "multimodal_projector_bias", True),
            prefix=names.projector,
        ),
        feature_layers=layers,
        keeps_class=strategy == _FULL,
    )


def _feature_layers(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Reads `vision_feature_layer`: one or several numbers, counted from 0, which is the first layer's input."""
    given = config.get("vision_feature_layer", _FEATURE_LAYER)
    several = given if isinstance(given, list) and given else [given]
    states = num_layers + 1
    for layer in several:
        if isinstance(layer, bool) or not isinstance(layer, int) or not -states <= layer < states:
            raise UnsupportedError(
                f"vision_feature_layer: expected numbers from {-states} to {num_layers}, got {given!r}.",
                where="config.json",
                fix=PUBLISHED,
            )
    return tuple(layer % states for layer in several)


FAMILY: Final = VisionFamily(name=_NAME, architectures=("LlavaForConditionalGeneration",), describe=describe)
