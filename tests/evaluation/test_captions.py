"""Perplexity of captions given their pictures: transformers' numbers, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import picture
from PIL import Image
from tiny_gemma3 import PIECES as GEMMA3_PIECES
from tiny_gemma3 import SPECIAL, save_gemma3
from tiny_llava import IMAGE_TOKEN, save_llava
from tiny_llava_next import save_llava_next, their_inputs
from tiny_models import save_llama
from tiny_qwen_vl import IMAGE_TOKEN as QWEN_IMAGE
from tiny_qwen_vl import VISION_END, VISION_START, save_qwen3_vl, save_qwen_vl
from tiny_smolvlm import save_smolvlm
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Processor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from awq2trt.errors import Awq2trtError, UsageError
from awq2trt.evaluation.results import CaptionedImages, CaptionPerplexity, EvalRequest
from awq2trt.progress import SilentProgress
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

PIECES = 16
CAPTIONS = ("A red circle.", "Two green squares above a blue one.", "A red square.")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, caption in enumerate(CAPTIONS):
        Image.fromarray(np.roll(picture(24, 30), 9 * index, axis=1)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"{caption}\n")
    return folder


def _measured(model: Path, images: Path, limit: int | None = None) -> CaptionPerplexity:
    (result,) = eval_stage(EvalRequest((str(model),), CaptionedImages(images, limit)), SilentProgress())
    assert isinstance(result.measured, CaptionPerplexity)
    return result.measured


def _transformers_nll(model: Path, image: Path, caption: str) -> torch.Tensor:
    """NLL of every token of a caption."""
    oracle = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    pixels = CLIPImageProcessorPil.from_pretrained(model)(Image.open(image), return_tensors="pt")["pixel_values"]
    before = tokenizer("USER: ", add_special_tokens=False)["input_ids"]
    asked = tokenizer("\nDescribe the image.\nASSISTANT:", add_special_tokens=False)["input_ids"]
    said = tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*before, *[IMAGE_TOKEN] * PIECES, *asked, *said]])
    with torch.inference_mode():
        logits = oracle(input_ids=tokens, pixel_values=pixels).logits[0]
    return F.cross_entropy(logits[-len(said) - 1 : -1], tokens[0, -len(said) :], reduction="none")


def test_it_is_what_transformers_gives(model: Path, pictures: Path) -> None:
    losses = [_transformers_nll(model, pictures / f"{index}.png", caption) for index, caption in enumerate(CAPTIONS)]
    measured = _measured(model, pictures)
    assert measured.tokens == sum(len(loss) for loss in losses)
    assert measured.caption_nll == pytest.approx([float(loss.mean()) for loss in losses], abs=2e-4)
    assert measured.value == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=2e-4)
    first = _measured(model, pictures, limit=1)
    assert first.caption_nll == pytest.approx(measured.caption_nll[:1], abs=1e-5)


def test_what_a_picture_shows_counts(model: Path, pictures: Path, tmp_path: Path) -> None:
    for index, caption in enumerate(CAPTIONS):
        Image.new("RGB", (30, 24)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(caption)
    seen, unseen = _measured(model, pictures), _measured(model, tmp_path)
    assert seen.tokens == unseen.tokens
    assert not math.isclose(seen.value, unseen.value, rel_tol=1e-3)


def test_a_quantized_checkpoint_is_measured(model: Path, pictures: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(method="rtn", group_size=32)
    quantize_stage(QuantizeRequest(str(model), tmp_path / "out", options), SilentProgress())
    original, quantized = _measured(model, pictures), _measured(tmp_path / "out", pictures)
    assert original.tokens == quantized.tokens
    assert not math.isclose(original.value, quantized.value, rel_tol=1e-4)
    assert math.isclose(original.value, quantized.value, rel_tol=0.5)


def test_a_conversation_is_scored_at_its_last_message(model: Path, pictures: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": "Of which colour?"},
        {"role": "assistant", "content": "Red."},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(pictures / "0.png"), "messages": messages}))
    assert _measured(model, tmp_path / "rows.jsonl").tokens == len(" Red.")  # a token is a byte


@pytest.mark.parametrize(
    ("messages", "got"),
    [
        ([{"role": "user", "content": "What is this?"}], "of 'user' at the end"),
        ([{"role": "assistant", "content": "A cat."}], "of 'assistant' at the end"),
        ([{"role": "user", "content": "So?"}, {"role": "assistant", "content": " "}], "of 'assistant' at the end"),
        ([{"role": "user", "content": "So?"}, {"role": "assistant", "content": "<image> there"}], "'<image> there'"),
    ],
)
def test_a_conversation_without_an_answer_is_refused(
    model: Path, pictures: Path, tmp_path: Path, messages: list[dict[str, str]], got: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(pictures / "0.png"), "messages": messages}))
    with pytest.raises(UsageError, match=rf"rows\.jsonl, line 1: .*{got}"):
        _measured(model, tmp_path / "rows.jsonl")


def test_a_model_of_text_is_refused(pictures: Path, tmp_path: Path) -> None:
    text_model = save_llama(tmp_path / "text-model")
    with pytest.raises(UsageError, match="of a model that sees images, got a model of text"):
        _measured(text_model, pictures)


def test_what_a_model_would_refuse_is_refused_before_the_first_is_run(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    def refused(on: Path, *models: Path) -> str:
        with pytest.raises(Awq2trtError) as caught:
            eval_stage(EvalRequest(tuple(map(str, (model, *models))), CaptionedImages(on)), SilentProgress())
        return str(caught.value)

    assert "got a model of text" in refused(pictures, save_llama(tmp_path / "text-model"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(pictures / "0.png"), "caption": "x" * 600}))
    assert "the longest conversation: expected at most" in refused(tmp_path / "rows.jsonl")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.png").write_bytes((pictures / "0.png").read_bytes()[:100])
    (broken / "0.txt").write_text("A circle.")
    assert "the image is truncated or damaged" in refused(broken)


def test_pictures_are_looked_for_before_a_model_is_opened(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "cat.jpg", "caption": "A cat."}))
    request = EvalRequest((str(model),), CaptionedImages(tmp_path / "rows.jsonl"))
    with pytest.raises(UsageError, match=r"cat\.jpg: no such image"):
        eval_stage(request, SilentProgress())
    with pytest.raises(Awq2trtError, match="none"):
        eval_stage(EvalRequest((str(model),), CaptionedImages(tmp_path / "none")), SilentProgress())


def _any_size_nll(model: Path, image: Path, caption: str) -> torch.Tensor:
    """NLL of every token of a caption, by transformers, of a model that sees images of any size."""
    oracle = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    processor: Any = Qwen2VLImageProcessorPil.from_pretrained(model)
    seen = processor(Image.open(image), return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // 4
    before = tokenizer("USER: ", add_special_tokens=False)["input_ids"]
    asked = tokenizer("\nDescribe the image.\nASSISTANT:", add_special_tokens=False)["input_ids"]
    said = tokenizer(f" {caption}", add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[*before, VISION_START, *[QWEN_IMAGE] * count, VISION_END, *asked, *said]])
    with torch.inference_mode():
        logits = oracle(input_ids=tokens, mm_token_type_ids=(tokens == QWEN_IMAGE).int(), **seen).logits[0]
    return F.cross_entropy(logits[-len(said) - 1 : -1], tokens[0, -len(said) :], reduction="none")


@pytest.mark.parametrize("save", [save_qwen_vl, save_qwen3_vl])
def test_images_of_any_size_have_rows_and_columns(save: Callable[[Path], Path], tmp_path: Path) -> None:
    model, images = save(tmp_path / "model"), tmp_path / "images"
    images.mkdir()
    for index, (caption, shape) in enumerate(zip(CAPTIONS, [(24, 30), (60, 33), (20, 90)], strict=True)):
        Image.fromarray(np.roll(picture(*shape), 9 * index, axis=1)).save(images / f"{index}.png")
        (images / f"{index}.txt").write_text(f"{caption}\n")
    losses = [_any_size_nll(model, images / f"{index}.png", caption) for index, caption in enumerate(CAPTIONS)]
    measured = _measured(model, images)
    assert measured.caption_nll == pytest.approx([float(loss.mean()) for loss in losses], abs=2e-4)


def _one_picture(folder: Path) -> Image.Image:
    """A picture with the first caption, alone in a folder."""
    folder.mkdir()
    Image.fromarray(picture(24, 30)).save(folder / "0.png")
    (folder / "0.txt").write_text(f"{CAPTIONS[0]}\n")
    return Image.open(folder / "0.png")


def _tiled_inputs(model: Path, image: Image.Image) -> Any:
    """What SmolVLM's processor makes of a question about an image and its answer, the first caption."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    processor: Any = Idefics3Processor(SmolVLMImageProcessorPil.from_pretrained(model), tokenizer, image_seq_len=9)
    text = f"USER: <image>\nDescribe the image.\nASSISTANT: {CAPTIONS[0]}"
    return processor(text=text, images=[[image]], return_tensors="pt", add_special_tokens=False)


