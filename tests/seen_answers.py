"""What tests of whole builds of models that see share: pictures, a build for the CPU, transformers' model of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import picture
from PIL import Image
from safetensors.numpy import load_file, save_file

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.stages.build import BuildRequest, build_stage


def save_pictures(folder: Path, shapes: Sequence[tuple[int, int]]) -> None:
    """Saves a picture of every shape, `0.png` and so on."""
    for index, shape in enumerate(shapes):
        Image.fromarray(np.roll(picture(*shape), 5 * index, axis=1)).save(folder / f"{index}.png")


def build_for_cpu(folder: Path, capacity: int) -> None:
    """Builds `folder/model` for the CPU in `folder/built`."""
    recipe = Recipe(quantize=QuantizeOptions(group_size=32, method="rtn"), export=ExportOptions(max_seq_len=capacity))
    recipe = recipe.model_copy(update={"build": recipe.build.model_copy(update={"target": "cpu"})})
    list(build_stage(BuildRequest(str(folder / "model"), folder / "built", recipe), SilentProgress()))


def dequantized(folder: Path, model_class: Any) -> Any:
    """transformers' own class with the weights of the quantized checkpoint in `folder/built`, dequantized."""
    checkpoint = QuantizedCheckpoint.open(folder / "built" / "checkpoint")
    names = load_file(folder / "model" / "model.safetensors")
    saved = folder / "dequantized"
    saved.mkdir()
    (saved / "config.json").write_bytes((folder / "model" / "config.json").read_bytes())
    tensors = {name: np.ascontiguousarray(checkpoint.tensor(name).astype(np.float32)) for name in names}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    return model_class.from_pretrained(saved, dtype=torch.float32)
