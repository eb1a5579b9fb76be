"""Model families: config.json -> `DecoderSpec`. A new family is one file here and one row in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from awq2trt.errors import UnsupportedError
from awq2trt.families import llama
from awq2trt.families.description import LINEAR, NORM, BlockNames, DecoderSpec, Family, RopeSpec, ScaleGroup

__all__ = [
    "FAMILIES",
    "LINEAR",
    "NORM",
    "BlockNames",
    "DecoderSpec",
    "Family",
    "RopeSpec",
    "ScaleGroup",
    "describe_model",
]

FAMILIES: Final[tuple[Family, ...]] = (llama.FAMILY,)


def describe_model(config: Mapping[str, Any]) -> DecoderSpec:
    """Finds the family of a model and describes it.

    Args:
        config: The model's config.json.

    Raises:
        UnsupportedError: No family lists the model's architecture, or the family cannot express the model.
    """
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if any(architecture in family.architectures for architecture in architectures):
            return family.describe(config)
    known = ", ".join(architecture for family in FAMILIES for architecture in family.architectures)
    raise UnsupportedError(
        f"unknown architecture {architectures or config.get('model_type')!r}, expected one of: {known}.",
        where="config.json",
        fix="CONTRIBUTING.md, 'A new model family', shows how to describe one.",
    )
