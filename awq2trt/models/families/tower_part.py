"""A vision tower as CLIP's or SigLIP's: its part of config.json -> `TowerSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class TowerKind:
    """What transformers' class of a tower has where config.json says nothing.

    Attributes:
        sizes: Defaults of sizes, by key.
        activation: Default of `hidden_act`, under transformers' name.
        norm_eps: Default of `layer_norm_eps`.
        class_token: As of `TowerSpec`.
    """

    sizes: Mapping[str, int]
    activation: str
    norm_eps: float
    class_token: bool


def describe_tower(config: Mapping[str, object], prefix: str, kind: TowerKind) -> TowerSpec:
    """Describes a tower.

    Args:
        config: The value of `vision_config`.
        prefix: Prefix of all its tensors.
        kind: What keys have that it leaves out.

    Raises:
        UnsupportedError: A key has a value that no such tower has.
    """
    refuse_unless(config, {"num_channels": CHANNELS})
    sizes = {key: config_size(config, key, default) for key, default in kind.sizes.items()}
    heads, _ = config_heads(sizes, "num_attention_heads", sizes["hidden_size"])
    if sizes["patch_size"] > sizes["image_size"]:
        raise UnsupportedError(
            f"patch_size: expected at most image_size {sizes['image_size']}, got {sizes['patch_size']}.",
            where="config.json",
            fix=PUBLISHED,
        )
    is_quick = (config.get("hidden_act") or kind.activation) == QUICK_GELU
    return TowerSpec(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=config_size(config, "num_hidden_layers", sizes["num_hidden_layers"], largest=MOST_LAYERS),
        num_heads=heads,
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        activation=QUICK_GELU
        if is_quick
        else config_activation(config, "hidden_act", kind.activation, (GELU, GELU_TANH)),
        norm_eps=config_number(config, "layer_norm_eps", kind.norm_eps),
        prefix=prefix,
        class_token=kind.class_token,
    )
