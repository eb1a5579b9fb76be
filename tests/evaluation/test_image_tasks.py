"""Tasks of models that see: transformers writes the same captions, the likeliest answer counts, bad rows are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from tiny_llava import IMAGE_TOKEN, save_llava
from transformers import AutoTokenizer, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.errors import UsageError
from awq2trt.evaluation.cider import cider
from awq2trt.evaluation.image_tasks import LONGEST_CAPTION
from awq2trt.evaluation.results import CaptionedImages, CaptionPerplexity, CaptionScore, EvalRequest
from awq2trt.evaluation.tasks import TaskScore
from awq2trt.images.pairs import MARKER, read_pairs
from awq2trt.progress import SilentProgress
from awq2trt.stages.evaluate import eval_stage

PIECES = 16
CAPTIONS = (["A red circle.", "One circle."], ["Two green squares above a blue one."], ["A red square."])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(len(CAPTIONS)):
        Image.fromarray(np.roll(picture(24, 30), 9 * index, axis=1)).save(folder / f"{index}.png")
    return folder


def _rows(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / f"rows-{len(list(folder.iterdir()))}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _captioned(pictures: Path) -> Path:
    return _rows(pictures, *({"image": f"{index}.png", "captions": said} for index, said in enumerate(CAPTIONS)))


def _measured(model: Path, images: Path, task: str | None) -> Any:
    (result,) = eval_stage(EvalRequest((str(model),), CaptionedImages(images, task=task)), SilentProgress())
    return result.measured


def _tokens(model: Path, text: str) -> torch.Tensor:
    """Tokens of a text with markers, int64 [1, S]."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    first, *rest = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(MARKER))
    return torch.tensor([[*first, *(token for part in rest for token in [*[IMAGE_TOKEN] * PIECES, *part])]])


def _pixels(model: Path, images: tuple[Path, ...]) -> torch.Tensor:
    processor = CLIPImageProcessorPil.from_pretrained(model)
    pixels: torch.Tensor = processor([Image.open(image).convert("RGB") for image in images], return_tensors="pt")[
        "pixel_values"
    ]
    return pixels


def _oracle(model: Path) -> LlavaForConditionalGeneration:
    oracle: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    oracle.eval()
    return oracle


@pytest.mark.parametrize("shots", [0, 2])
def test_transformers_writes_the_same_captions(model: Path, pictures: Path, tmp_path: Path, shots: int) -> None:
    pairs = read_pairs(_captioned(pictures))
    asked = [pair.behind(pairs[:shots]) for pair in pairs]
    messages = [[{"role": role, "content": text} for role, text in pair.messages] for pair in asked]
    rows = [
        {"image": [str(image) for image in pair.images], "messages": said}
        for pair, said in zip(asked, messages, strict=True)
    ]
    score = _measured(model, _rows(tmp_path, *rows), "caption")
    assert isinstance(score, CaptionScore)
    oracle, tokenizer = _oracle(model), AutoTokenizer.from_pretrained(model)
    for pair, caption in zip(asked, score.captions, strict=True):
        ids = _tokens(model, pair.text.removesuffix(f" {pair.messages[-1][1]}"))
        made = oracle.generate(
            input_ids=ids, pixel_values=_pixels(model, pair.images), max_new_tokens=LONGEST_CAPTION, do_sample=False
        )
        text = str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        assert caption == next(iter(text.strip().splitlines()), "").strip()


def test_captions_are_scored_by_cider(model: Path, pictures: Path) -> None:
    score = _measured(model, _captioned(pictures), "caption")
    assert len(score.captions) == len(CAPTIONS)
    assert score.cider == pytest.approx(cider(score.captions, CAPTIONS).mean)
    assert score.scores == cider(score.captions, CAPTIONS).scores


def test_the_likeliest_answer_is_chosen(model: Path, pictures: Path) -> None:
    choices, question = ["red", "dark green", "of no colour"], "Which colour is it?"
    file = _rows(
        pictures,
        *({"image": f"{index}.png", "question": question, "choices": choices, "answer": index} for index in range(3)),
    )
    score = _measured(model, file, "choice")
    assert isinstance(score, TaskScore)
    oracle, chosen = _oracle(model), []
    for pair in read_pairs(file):
        likelihoods = []
        for choice in choices:
            ids, said = _tokens(model, pair.saying(choice).text), len(f" {choice}")  # a token is a byte
            with torch.inference_mode():
                logits = oracle(input_ids=ids, pixel_values=_pixels(model, pair.images)).logits[0].log_softmax(-1)
            likelihoods.append(float(logits[-said - 1 : -1].gather(1, ids[0, -said:, None]).sum()))
        chosen.append(likelihoods.index(max(likelihoods)))
    assert score.correct == tuple(one == index for index, one in enumerate(chosen))
    assert score.examples == len(choices)


def test_perplexity_is_of_the_first_caption_or_the_right_answer(model: Path, pictures: Path) -> None:
    captioned = _measured(model, _captioned(pictures), None)
    assert isinstance(captioned, CaptionPerplexity)
    assert captioned.tokens == sum(len(f" {said[0]}") for said in CAPTIONS)
    row = {"image": "0.png", "question": "Which colour?", "choices": ["red", "blue green"], "answer": 1}
    assert _measured(model, _rows(pictures, row), None).tokens == len(" blue green")


def test_what_a_task_cannot_be_made_of_is_refused(model: Path, pictures: Path) -> None:
    choice = _rows(pictures, {"image": "0.png", "question": "Which?", "choices": ["red", "blue"], "answer": 1})
    with pytest.raises(UsageError, match="line 1: expected a caption, got a question with answers"):
        _measured(model, choice, "caption")
    with pytest.raises(UsageError, match="line 1: expected a question with answers to choose from, got none"):
        _measured(model, _captioned(pictures), "choice")
    with pytest.raises(UsageError, match="got piqa, expected one of: caption, choice"):
        _measured(model, choice, "piqa")


def test_a_model_too_large_for_the_memory_is_refused(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("awq2trt.quantization.image_texts.available_bytes", lambda: 1000)
    with pytest.raises(UsageError, match="the whole model must be in memory in fp32, with its caches"):
        _measured(model, _captioned(pictures), "caption")


def test_pictures_without_captions_cannot_be_scored(model: Path, pictures: Path, tmp_path: Path) -> None:
    for image in pictures.glob("*.png"):
        (tmp_path / image.name).write_bytes(image.read_bytes())
    with pytest.raises(UsageError, match="expected a caption, got a picture alone"):
        _measured(model, tmp_path, None)
