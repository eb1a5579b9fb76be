"""Model families: config.json -> `DecoderSpec`. A new family is one file here and one row in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.foreign_files import reading
from awq2trt.models.families import bloom, falcon, gemma, gpt_neox, llama, mpt, opt, phi3, qwen
from awq2trt.models.families.config_keys import GELU, GELU_TANH, PUBLISHED, RELU, SILU, refuse_unless
from awq2trt.models.families.description import DecoderSpec, Family
from awq2trt.models.families.parts import (
    ACTIVATION,
    LINEAR,
    NORM,
    OFFSET_NORM,
    UNFOLDED,
    BlockNames,
    FusedLinear,
    LayerSpec,
    LearnedPositions,
    NormSpec,
    ScaleGroup,
)
from awq2trt.models.families.placing import first_unplaced, nearest_family
from awq2trt.models.families.rotary import RopeSpec

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
    "BlockNames",
    "DecoderSpec",
    "Family",
    "FusedLinear",
    "LayerSpec",
    "LearnedPositions",
    "NormSpec",
    "RopeSpec",
    "ScaleGroup",
    "describe_model",
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

HOW_TO_DESCRIBE: Final = "CONTRIBUTING.md, 'A new model family', shows how to describe one."


def find_family(config: Mapping[str, Any]) -> Family | None:
    """The family that lists the model's architecture."""
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if any(architecture in family.architectures for architecture in architectures):
            return family
    return None


def family_named(name: str) -> Family:
    """The family that `DecoderSpec.family` names."""
    return next(family for family in FAMILIES if family.name == name)


def describe_model(
    config: Mapping[str, Any], tensor_names: Collection[str] = (), *, quantized: bool = False
) -> DecoderSpec:
    """Finds the family of a model and describes it.

    Args:
        config: The model's config.json.
        tensor_names: Of the checkpoint, where they are known: all of them must have a place in the description.
        quantized: The checkpoint is quantized, so that its linears have tensors of their format.

    Raises:
        UnsupportedError: No family lists the model's architecture, the family cannot express the model, or the
            checkpoint holds a tensor that the description does not name.
    """
    with reading("a model's configuration", "config.json", fix=PUBLISHED):
        family = find_family(config)
        if family is None:
            raise _unknown(config, tensor_names)
        # For every class of transformers: no causal mask (masking_utils.py), sizes by layer (configuration_utils.py).
        refuse_unless(config, {"is_causal": True, "per_layer_config": None})
        spec = family.describe(config)
    unplaced = first_unplaced(spec, tensor_names, quantized=quantized)
    if unplaced is not None:
        raise UnsupportedError(
            f"the family {family.name} has no place for the tensor {unplaced}, and the model would be wrong without.",
            where=", ".join(config.get("architectures") or ()),
            fix=HOW_TO_DESCRIBE,
        )
    return spec


def _unknown(config: Mapping[str, Any], tensor_names: Collection[str]) -> UnsupportedError:
    """The error for an architecture that no family lists; names the first module that the nearest one cannot place."""
    known = ", ".join(architecture for family in FAMILIES for architecture in family.architectures)
    what = (
        f"unknown architecture {config.get('architectures') or config.get('model_type')!r}, expected one of: {known}."
    )
    if tensor_names:
        nearest, unplaced = nearest_family(FAMILIES, tensor_names)
        what += (
            f" All its modules are named as those of {nearest.name}, but what they compute is not known to be the same."
            if unplaced is None
            else f" The nearest family is {nearest.name}; the first module that it cannot place is "
            f"{unplaced.rpartition('.')[0]}."
        )
    return UnsupportedError(what, where="config.json", fix=HOW_TO_DESCRIBE)
