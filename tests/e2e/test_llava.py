"""LLaVA through all stages: what transformers' own classes answer about five images, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seen_answers import assert_same_answer, build_for_cpu, dequantized, question_about, save_pictures
from tiny_llava import TEMPLATE, publish_llava
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.runtime import Model
from awq2trt.runtime.ort.loading import DeviceOptions

SHAPES = [(60, 80), (80, 60), (56, 56), (31, 200), (300, 40)]


@pytest.fixture(scope="module", params=[False, True], ids=["fp16-tower", "int4-tower"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, as it would be published, and a build for the CPU, with what it sees with quantized or not."""
    folder = tmp_path_factory.mktemp("llava")
    publish_llava(folder / "model")
    save_pictures(folder, SHAPES)
    build_for_cpu(folder, 160, quantize_vision=request.param)
    return folder


@pytest.fixture(scope="module")
def theirs(built: Path) -> LlavaForConditionalGeneration:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    model: LlavaForConditionalGeneration = dequantized(built, LlavaForConditionalGeneration)
    return model


def _processor(built: Path) -> LlavaProcessor:
    return LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(built / "model"),
        AutoTokenizer.from_pretrained(built / "model"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.mark.parametrize("directory", ["onnx", "cpu"])
@pytest.mark.parametrize("images", [[0], [1], [2], [3], [4], [4, 1, 0]], ids=str)
def test_it_answers_as_transformers_does(
    images: list[int], directory: str, built: Path, theirs: LlavaForConditionalGeneration
) -> None:
    files = [built / f"{index}.png" for index in images]
    inputs: Any = _processor(built).apply_chat_template(
        question_about(files),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    model = Model.load(built / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    shown = model.sight.prepare(files)
    pixels = np.concatenate([image.inputs[PIXEL_VALUES] for image in shown])
    np.testing.assert_array_equal(pixels, inputs["pixel_values"].numpy())
    assert_same_answer(theirs, inputs, model, shown)
