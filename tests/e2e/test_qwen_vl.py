"""Qwen2.5-VL through all stages: what transformers' own classes answer about five images, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seen_answers import build_for_cpu, dequantized, save_pictures
from tiny_qwen_vl import PUBLISHED_IDS, PUBLISHED_MARKERS, publish_qwen_vl
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.prepared import Grid, Pixels
from awq2trt.models.vision.seeing import logits_of_text_and_images
from awq2trt.runtime import Model, Sampler, Sampling, generate, user_message
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sight import with_markers

NEW_TOKENS, CAPACITY = 64, 320
VISION_START, VISION_END, IMAGE_TOKEN = PUBLISHED_IDS
SHAPES = [(60, 80), (80, 60), (33, 41), (9, 120), (300, 40)]
"""Larger than the processor allows, within it, very long, and so small that they are enlarged."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, as it would be published, with its tokens and a chat template; and a build for the CPU."""
    folder = tmp_path_factory.mktemp("qwen")
    publish_qwen_vl(folder / "model")
    save_pictures(folder, SHAPES)
    build_for_cpu(folder, CAPACITY)
    return folder


@pytest.fixture(scope="module")
def theirs(built: Path) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    model: Qwen2_5_VLForConditionalGeneration = dequantized(built, Qwen2_5_VLForConditionalGeneration)
    return model


def _their_inputs(built: Path, images: list[int]) -> dict[str, torch.Tensor]:
    """What transformers' processor makes of a question about images: its chat template, a token for every piece."""
    tokenizer: Any = AutoTokenizer.from_pretrained(built / "model")
    parts: list[Any] = [*({"type": "image"} for _ in images), {"type": "text", "text": "What is it?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(built / "model")
    seen = processor([Image.open(built / f"{index}.png") for index in images], return_tensors="pt")
    first, *rest = text.split(PUBLISHED_MARKERS[2])
    for grid, piece in zip(seen["image_grid_thw"], rest, strict=True):
        first += PUBLISHED_MARKERS[2] * (int(grid.prod()) // 4) + piece
    ids = tokenizer(first, return_tensors="pt", add_special_tokens=False).input_ids
    return {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_TOKEN).int(), **seen}


@pytest.mark.parametrize("directory", ["onnx", "cpu"])
@pytest.mark.parametrize("images", [[0], [1], [2], [3], [4], [4, 2, 0]], ids=str)
def test_it_answers_as_transformers_does(
    images: list[int], directory: str, built: Path, theirs: Qwen2_5_VLForConditionalGeneration
) -> None:
    files = [built / f"{index}.png" for index in images]
    inputs = _their_inputs(built, images)
    model = Model.load(built / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    shown = model.sight.prepare(files)
    asked = model.tokenizer.encode_messages(
        with_markers([user_message("What is it?")], len(files)), IMAGE_TOKEN, model.sight.around
    )
    tokens = model.sight.place(asked, shown)
    assert tokens == inputs["input_ids"][0].tolist()
    pixels = np.concatenate([image.inputs[PIXEL_VALUES] for image in shown])
    np.testing.assert_array_equal(pixels, inputs["pixel_values"].numpy())

    expected = theirs.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=None
    )
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "images": shown}
    got = list(generate(model.backend, tokens, Sampler(Sampling()), **options))
    assert got == expected[0, len(tokens) :].tolist()
    assert len(set(got)) > 8, "an answer of one token again and again would be no proof"


@pytest.mark.parametrize("images", [[0], [4, 2, 0]], ids=str)
def test_logits_are_those_of_transformers_in_pytorch(images: list[int], built: Path) -> None:
    inputs = _their_inputs(built, images)
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(built / "model", dtype=torch.float32)
    grids = [Grid(*map(int, grid)) for grid in inputs["image_grid_thw"]]
    parts = inputs["pixel_values"].split([grid.cells for grid in grids])
    pixels = [Pixels(part.numpy(), grid) for part, grid in zip(parts, grids, strict=True)]
    with torch.inference_mode():
        ours = logits_of_text_and_images(open_source(str(built / "model")), inputs["input_ids"][0].tolist(), pixels)
        torch.testing.assert_close(ours, whole(**inputs).logits[0], atol=2e-4, rtol=0)
