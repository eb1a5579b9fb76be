"""Perplexity against transformers, and the windows it is measured on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import save_llama, tokens
from transformers import AutoModelForCausalLM

from awq2trt.errors import UsageError
from awq2trt.evaluation.perplexity import first_windows, perplexity, torch_logits
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    windows = tokens(3, 200)  # more than one piece of logits
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = [float(model(window[None], labels=window[None]).loss) for window in windows]
    logits = torch_logits(source, windows, SilentProgress(), "run")
    found = perplexity(windows, logits, SilentProgress(), "score")
    assert found.window_nll == pytest.approx(expected, rel=1e-5)
    assert found.value == pytest.approx(math.exp(sum(expected) / 3), rel=1e-5)
    assert (found.windows, found.seqlen) == (3, 200)


def test_targets_are_where_the_logits_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device `meta`, which computes nothing, stands for a GPU; windows come from the CPU."""
    seen = []

    def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, **_: str) -> float:
        seen.append((logits.device.type, targets.device.type))
        return 6.0

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)

    def logits(_: torch.Tensor) -> Iterator[torch.Tensor]:
        return iter(torch.empty(7, 11, device="meta").split(4))

    found = perplexity(tokens(1, 7), logits, SilentProgress(), "score")

    assert seen == [("meta", "meta")] * 2
    assert found.window_nll == (2.0,)


def test_windows_come_from_the_start_one_after_another() -> None:
    assert first_windows(list(range(10)), windows=2, seqlen=4, where="t").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with_bos = first_windows(list(range(10)), windows=2, seqlen=4, where="t", bos=77)
    assert with_bos.tolist() == [[77, 0, 1, 2], [77, 3, 4, 5]]
    assert first_windows(list(range(10)), windows=99, seqlen=4, where="t").shape == (2, 4)
    with pytest.raises(UsageError, match="expected at least 11 tokens, got 10"):
        first_windows(list(range(10)), windows=1, seqlen=11, where="t")
