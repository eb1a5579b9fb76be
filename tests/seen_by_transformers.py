"""What transformers' own towers make of pictures, and what each of their linears reads.

Linears are known by their weights, since classes name modules otherwise than files do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny_flamingo import TOWER_CONFIG, save_flamingo
from tiny_gemma3 import save_gemma3
from tiny_llava import save_llava
from tiny_llava_next import save_llava_next
from tiny_qwen_vl import save_qwen3_vl, save_qwen_vl
from tiny_smolvlm import save_smolvlm
from transformers import AutoImageProcessor, AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel

from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.description import AttendedSpec

SEEING: dict[str, Callable[..., Path]] = {
    "llava": save_llava,
    "llava-next": save_llava_next,
    "smolvlm": save_smolvlm,
    "gemma3": save_gemma3,
    "qwen2.5-vl": save_qwen_vl,
    "qwen3-vl": save_qwen3_vl,
    "openflamingo": save_flamingo,
}
"""Saves a tiny random model of every kind that sees."""


@dataclass
class Seen:
    """What a tower did with pictures.

    Attributes:
        inputs: What each linear read, fp32 [rows, K], by the full name that its weight has in the file, in order.
        used: Linears on which what is seen depends; others belong to layers whose outputs nothing reads.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


def seen_by_transformers(model: Path, pictures: Sequence[Path]) -> Seen:
    """Shows pictures to transformers' class of a model, one after the other."""
    source = open_source(str(model))
    module, look = _flamingo(source) if isinstance(source.vision, AttendedSpec) else _any_other(model)
    processor: Any = AutoImageProcessor.from_pretrained(model, backend="pil")
    names, found, seen = _names(source), dict[str, list[torch.Tensor]](), Seen()
    linears = {name: each for each in module.modules() if isinstance(each, torch.nn.Linear) and (name := names(each))}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, given: found.setdefault(name, []).append(given[0].detach().flatten(0, -2))

    for name, linear in linears.items():
        linear.register_forward_pre_hook(keep(name))
    for path in pictures:
        shown = processor(images=[[Image.open(path).convert("RGB")]], return_tensors="pt")
        given = {key: value for key, value in shown.items() if key != "num_crops"}
        torch.cat([part.flatten() for part in look(given)]).sum().backward()
    seen.inputs = {name: torch.cat(parts) for name, parts in found.items()}
    seen.used = {name for name in found if linears[name].weight.grad is not None}
    return seen


def _any_other(model: Path) -> tuple[Any, Callable[[dict[str, Any]], Sequence[torch.Tensor]]]:
    module: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()

    def look(shown: dict[str, Any]) -> Sequence[torch.Tensor]:
        features = module.model.get_image_features(**shown)
        stacked = getattr(features, "deepstack_features", ())
        return [*features.pooler_output, *(part for parts in stacked for part in parts)]

    return module, look


def _flamingo(source: ModelSource) -> tuple[Any, Callable[[dict[str, Any]], Sequence[torch.Tensor]]]:
    """The tower alone, which is a CLIP's; transformers has no class for what is behind it."""
    config = {key: value for key, value in TOWER_CONFIG.items() if key != "model_type"}
    module: Any = CLIPVisionModel(CLIPVisionConfig(**config)).eval()
    assert isinstance(source.vision, AttendedSpec)
    with torch.no_grad():
        for name, value in module.named_parameters():
            stored = source.tensor(source.vision.tower.prefix + name.removeprefix("vision_model."))
            value.copy_(torch.as_tensor(stored))
    return module, lambda shown: [module(**shown).last_hidden_state]


def _names(source: ModelSource) -> Callable[[torch.nn.Linear], str | None]:
    """Finds the full name of a linear's weight among what a model sees with; None for another linear."""
    weights = {
        value.astype(np.float32).tobytes(): name.removesuffix(".weight")
        for name, value in source.vision_tensors().items()
        if value.ndim == 2
    }
    return lambda linear: weights.get(linear.weight.detach().numpy().tobytes())
