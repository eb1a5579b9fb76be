"""OpenFlamingo: a CLIP tower, a perceiver, and gated cross-attention before every n-th block of a decoder of text.

Source: the package `open-flamingo` 2.0.1 (`Flamingo`, `FlamingoLMMixin`) and arXiv:2308.01390. Published checkpoints
have only what was trained, pickled; `tools/convert_openflamingo.py` adds the tower and the decoder that they belong to.
In the directory that it writes, tensors have the names that `Flamingo` gives them (`lang_encoder.`, `perceiver.`), and
those of the tower have the names of transformers' `CLIPVisionModel` behind `vision_encoder.`. config.json has

- `text_config` and `vision_config`, the configurations of decoder and tower;
- `cross_attn_every_n_layers`, as `create_model_and_transforms` takes it;
- `media_token_id`, the token `<image>`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.models.families import gpt_neox, mpt
from awq2trt.models.families.clip import clip_tower
from awq2trt.models.families.config_keys import MOST_LAYERS, PUBLISHED, config_part, config_size, config_value
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import BlockNames, CrossAttentionSpec
from awq2trt.models.vision.description import AttendedSpec, ResamplerSpec, VisionFamily

_TEXT: Final[Mapping[str, Family]] = {
    str(family.example["model_type"]): family for family in (mpt.FAMILY, gpt_neox.FAMILY)
}
"""Decoders in published checkpoints, by `model_type`."""

_HEADS: Final = 8
_HEAD_DIM: Final = 64
_LATENTS: Final = 64
_RESAMPLER_LAYERS: Final = 6
_WIDENING: Final = 4
_NORM_EPS: Final = 1e-5
"""What no configuration says: the defaults of `PerceiverResampler`, `GatedCrossAttentionBlock` and LayerNorm, which
`Flamingo` leaves as they are."""

_DECODER: Final = "lang_encoder."
_BLOCK: Final = "decoder_layer."
_CROSS: Final = "gated_cross_attn_layer"


def describe(config: Mapping[str, Any], tensor_names: Collection[str]) -> tuple[DecoderSpec, AttendedSpec]:
    """Describes an OpenFlamingo model.

    Args:
        config: config.json.
        tensor_names: Names of the checkpoint's tensors, which show where cross-attention stands; empty if unknown.

    Raises:
        UnsupportedError: The decoder or the tower is of another kind, or a key has a value that no such model has.
    """
    tower = clip_tower(config_part(config, "vision_config"), "vision_encoder.")
    decoder = _decoder(config, tower.hidden_size)
    assert decoder.cross is not None
    _require_places(decoder, tensor_names)
    image_token = config_value(config, "media_token_id", int)
    if not 0 <= image_token < decoder.vocab_size:
        raise UnsupportedError(
            f"media_token_id: expected a token in the vocabulary of {decoder.vocab_size}, got {image_token}.",
            where="config.json",
            fix=PUBLISHED,
        )
    vision = AttendedSpec(
        family=FAMILY.name,
        image_token=image_token,
        tower=tower,
        feature_layers=(tower.num_layers,),
        keeps_class=False,
        resampler=ResamplerSpec(
            width=tower.hidden_size,
            num_latents=_LATENTS,
            num_layers=_RESAMPLER_LAYERS,
            num_heads=_HEADS,
            head_dim=_HEAD_DIM,
            intermediate_size=_WIDENING * tower.hidden_size,
            norm_eps=_NORM_EPS,
            prefix="perceiver.",
        ),
        cross=_CROSS,
        readers=tuple(decoder.prefix(layer) + decoder.cross.reader for layer in decoder.cross_layers),
        reader_channels=2 * decoder.cross.inner_size,
    )
    return decoder, vision


def _decoder(config: Mapping[str, Any], width: int) -> DecoderSpec:
    """Describes the decoder with what stands between its blocks, which attends to pieces of `width` channels."""
    text = config_part(config, "text_config")
    kind = text.get("model_type")
    family = _TEXT.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise UnsupportedError(
            f"text_config.model_type: expected {', '.join(_TEXT)}, got {kind!r}.",
            where="config.json",
            fix="this decoder is not supported here; CONTRIBUTING.md, 'A new model family', shows how to add it.",
        )
    spec = family.describe(text)
    every = config_size(config, "cross_attn_every_n_layers", 1, largest=MOST_LAYERS)
    return replace(
        spec,
        embedding=_DECODER + spec.embedding,
        final_norm=_DECODER + spec.final_norm,
        head=_DECODER + spec.head,
        block_prefix=_DECODER + spec.block_prefix,
        block=_within(spec.block),
        fused=tuple(
            replace(fused, stored=_BLOCK + fused.stored, parts=tuple(_BLOCK + part for part in fused.parts))
            for fused in spec.fused
        ),
        biased=frozenset(_BLOCK + name for name in spec.biased),
        cross=CrossAttentionSpec(
            every=every,
            hidden_size=spec.hidden_size,
            width=width,
            pieces=_LATENTS,
            num_heads=_HEADS,
            head_dim=_HEAD_DIM,
            intermediate_size=_WIDENING * spec.hidden_size,
            norm_eps=_NORM_EPS,
            prefix=f"{_CROSS}.",
        ),
    )


def _within(names: BlockNames) -> BlockNames:
    """The same names within what `open-flamingo` wraps around a block."""
    given: dict[str, Any] = {field.name: getattr(names, field.name) for field in fields(names)}
    return replace(names, **{key: _BLOCK + name for key, name in given.items() if name is not None})


def _require_places(decoder: DecoderSpec, tensor_names: Collection[str]) -> None:
    """Refuses a checkpoint with cross-attention before a block where config.json has none: it would be left out."""
    assert decoder.cross is not None
    prefix = re.escape(decoder.block_prefix).replace(r"\{layer\}", r"(\d+)")
    gate = re.compile(prefix + re.escape(f"{decoder.cross.prefix}attn_gate"))
    found = sorted(int(match[1]) for name in tensor_names if (match := gate.fullmatch(name)))
    expected = [*decoder.cross_layers]
    if tensor_names and found != expected:
        raise UnsupportedError(
            f"cross_attn_every_n_layers {decoder.cross.every}: expected cross-attention before the blocks {expected}, "
            f"but the weights have it before {found}.",
            where="config.json",
            fix="convert the checkpoint again, with the number that its authors give as interval of cross-attention.",
        )


FAMILY: Final = VisionFamily(
    name="openflamingo", architectures=("OpenFlamingoForConditionalGeneration",), describe=describe
)
