"""Kits of a tiny model, with a fake plugin library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from stand_in_orin import fake_library, fake_runtime_package

from awq2trt.artifact.manifest import Artifact
from awq2trt.machine import foreign_runtime
from awq2trt.machine.foreign_library import PATH_VARIABLE
from awq2trt.progress import SilentProgress
from awq2trt.recipe import BuildOptions, ExportOptions, QuantizeOptions, Recipe
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.kit import KitRequest, make_kit, model_spec
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import find_target

CAPACITY = 64
EXPORT = ExportOptions(max_seq_len=CAPACITY)
RTN = QuantizeOptions(group_size=32, method="rtn")


def export_tiny(folder: Path, **overrides: Any) -> Artifact:
    """Saves a tiny model in `folder/model`, its checkpoint and its ONNX model; `overrides` change its config."""
    model = tiny_models.save_llama(folder / "model", **overrides)
    quantize_stage(QuantizeRequest(str(model), folder / "checkpoint", RTN), SilentProgress())
    return export_stage(ExportRequest(folder / "checkpoint", folder / "onnx", EXPORT), SilentProgress())


def kit_request(output: Path, jetpack: str, *, fusion: bool = True, quantize: QuantizeOptions = RTN) -> KitRequest:
    """A request for a kit for AGX Orin, of a model that was quantized with these options."""
    build = BuildOptions(target="orin", jetpack=jetpack, fusion=fusion)
    recipe = Recipe(quantize=quantize, export=EXPORT, build=build)
    return KitRequest(find_target("orin"), output, recipe)


def make_tiny_kit(folder: Path, output: Path, jetpack: str, *, cuda: int = 12060, **options: Any) -> Artifact:
    """Makes the kit of what `export_tiny` left in `folder`; its plugin library has the CUDA runtime `cuda`.

    `options` are those of `kit_request`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PATH_VARIABLE, str(fake_library(folder / f"fake-{cuda}.so", cuda=cuda)))
        if not (package := folder / "fake-runtime").is_dir():
            fake_runtime_package(package)
        patch.setenv(foreign_runtime.PATH_VARIABLE, str(package))
        onnx = Artifact.open(folder / "onnx")
        request = kit_request(output, jetpack, **options)
        return make_kit(onnx, model_spec(str(folder / "model")), request, SilentProgress())
