"""LLaVA through all stages: what transformers' own classes answer about five images, token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_llava import save_llava
from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions, Recipe
from awq2trt.runtime import Model, Sampler, Sampling, generate, user_message
from awq2trt.runtime.ort.loading import DeviceOptions
from awq2trt.runtime.sight import with_markers
from awq2trt.stages.build import BuildRequest, build_stage

NEW_TOKENS = 64
IMAGE_TOKEN = 258
MARKER = "<image>"

TEMPLATE = """{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for content in message['content'] \
| selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | \
selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] + ' '}}{% endfor %}{% endfor %}{% if \
add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
"""As llava-hf/llava-1.5-7b-hf has it, except for what assistants say."""

HEAD_SIZE_64: dict[str, Any] = {
    "text": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
    "tower": {"hidden_size": 128, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
}
SHAPES = [(60, 80), (80, 60), (56, 56), (31, 200), (300, 40)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, as it would be published in fp16, with an image token and a chat template; and a build for the CPU."""
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder / "model", **HEAD_SIZE_64, image_token_index=IMAGE_TOKEN)
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float16)
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.add_special_tokens({"additional_special_tokens": [MARKER]}) == 1
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    for index, shape in enumerate(SHAPES):
        Image.fromarray(np.roll(picture(*shape), 5 * index, axis=1)).save(folder / f"{index}.png")
    quantize = QuantizeOptions(group_size=32, method="rtn")
    recipe = Recipe(quantize=quantize, export=ExportOptions(max_seq_len=160))
    recipe = recipe.model_copy(update={"build": recipe.build.model_copy(update={"target": "cpu"})})
    list(build_stage(BuildRequest(str(folder / "model"), folder / "built", recipe), SilentProgress()))
    return folder


@pytest.fixture(scope="module")
def theirs(built: Path) -> LlavaForConditionalGeneration:
    """transformers' own class with the quantized checkpoint's weights, dequantized."""
    checkpoint = QuantizedCheckpoint.open(built / "built" / "checkpoint")
    names = load_file(built / "model" / "model.safetensors")
    folder = built / "dequantized"
    folder.mkdir()
    (folder / "config.json").write_bytes((built / "model" / "config.json").read_bytes())
    tensors = {name: np.ascontiguousarray(checkpoint.tensor(name).astype(np.float32)) for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


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
    parts: Any = [*({"type": "image", "image": str(file)} for file in files), {"type": "text", "text": "What is it?"}]
    messages: list[Any] = [{"role": "user", "content": parts}]
    inputs: Any = _processor(built).apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    model = Model.load(built / "built" / directory, DeviceOptions("cpu"))
    assert model.sight is not None
    asked = model.tokenizer.encode_messages(with_markers([user_message("What is it?")], len(files)), IMAGE_TOKEN)
    shown = model.sight.prepare(files)
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
