"""What the small vision-language model learns beside its weights is kept, put back and added to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_llava import save_llava
from train_small_vlm import (
    LEARNED,
    LowRank,
    add_low_rank_,
    load_learned_,
    merge_low_rank_,
    save_learned,
)
from transformers import LlavaForConditionalGeneration


@pytest.fixture
def model(tmp_path: Path) -> LlavaForConditionalGeneration:
    return _opened(save_llava(tmp_path / "model"))


def _opened(directory: Path) -> LlavaForConditionalGeneration:
    opened: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32
    )
    opened.eval()
    return opened


def _fill_(model: LlavaForConditionalGeneration) -> None:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.05)


def _logits(model: LlavaForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(1, 9)[None]).logits
    return logits


def test_nothing_learned_changes_nothing(model: LlavaForConditionalGeneration) -> None:
    before = _logits(model)
    add_low_rank_(model)
    torch.testing.assert_close(_logits(model), before)
    merge_low_rank_(model)
    torch.testing.assert_close(_logits(model), before)


def test_what_was_learned_is_put_into_another_copy(model: LlavaForConditionalGeneration, tmp_path: Path) -> None:
    copy = _opened(tmp_path / "model")
    before = _logits(model)
    add_low_rank_(model)
    _fill_(model)
    with torch.no_grad():
        model.model.vision_tower.post_layernorm.weight.fill_(2.0)
    learned = _logits(model)
    assert not torch.allclose(learned, before, atol=1e-2)
    save_learned(model, tmp_path / LEARNED)
    add_low_rank_(copy)
    load_learned_(copy, tmp_path / LEARNED)
    merge_low_rank_(copy)
    torch.testing.assert_close(_logits(copy), learned, atol=5e-2, rtol=5e-2)  # rounded to fp16
    assert float(copy.model.vision_tower.post_layernorm.weight[0]) == 2.0
    assert not any("parametrizations" in name for name, _ in copy.named_parameters())


def test_what_another_model_learned_is_refused(model: LlavaForConditionalGeneration, tmp_path: Path) -> None:
    add_low_rank_(model)
    save_learned(model, tmp_path / LEARNED)
    other = _opened(save_llava(tmp_path / "wider", tower={"intermediate_size": 48}))
    add_low_rank_(other)
    with pytest.raises(SystemExit, match=r"fc1.* is missing or has another shape"):
        load_learned_(other, tmp_path / LEARNED)
