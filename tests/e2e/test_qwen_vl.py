"""Qwen2.5-VL and Qwen3-VL through all stages: what transformers' own classes answer about five images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seen_answers import assert_same_answer, build_for_cpu, dequantized, question_about, save_pictures
from tiny_qwen_vl import PUBLISHED_IDS, PUBLISHED_MARKERS, QWEN2_5_VL, QWEN3_VL, publish_qwen_vl
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.runtime import Model
from awq2trt.runtime.ort.loading import DeviceOptions

CAPACITY = 320
IMAGE_TOKEN = PUBLISHED_IDS[2]

SHAPES = [(60, 80), (80, 60), (33, 41), (9, 120), (300, 40)]
"""Larger than the processor allows, within it, very long, and so small that they are enlarged."""


KINDS = {"qwen2.5-vl": QWEN2_5_VL, "qwen3-vl": QWEN3_VL}

IMAGES = [[0], [1], [2], [3], [4], [4, 2, 0]]
"""Those of each question."""


@pytest.fixture(scope="module", params=[*KINDS, "qwen2.5-vl int4-tower"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """transformers' class, and a folder: `model`, as it would be published, and a build for the CPU."""
    name, *tower = request.param.split()
    kind, folder = KINDS[name], tmp_path_factory.mktemp(name)
    publish_qwen_vl(folder / "model", kind)
    save_pictures(folder, SHAPES)
    build_for_cpu(folder, CAPACITY, quantize_vision=bool(tower))
    return kind.model, folder


@pytest.fixture(scope="module")
def theirs(built: tuple[Any, Path]) -> Any:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    model_class, folder = built
    return dequantized(folder, model_class)


def _their_inputs(directory: Path, files: list[Path]) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of a question about images: its chat template, a token for every piece."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(question_about(files), add_generation_prompt=True, tokenize=False)
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(directory)
    seen = processor([Image.open(file) for file in files], return_tensors="pt")
    first, *rest = text.split(PUBLISHED_MARKERS[2])
    for grid, piece in zip(seen["image_grid_thw"], rest, strict=True):
        first += PUBLISHED_MARKERS[2] * (int(grid.prod()) // 4) + piece
    ids = tokenizer(first, return_tensors="pt", add_special_tokens=False).input_ids
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_TOKEN).int(), **seen}


def _assert_answers(images: list[int], directory: str, built: tuple[Any, Path], theirs: Any) -> None:
    """Asserts that a build answers as transformers does."""
    _, folder = built
    files = [folder / f"{index}.png" for index in images]
    inputs = _their_inputs(folder / "model", files)
    model = Model.load(folder / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    shown = model.sight.prepare(files)
    pixels = np.concatenate([image.inputs[PIXEL_VALUES] for image in shown])
    np.testing.assert_array_equal(pixels, inputs["pixel_values"].numpy())
    assert_same_answer(theirs, inputs, model, shown)


@pytest.mark.parametrize("directory", ["onnx", "cpu"])
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_it_answers_as_transformers_does(
    images: list[int], directory: str, built: tuple[Any, Path], theirs: Any
) -> None:
    _assert_answers(images, directory, built, theirs)


@pytest.mark.parametrize("built", ["qwen3-vl int4-tower"], indirect=True)
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_with_a_quantized_tower_it_answers_as_transformers_does(
    images: list[int], built: tuple[Any, Path], theirs: Any
) -> None:
    _assert_answers(images, "cpu", built, theirs)


@pytest.mark.parametrize("images", [[0], [4, 2, 0]], ids=str)
def test_logits_are_those_of_transformers_in_pytorch(images: list[int], built: tuple[Any, Path]) -> None:
    model_class, folder = built
    inputs = _their_inputs(folder / "model", [folder / f"{index}.png" for index in images])
    whole = model_class.from_pretrained(folder / "model", dtype=torch.float32)
    grids = [Grid(*map(int, grid)) for grid in inputs["image_grid_thw"]]
    parts = inputs["pixel_values"].split([grid.cells for grid in grids])
    pixels = [Pixels(part.numpy(), grid) for part, grid in zip(parts, grids, strict=True)]
    with torch.inference_mode():
        ours = logits_of_text_and_images(open_source(str(folder / "model")), inputs["input_ids"][0].tolist(), pixels)
        torch.testing.assert_close(ours, whole(**inputs).logits[0], atol=2e-4, rtol=0)
