"""The comparison with AutoRound: it gets our model, and its perplexity is measured like ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peer_autoround
import pytest
import torch
from tiny_models import save_llama, tokens
from transformers import AutoModelForCausalLM

from awq2trt.evaluation.perplexity import perplexity, torch_logits
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_written_for_transformers_is_the_same_one(tied: bool, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path / "original", tie_word_embeddings=tied))
    directory = peer_autoround.written_for_transformers(source, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    windows = tokens(3, 40)
    got = peer_autoround.measured(model, {"text": windows})
    expected = perplexity(windows, torch_logits(source, windows, SilentProgress(), ""), SilentProgress(), "")
    assert got == {"text": pytest.approx(expected.value, rel=1e-4)}


def test_rounded_weights_take_the_place_of_those_of_blocks(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path / "original", num_hidden_layers=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.float32)
    state = {name: 2 * value for name, value in model.state_dict().items()}
    saved = SafetensorsSource.open(peer_autoround.written_for_transformers(source, tmp_path / "saved", state))
    for layer in range(2):
        for name, value in source.block(layer).items():
            np.testing.assert_array_equal(saved.block(layer)[name], 2 * np.asarray(value, np.float32))
    for name, value in source.outer().items():
        np.testing.assert_array_equal(saved.outer()[name], np.asarray(value, np.float32))


def test_a_recipe_fills_what_no_flag_says() -> None:
    ours, best = peer_autoround.parsed([]), peer_autoround.parsed(["--recipe", "best", "--samples", "32"])
    assert (ours.iters, ours.samples, ours.seqlen, ours.lr) == (200, 32, 512, None)
    assert (best.iters, best.samples, best.seqlen, best.lr) == (1000, 32, 2048, None)
    with pytest.raises(SystemExit):
        peer_autoround.parsed(["--recipe", "slow"])


def test_what_is_there_is_not_overwritten_and_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        peer_autoround.parsed(["--save", str(tmp_path)])
    assert f"--save: expected a directory that does not exist yet, got {tmp_path}" in capsys.readouterr().err
