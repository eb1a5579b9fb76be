"""SigLIP's vision tower, which several families see with: its part of config.json -> `TowerSpec`.

Source: `SiglipVisionModel` of transformers 5.24. Idefics3 and SmolVLM have the same tower with other defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.models.families.tower_part import TowerKind, describe_tower
from awq2trt.models.vision.description import TowerSpec

_SIZES: Final[Mapping[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


def siglip_tower(config: Mapping[str, Any], prefix: str, sizes: Mapping[str, int] | None = None) -> TowerSpec:
    """Describes a tower.

    Args:
        config: The value of `vision_config`.
        prefix: Prefix of its tensors.
        sizes: Those a family has, by key, where config.json says nothing and SigLIP's own class has others.

    Raises:
        UnsupportedError: A key has a value that no such tower has.
    """
    kind = TowerKind(
        sizes={**_SIZES, **(sizes or {})}, activation="gelu_pytorch_tanh", norm_eps=1e-6, class_token=False
    )
    return describe_tower(config, prefix, kind)
