"""CLIP's vision tower, which several families see with: its part of config.json -> `TowerSpec`.

Source: `CLIPVisionModel` of transformers. Keys that are left out have the defaults of its class, as published
checkpoints expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.config_keys import (
    GELU,
    GELU_TANH,
    MOST_LAYERS,
    PUBLISHED,
    config_activation,
    config_heads,
    config_number,
    config_size,
    refuse_unless,
)
from awq2trt.models.vision.description import CHANNELS, QUICK_GELU, TowerSpec

_TOWER: Final = "clip_vision_model"

_DEFAULTS: Final[Mapping[str, Any]] = {
    "intermediate_size": 3072,
    "hidden_size": 768,
    "patch_size": 32,
    "image_size": 224,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def clip_tower(config: Mapping[str, Any], prefix: str) -> TowerSpec:
    """Describes a tower.

    Args:
        config: The value of `vision_config`.
        prefix: Prefix of its tensors.

    Raises:
        UnsupportedError: It is of another kind, or a key has a value that no such tower has.
    """
    kind = config.get("model_type", _TOWER)
    if kind != _TOWER:
        raise UnsupportedError(
            f"vision_config.model_type: expected {_TOWER}, got {kind!r}.",
            where="config.json",
            fix="this vision tower is not supported; CONTRIBUTING.md, 'A new model family', shows how to add it.",
        )
    refuse_unless(config, {"num_channels": CHANNELS})
    sizes = {key: config_size(config, key, default) for key, default in _DEFAULTS.items()}
    heads, _ = config_heads(sizes, "num_attention_heads", sizes["hidden_size"])
    if sizes["patch_size"] > sizes["image_size"]:
        raise UnsupportedError(
            f"patch_size: expected at most image_size {sizes['image_size']}, got {sizes['patch_size']}.",
            where="config.json",
            fix=PUBLISHED,
        )
    act = config.get("hidden_act") or QUICK_GELU
    activation = QUICK_GELU if act == QUICK_GELU else config_activation(config, "hidden_act", "gelu", (GELU, GELU_TANH))
    return TowerSpec(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=config_size(config, "num_hidden_layers", sizes["num_hidden_layers"], largest=MOST_LAYERS),
        num_heads=heads,
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        activation=activation,
        norm_eps=config_number(config, "layer_norm_eps", 1e-5),
        prefix=prefix,
    )
