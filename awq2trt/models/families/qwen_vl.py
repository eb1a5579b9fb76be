"""Qwen2.5-VL: a tower with windows, and Qwen2's decoder, whose positions have three numbers where it reads an image.

Source: `Qwen2_5_VLForConditionalGeneration` of transformers 5.24 and arXiv:2502.13923. Keys that config.json leaves out
have the defaults of transformers' classes. A text has the same number three times, and so Qwen2's own positions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import qwen
from awq2trt.models.families.config_keys import (
    MOST_LAYERS,
    PUBLISHED,
    SILU,
    config_activation,
    config_heads,
    config_part,
    config_size,
    config_token,
    config_value,
    refuse_unless,
)
from awq2trt.models.families.description import DecoderSpec
from awq2trt.models.vision.arranging import VISION_END, VISION_START
from awq2trt.models.vision.description import CHANNELS, VisionFamily
from awq2trt.models.vision.windowed import WindowedTowerSpec, WindowedVisionSpec

_NAME: Final = "qwen2_5_vl"

IMAGE_TOKEN: Final = 151655
_AROUND: Final = {VISION_START: 151652, VISION_END: 151653}
_SECTIONS: Final = (16, 24, 24)
_FULL_LAYERS: Final = (7, 15, 23, 31)
NORM_EPS: Final = 1e-6
"""Epsilon of the tower's norms; no key has it."""

_TOWER_DEFAULTS: Final[Mapping[str, int]] = {
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
}

