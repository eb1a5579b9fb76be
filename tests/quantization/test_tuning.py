"""Tuned step sizes: nearer to the original's predictions, with the same codes, and the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_checkpoints import nearest
from tiny_models import save_llama, tokens

from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends, run_model
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.quantization.block import plain_tensors
from awq2trt.quantization.method import method_of
from awq2trt.quantization.tuning import FinishedBlock, Predicted, TuneOptions, tune_steps
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantizedLinear, QuantScheme

SCHEME = QuantScheme(bits=3, group_size=32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"effort": "max"}, True),
        ({"effort": "max", "tune": False}, False),
        ({"effort": "max", "calib": "pictures"}, False),  # step sizes can only be tuned on text
        ({"effort": "max", "method": "rtn"}, False),
        ({"effort": "best"}, False),
        ({"effort": "best", "tune": True}, True),
    ],
    ids=str,
)
def test_max_tunes_on_text_unless_it_is_told_not_to(
    options: dict[str, Any], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    method = method_of(QuantizeOptions.model_validate(options))
    assert (method.tune is not None) == expected


def _blocks(source: ModelSource) -> list[FinishedBlock]:
    """Rounded to nearest."""
    blocks = []
    for layer in range(source.spec.num_layers):
        weights = load_block(source, layer)
        linears = {name: nearest(weights[f"{name}.weight"], SCHEME) for name in source.spec.block.linears}
        for name, linear in linears.items():
            if f"{name}.bias" in weights:
                linears[name] = replace(linear, bias=weights[f"{name}.bias"].half().numpy())
        blocks.append(FinishedBlock(linears, plain_tensors(source.spec, weights)))
    return blocks


def _predicted(source: ModelSource, seed: int = 0) -> Predicted:
    ids = tokens(6, 40)
    runner = BlockRunner.for_positions(source.spec, 40)
    return Predicted(Ends(source), runner, ids, run_model(source, ids), seed)


def _divergence(source: ModelSource, linears: list[dict[str, QuantizedLinear]], predicted: Predicted) -> float:
    """KL(original || quantized) by the definition, in float64, over the positions of all windows."""
    hidden = predicted.ends.embed(predicted.tokens)
    for layer, block in enumerate(linears):
        weights = load_block(source, layer)
        weights |= {f"{name}.weight": torch.from_numpy(linear.dequantize()) for name, linear in block.items()}
        hidden = predicted.runner.run(weights, hidden, layer=layer)
    original, quantized = (
        F.log_softmax(predicted.ends.logits(stream).double(), dim=-1) for stream in (predicted.final, hidden)
    )
    return float((original.exp() * (original - quantized)).sum(dim=-1).mean())


def test_tuning_brings_predictions_nearer_and_moves_step_sizes_only(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path, attention_bias=True, mlp_bias=True))
    with torch.no_grad():
        blocks, predicted = _blocks(source), _predicted(source)
        before = _divergence(source, [dict(block.linears) for block in blocks], predicted)
        tuned = tune_steps(blocks, predicted, TuneOptions(steps=40, windows=3, rate=1e-2))
        assert _divergence(source, tuned, predicted) < 0.7 * before
    for block, linears in zip(blocks, tuned, strict=True):
        assert list(block.linears) == list(linears)
        for name, linear in linears.items():
            old = block.linears[name]
            assert (linear.codes == old.codes).all()
            assert linear.zeros is not None
            assert (linear.zeros == old.zeros).all()
            assert linear.bias is old.bias
            assert linear.scales.dtype == np.float16
            assert (linear.scales != old.scales).any()


def test_tuning_repeats_itself_and_only_the_seed_changes_it(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    options = TuneOptions(steps=5, windows=2)

    def scales(seed: int) -> NDArray[np.float16]:
        with torch.no_grad():
            tuned = tune_steps(_blocks(source), _predicted(source, seed), options)
        return np.concatenate([linear.scales.ravel() for block in tuned for linear in block.values()])

    np.testing.assert_array_equal(scales(1), scales(1))
    assert (scales(1) != scales(2)).any()


def test_what_does_not_help_is_not_kept(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    with torch.no_grad():
        blocks = _blocks(source)
        tuned = tune_steps(blocks, _predicted(source), TuneOptions(steps=6, windows=2, rate=30.0))
    for block, linears in zip(blocks, tuned, strict=True):
        assert all(linear is block.linears[name] for name, linear in linears.items())
