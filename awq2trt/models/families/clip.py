"""CLIP's vision tower, which several families see with: its part of config.json -> `TowerSpec`.

Source: `CLIPVisionModel` of transformers. Keys that are left out have the defaults of its class, as published
checkpoints expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families.tower_part import TowerKind, describe_tower
from awq2trt.models.vision.description import QUICK_GELU, TowerSpec

_TOWER: Final = "clip_vision_model"

_CLIP: Final = TowerKind(
    sizes={
        "intermediate_size": 3072,
        "hidden_size": 768,
        "patch_size": 32,
        "image_size": 224,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    activation=QUICK_GELU,
    norm_eps=1e-5,
    class_token=True,
)


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
    return describe_tower(config, prefix, _CLIP)