_TEXT_DEFAULTS: Final[Mapping[str, Any]] = {"rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
"""Where they differ from Qwen2's."""

_CLASS_NAMES: Final = ("model.language_model.", "model.visual.")
_PUBLISHED_NAMES: Final = ("model.", "visual.")
"""Prefixes of decoder and tower: as transformers' classes call them, and as published."""


def describe(config: Mapping[str, Any], tensor_names: Collection[str]) -> tuple[DecoderSpec, WindowedVisionSpec]:
    """Describes a Qwen2.5-VL model.

    Args:
        config: config.json; the decoder's keys are its own, or under `text_config`.
        tensor_names: Names of the checkpoint's tensors, which tell their prefixes; empty for the published prefixes.

    Raises:
        UnsupportedError: A key has a value that no model has.
    """
    of_classes = any(name.startswith(_CLASS_NAMES[0]) for name in tensor_names)
    decoder_prefix, tower_prefix = _CLASS_NAMES if of_classes else _PUBLISHED_NAMES
    text = config if config.get("text_config") is None else config_part(config, "text_config")
    refuse_unless(text, {"is_causal": True, "per_layer_config": None})
    missing = {key: value for key, value in _TEXT_DEFAULTS.items() if text.get(key) is None}
    plain, sections = without_sections({**text, **missing}, _SECTIONS)
    decoder = mixed_decoder(qwen.describe_qwen2(plain), decoder_prefix, sections)
    image_token = config_token(config, "image_token_id", IMAGE_TOKEN, decoder.vocab_size)
    around = tokens_around(config, decoder.vocab_size)
    tower = _tower(config_part(config, "vision_config"), tower_prefix, decoder.hidden_size)
    return decoder, WindowedVisionSpec(family=_NAME, image_token=image_token, tower=tower, around=around)


def tokens_around(config: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Tokens before and after an image's, by key; those of the published models, if the vocabulary has them."""
    return {
        key: config_token(config, key, token, vocab_size)
        for key, token in _AROUND.items()
        if token < vocab_size or config.get(key) is not None
    }


def mixed_decoder(
    spec: DecoderSpec, prefix: str, sections: tuple[int, ...], *, interleaved: bool = False
) -> DecoderSpec:
    """A decoder of text as one whose positions have three numbers where it reads an image.

    Args:
        spec: The decoder of text.
        prefix: What the checkpoint has in place of `model.` in the names of its tensors.
        sections: As of `RopeSpec`.
        interleaved: As of `RopeSpec`.

    Raises:
        UnsupportedError: Its rotary embedding has no such sections.
    """
    if sum(sections) * 2 != spec.head_dim:
        raise UnsupportedError(
            f"mrope_section: expected numbers that add up to half of head_dim, {spec.head_dim // 2}, got {sections}.",
            where="config.json",
            fix=PUBLISHED,
        )
    own = "model."
    mixed = {rope: replace(rope, sections=sections, interleaved=interleaved) for rope in spec.ropes}
    if any(rope.beyond is not None for rope in mixed):
        raise UnsupportedError(
            "rope_scaling: expected the same frequencies for texts of every length, got a kind that changes them.",
            where="config.json",
            fix=PUBLISHED,
        )
    return replace(
        spec,
        layers=tuple(replace(layer, rope=layer.rope and mixed[layer.rope]) for layer in spec.layers),
        embedding=prefix + spec.embedding.removeprefix(own),
        final_norm=prefix + spec.final_norm.removeprefix(own),
        block_prefix=prefix + spec.block_prefix.removeprefix(own),
    )


def without_sections(text: Mapping[str, Any], default: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The decoder's config as one of text alone, and the sections of its rotary embedding.

    Args:
        text: The decoder's config.
        default: The sections where it names none.

    Raises:
        UnsupportedError: The sections are not three positive numbers.
    """
    plain: dict[str, Any] = dict(text)
    sections: tuple[Any, ...] = default
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(text.get(key), dict):
            scaling = dict(text[key])
            found = scaling.pop("mrope_section", None)
            if found is not None:
                sections = tuple(config_value({"mrope_section": found}, "mrope_section", list))
            for kind in ("type", "rope_type"):
                if scaling.get(kind) == "mrope":
                    scaling[kind] = "default"
            plain[key] = scaling
    if len(sections) != 3 or not all(isinstance(pairs, int) and pairs > 0 for pairs in sections):
        raise UnsupportedError(
            f"mrope_section: expected three positive numbers, got {list(sections)!r}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return plain, sections


def _tower(config: Mapping[str, Any], prefix: str, out_features: int) -> WindowedTowerSpec:
    refuse_unless(config, {"in_channels": CHANNELS, "in_chans": CHANNELS})
    sizes = {key: config_size(config, key, default) for key, default in _TOWER_DEFAULTS.items()}
    heads, _ = config_heads(sizes, "num_heads", sizes["hidden_size"])
    full = config.get("fullatt_block_indexes", list(_FULL_LAYERS))
    if not isinstance(full, list) or not all(isinstance(layer, int) for layer in full):
        raise UnsupportedError(
            f"fullatt_block_indexes: expected a list of layers, got {full!r}.", where="config.json", fix=PUBLISHED
        )
    smallest = sizes["patch_size"] * sizes["spatial_merge_size"]
    if sizes["out_hidden_size"] != out_features or sizes["window_size"] < smallest:
        raise UnsupportedError(
            f"vision_config: expected pieces of {out_features} channels, as the decoder reads, in windows of one or "
            f"more, got out_hidden_size {sizes['out_hidden_size']}, window_size {sizes['window_size']}.",
            where="config.json",
            fix=PUBLISHED,
        )
    return WindowedTowerSpec(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=config_size(config, "depth", sizes["depth"], largest=MOST_LAYERS),
        num_heads=heads,
        patch_size=sizes["patch_size"],
        frames=sizes["temporal_patch_size"],
        merge=sizes["spatial_merge_size"],
        window_size=sizes["window_size"],
        full_layers=frozenset(full),
        out_features=sizes["out_hidden_size"],
        activation=config_activation(config, "hidden_act", "silu", (SILU,)),
        norm_eps=NORM_EPS,
        prefix=prefix,
    )


FAMILY: Final = VisionFamily(name=_NAME, architectures=("Qwen2_5_VLForConditionalGeneration",), describe=describe)
