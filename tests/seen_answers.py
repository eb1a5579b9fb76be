"""What tests of whole builds of models that see share: pictures, a build for the CPU, transformers' model of it.

Also what is asked about pictures, and that both answer the same.
"""

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
from awq2trt.models.vision.prepared import PreparedImage
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import ChatTokenizer, Model, Sampler, Sampling, generate, user_message
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sight import Sight, with_markers
from awq2trt.stages.build import BuildRequest, build_stage

QUESTION = "What is it?"

NEW_TOKENS = 64


def save_pictures(folder: Path, shapes: Sequence[tuple[int, int]]) -> None:
    """Saves a picture of every shape, `0.png` and so on."""
    for index, shape in enumerate(shapes):
        Image.fromarray(np.roll(picture(*shape), 5 * index, axis=1)).save(folder / f"{index}.png")


def build_for_cpu(folder: Path, capacity: int, *, quantize_vision: bool = False) -> None:
    """Builds `folder/model` for the CPU in `folder/built`; what it sees with is quantized if that is asked for."""
    quantize = QuantizeOptions(group_size=32, method="rtn", quantize_vision=quantize_vision)
    recipe = Recipe(quantize=quantize, export=ExportOptions(max_seq_len=capacity))
    recipe = recipe.model_copy(update={"build": recipe.build.model_copy(update={"target": "cpu"})})
    list(build_stage(BuildRequest(str(folder / "model"), folder / "built", recipe), SilentProgress()))
    checkpoint = QuantizedCheckpoint.open(folder / "built" / "checkpoint")
    assert bool(checkpoint.vision_linears) == quantize_vision, "what these tests are about"


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


def question_about(pictures: Sequence[Path]) -> list[dict[str, Any]]:
    """`QUESTION` about images, as transformers' processors take it."""
    shown = [{"type": "image", "image": str(picture)} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]


def asked(tokenizer: ChatTokenizer, sight: Sight, shown: Sequence[PreparedImage]) -> list[int]:
    """`QUESTION` about images in tokens of ours."""
    messages = with_markers([user_message(QUESTION)], len(shown))
    tokens = tokenizer.encode_messages(
        messages, sight.record.image_token, sight.around, lambda text: sight.spell(text, shown)
    )
    return sight.place(tokens, shown)


def assert_same_answer(theirs: Any, inputs: Any, model: Model, shown: Sequence[PreparedImage]) -> None:
    """Asserts that our model is asked the same tokens as transformers', and answers the same.

    Args:
        theirs: transformers' own class with our weights.
        inputs: What transformers' processor makes of `QUESTION` about images.
        model: Our model.
        shown: The images, as we prepare them.
    """
    assert model.sight is not None
    tokens = asked(model.tokenizer, model.sight, shown)
    assert tokens == inputs["input_ids"][0].tolist()
    expected = theirs.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=None
    )
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "images": shown}
    got = list(generate(model.backend, tokens, Sampler(Sampling()), **options))
    assert got == expected[0, len(tokens) :].tolist()
    assert len(set(got)) > 8, "an answer of one token again and again would be no proof"


def assert_users_ask_the_same(folder: Path, pictures: Sequence[Path], inputs: Any) -> None:
    """Asserts that what a user of the build in `folder/built/cpu` asks is what is compared.

    Args:
        folder: Where the build is.
        pictures: Files of the images.
        inputs: What transformers' processor makes of `QUESTION` about them.
    """
    model = Model.load(folder / "built" / "cpu", DeviceOptions("cpu"))
    tokens = inputs["input_ids"][0].tolist()
    assert model.sight is not None
    shown = model.sight.prepare(pictures)
    expected = generate(model.backend, tokens, Sampler(Sampling()), max_new_tokens=8, images=shown)
    text = model.tokenizer.decode(list(expected))
    assert model.generate_text(QUESTION, images=pictures, max_new_tokens=8) == text
