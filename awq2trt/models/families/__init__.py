"""Model families: config.json -> `DecoderSpec`. A new family is one file here and one row in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.foreign_files import reading
from awq2trt.models.families import (
    bloom,
    falcon,
    gemma,
    gemma_vision,
    gpt_neox,
    llama,
    llava,
    llava_next,
    mpt,
    openflamingo,
    opt,
    phi3,
    qwen,
    qwen3_vl,
    qwen_vl,
    smolvlm,
)
from awq2trt.models.families.config_keys import GELU, GELU_TANH, PUBLISHED, RELU, SILU, refuse_unless
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import (
    ACTIVATION,
    LINEAR,
    NORM,
    OFFSET_NORM,
    UNFOLDED,
    BlockNames,
    CrossAttentionSpec,
    FusedLinear,
    LayerSpec,
    LearnedPositions,
    NormSpec,
    ScaleGroup,
)
from awq2trt.models.families.placing import first_unplaced, nearest_family
from awq2trt.models.families.rotary import RopeSpec
from awq2trt.models.vision.description import SeeingSpec, VisionFamily, VisionSpec

__all__ = [
    "ACTIVATION",
    "FAMILIES",
    "GELU",
    "GELU_TANH",
    "LINEAR",
    "NORM",
    "OFFSET_NORM",
    "RELU",
    "SILU",
    "UNFOLDED",
    "VISION_FAMILIES",
    "BlockNames",
    "CrossAttentionSpec",
    "DecoderSpec",
    "Family",
    "FusedLinear",
    "LayerSpec",
    "LearnedPositions",
    "NormSpec",
    "RopeSpec",
    "ScaleGroup",
    "SeeingSpec",
    "VisionFamily",
    "VisionSpec",
    "describe_model",
    "describe_vision",
    "family_named",
    "find_family",
]

FAMILIES: Final[tuple[Family, ...]] = (
    llama.LLAMA,
    llama.MISTRAL,
    qwen.QWEN2,
    qwen.QWEN3,
    phi3.FAMILY,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    opt.FAMILY,
    bloom.FAMILY,
    mpt.FAMILY,
    falcon.FAMILY,
    gpt_neox.FAMILY,
)

VISION_FAMILIES: Final[tuple[VisionFamily, ...]] = (
    llava.FAMILY,
    llava_next.FAMILY,
    qwen_vl.FAMILY,
    qwen3_vl.FAMILY,
    smolvlm.FAMILY,
    openflamingo.FAMILY,
    gemma_vision.FAMILY,
)
"""Models that see images; the decoder in each belongs to one of `FAMILIES`."""

HOW_TO_DESCRIBE: Final = "CONTRIBUTING.md, 'A new model family', shows how to describe one."


def find_family(config: Mapping[str, Any]) -> Family | None:
    """Returns the family that lists the model's architecture."""
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if any(architecture in family.architectures for architecture in architectures):
            return family
    return None


def family_named(name: str) -> Family:
    """Returns the family that `DecoderSpec.family` names."""
    return next(family for family in FAMILIES if family.name == name)


def describe_model(
    config: Mapping[str, Any], tensor_names: Collection[str] = (), *, quantized: bool = False
) -> DecoderSpec:
    """Finds the family of a model and describes it.

    Args:
        config: The model's config.json.
        tensor_names: Names of the checkpoint's tensors, if known: the description must have a place for each.
        quantized: Whether the checkpoint is quantized, so that its linears have their format's tensors.

    Raises:
        UnsupportedError: No family lists the model's architecture, the family cannot express the model, or the
            checkpoint holds a tensor that the description does not name.
    """
    with reading("a model's configuration", "config.json", fix=PUBLISHED):
        seeing = _vision_family(config)
        if seeing is not None:
            spec, vision = seeing.describe(config, tensor_names)
            tensor_names = _outside(vision, tensor_names, quantized=quantized)
        else:
            spec = _describe_decoder(config, tensor_names)
    unplaced = first_unplaced(spec, tensor_names, quantized=quantized)
    if unplaced is not None:
        raise UnsupportedError(
            f"the family {spec.family if seeing is None else seeing.name} has no place for the tensor {unplaced}, and "
            "the model would be wrong without it.",
            where=", ".join(config.get("architectures") or ()),
            fix=HOW_TO_DESCRIBE,
        )
    return spec


def _outside(vision: SeeingSpec, tensor_names: Collection[str], *, quantized: bool) -> Collection[str]:
    """Names of the tensors that do not belong to what a model sees with, a linear of which may be quantized."""
    shapes = vision.shapes()
    coded = {name.removesuffix(".weight") for name, shape in shapes.items() if quantized and len(shape) == 2}
    return {name for name in tensor_names if name not in shapes and name.rpartition(".")[0] not in coded}


def describe_vision(config: Mapping[str, Any], tensor_names: Collection[str] = ()) -> SeeingSpec | None:
    """Describes how a model sees images; returns None for a model of text.

    Args:
        config: The model's config.json.
        tensor_names: Names of the checkpoint's tensors, if known.

    Raises:
        UnsupportedError: The same as in `describe_model`.
    """
    with reading("a model's configuration", "config.json", fix=PUBLISHED):
        seeing = _vision_family(config)
        return None if seeing is None else seeing.describe(config, tensor_names)[1]


def _describe_decoder(config: Mapping[str, Any], tensor_names: Collection[str]) -> DecoderSpec:
    """Describes a model of text."""
    family = find_family(config)
    if family is None:
        raise _unknown(config, tensor_names)
    # Every class of transformers reads these keys: for masks (masking_utils.py) and sizes by layer
    # (configuration_utils.py).
    refuse_unless(config, {"is_causal": True, "per_layer_config": None})
    return family.describe(config)


def _vision_family(config: Mapping[str, Any]) -> VisionFamily | None:
    """Returns the family of models with images that lists the model's architecture."""
    architectures = config.get("architectures") or ()
    return next((family for family in VISION_FAMILIES if set(architectures) & set(family.architectures)), None)


def _unknown(config: Mapping[str, Any], tensor_names: Collection[str]) -> UnsupportedError:
    """The error for an unknown architecture; it names the first module that the nearest family cannot place."""
    architectures = [family.architectures for family in FAMILIES] + [family.architectures for family in VISION_FAMILIES]
    known = ", ".join(name for names in architectures for name in names)
    what = (
        f"unknown architecture {config.get('architectures') or config.get('model_type')!r}, expected one of: {known}."
    )
    if tensor_names:
        nearest, unplaced = nearest_family(FAMILIES, tensor_names)
        what += (
            f" All its modules have the names of those of {nearest.name}, but they may compute something else."
            if unplaced is None
            else f" The nearest family is {nearest.name}; the first module that it cannot place is "
            f"{unplaced.rpartition('.')[0]}."
        )
    return UnsupportedError(what, where="config.json", fix=HOW_TO_DESCRIBE)