def _mosaic_inputs(model: Path, image: Image.Image) -> Any:
    """The same of LLaVA 1.6's."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = ("USER: ", f"\nDescribe the image.\nASSISTANT: {CAPTIONS[0]}")
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
    return their_inputs(model, [image], before, after)


def _pooled_inputs(model: Path, image: Image.Image) -> Any:
    """The same of Gemma 3's."""
    names = dict(zip(("image_token", "boi_token", "eoi_token"), SPECIAL, strict=True))
    tokenizer = AutoTokenizer.from_pretrained(model, extra_special_tokens=names)
    processor: Any = Gemma3Processor(
        Gemma3ImageProcessorPil.from_pretrained(model), tokenizer, image_seq_length=GEMMA3_PIECES
    )
    text = f"{tokenizer.bos_token}USER: <start_of_image>\nDescribe the image.\nASSISTANT: {CAPTIONS[0]}"
    return processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)


@pytest.mark.parametrize(
    ("save", "model_class", "inputs_of"),
    [
        (save_smolvlm, SmolVLMForConditionalGeneration, _tiled_inputs),
        (save_llava_next, LlavaNextForConditionalGeneration, _mosaic_inputs),
        (save_gemma3, Gemma3ForConditionalGeneration, _pooled_inputs),
    ],
    ids=["tiles have texts around them", "mosaics have no margins", "tokens of an image see each other"],
)
def test_an_image_is_what_its_processor_makes_of_it(
    save: Callable[[Path], Path], model_class: Any, inputs_of: Callable[[Path, Image.Image], Any], tmp_path: Path
) -> None:
    model = save(tmp_path / "model")
    seen = inputs_of(model, _one_picture(tmp_path / "images"))
    oracle = model_class.from_pretrained(model, dtype=torch.float32).eval()
    said = len(AutoTokenizer.from_pretrained(model)(f" {CAPTIONS[0]}", add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logits = oracle(**seen).logits[0]
    loss = F.cross_entropy(logits[-said - 1 : -1], seen["input_ids"][0, -said:])
    assert _measured(model, tmp_path / "images").caption_nll == pytest.approx([float(loss)], abs=2e-4)
