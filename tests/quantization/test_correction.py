"""Correction of weights: least squares by hand, and blocks nearer to the original on text not calibrated on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_family, save_llama, tokens

from awq2trt.errors import CalibrationError
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.families import gemma
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.quantization.block import Guide, collect_statistics, dequantized, quantize_block, run_block
from awq2trt.quantization.correction import CorrectionOptions, Drift, Pursuit
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.statistics import InputStatistics
from awq2trt.scheme import QuantScheme


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _drift(seen: torch.Tensor, should: torch.Tensor, lacks: torch.Tensor | None) -> Drift:
    """The drift for given inputs [tokens, K] and what the stream lacks [tokens, N]."""
    statistics = InputStatistics.empty(seen.shape[1])
    statistics.add_(seen)
    of_stream = None if lacks is None else lacks.T @ seen / len(seen)
    return Drift(statistics, (should - seen).T @ seen / len(seen), of_stream)


@pytest.mark.parametrize("joins", [False, True])
def test_undamped_and_whole_it_is_least_squares(joins: bool) -> None:
    should, weights = _normal(400, 24), [_normal(5, 24, seed=1), _normal(3, 24, seed=2)]
    seen = should @ (torch.eye(24) + 0.1 * _normal(24, 24, seed=3)) + 0.1 * _normal(400, 24, seed=4)
    if joins:
        weights = weights[:1]
    lacks = _normal(400, 5, seed=5) if joins else None
    options = CorrectionOptions(share=1.0, damping=0.0)
    found = _drift(seen, should, lacks).corrected(weights, options)
    for weight, corrected in zip(weights, found, strict=True):
        wanted = should @ weight.T if lacks is None else should @ weight.T + lacks
        expected = torch.linalg.lstsq(seen.double(), wanted.double()).solution.T.float()
        torch.testing.assert_close(corrected, expected, rtol=1e-4, atol=1e-4)


def test_a_share_of_it_goes_a_share_of_the_way() -> None:
    should = _normal(400, 24)
    drift = _drift(should + 0.3 * _normal(400, 24, seed=1), should, None)
    weight = _normal(5, 24, seed=2)
    (whole,), (half,) = (drift.corrected([weight], CorrectionOptions(share, 0.1)) for share in (1.0, 0.5))
    torch.testing.assert_close(half - weight, (whole - weight) / 2)
    (damped,) = drift.corrected([weight], CorrectionOptions(1.0, 10.0))
    assert (damped - weight).norm() < 0.5 * (whole - weight).norm()


def test_inputs_that_are_right_leave_weights_as_they_are() -> None:
    seen, weight = _normal(40, 24), _normal(5, 24, seed=1)
    assert torch.equal(_drift(seen, seen, torch.zeros(40, 5)).corrected([weight], CorrectionOptions())[0], weight)
    nothing = _drift(torch.zeros(40, 24), torch.zeros(40, 24), None)  # a layer that no token reaches
    assert torch.equal(nothing.corrected([weight], CorrectionOptions())[0], weight)


def test_an_input_that_is_not_finite_is_refused_by_name() -> None:
    seen = _normal(40, 24)
    seen[3, 5] = torch.inf
    with pytest.raises(CalibrationError, match=r"layers\.7\.o"):
        _drift(seen, seen, None).corrected([_normal(5, 24)], CorrectionOptions(), "model.layers.7.o")


def _model(tmp_path: Path, **changes: Any) -> SafetensorsSource:
    return SafetensorsSource.open(save_llama(tmp_path, num_hidden_layers=1, **changes))


def test_drift_is_what_the_two_blocks_read(tmp_path: Path) -> None:
    source = _model(tmp_path)
    spec, runner = source.spec, BlockRunner.for_positions(source.spec, 16)
    original, hidden = load_block(source, 0), Ends(source).embed(tokens(3, 16))
    current = {name: value + 0.02 * _normal(*value.shape, seed=7) for name, value in original.items()}
    streams = hidden + 0.1 * _normal(*hidden.shape, seed=8), hidden
    pursuit = Pursuit(partial(runner.run, layer=0), *streams)
    seen = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    outputs = [
        runner.run(weights, stream, layer=0, observe=kept.__setitem__).flatten(0, 1)
        for weights, stream, kept in zip((current, original), streams, seen, strict=True)
    ]
    for group in spec.scale_groups():
        name = group.balance_layers[0]
        drift, (is_, should) = pursuit.drift(spec, group, original, current), (kept[name] for kept in seen)
        assert drift.seen.tokens == 48
        torch.testing.assert_close(drift.seen.gram(), is_.T @ is_ / 48)
        torch.testing.assert_close(drift.of_input, (should - is_).T @ is_ / 48, rtol=1e-3, atol=1e-4)
        if name == spec.block.o_proj:
            lacks = (streams[1] - streams[0]).flatten(0, 1)
        elif name == spec.block.down_proj:  # what the whole block's output lacks, without down_proj's own part
            down = f"{name}.weight"
            lacks = (outputs[1] - should @ original[down].T) - (outputs[0] - is_ @ current[down].T)
        else:
            assert drift.of_stream is None
            continue
        assert drift.of_stream is not None
        torch.testing.assert_close(drift.of_stream, lacks.T @ is_ / 48, rtol=1e-3, atol=1e-4)


def test_a_norm_behind_a_part_keeps_it_from_making_up_for_the_stream(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_family(tmp_path, gemma.GEMMA3.example))
    runner, block = BlockRunner.for_positions(source.spec, 16), load_block(source, 0)
    hidden = Ends(source).embed(tokens(1, 16))
    pursuit = Pursuit(partial(runner.run, layer=0), hidden, hidden)
    assert all(
        pursuit.drift(source.spec, group, block, block).of_stream is None for group in source.spec.scale_groups()
    )


@pytest.mark.parametrize("parallel", [False, True])
def test_a_corrected_block_is_nearer_to_the_original_on_other_text(parallel: bool, tmp_path: Path) -> None:
    source = _model(tmp_path)
    spec = replace(source.spec, parallel=parallel)
    runner = BlockRunner.for_positions(spec, 48)
    method = BlockMethod(QuantScheme(bits=3, group_size=32), replace(EFFORTS["best"], correct=None))
    with torch.no_grad():
        weights, hidden = load_block(source, 0), Ends(source).embed(tokens(24, 48))
        # Streams are off by what part of them foretells, as quantized layers leave them.
        blur = torch.eye(spec.hidden_size) + 0.1 * _normal(spec.hidden_size, spec.hidden_size, seed=5)
        streams, run = hidden @ blur, partial(runner.run, layer=0)
        _, statistics = collect_statistics(runner, 0, weights, streams[:16])
        pursuit = Pursuit(run, streams[:16], hidden[:16])
        wanted, errors = run_block(runner, 0, weights, hidden[16:]), []
        for correct in (None, CorrectionOptions()):
            own = replace(method, search=replace(EFFORTS["best"], correct=correct))
            found = quantize_block(spec, 0, weights, statistics, own, Guide(pursuit=pursuit))
            block = dequantized(found.linears, found.norms)
            errors.append(float((run_block(runner, 0, block, streams[16:]) - wanted).norm()))
    assert errors[1] < 0.93 * errors[0]
