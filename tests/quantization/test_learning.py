"""Learned codes: they begin where the search ended, reduce the block's error, and depend only on the seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import save_llama, tokens

from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.quantization.block import Guide, collect_statistics, dequantized, quantize_block
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.learning import LearnOptions, Lesson, learn_codes
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.rounding import GroupGrid, Rounded, group_grid, round_to_grid, to_groups
from awq2trt.scheme import WHOLE_ROW, QuantScheme

FAST = LearnOptions(steps=60, windows=2)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear_lesson(weight: torch.Tensor, seed: int = 0) -> Lesson:
    """A block that is one linear beside a residual connection.

    Its inputs are uneven and have few dimensions, like those of a trained model, so that errors of weights can
    compensate for each other.
    """
    inputs = _normal(6, 20, 20, seed=1) @ _normal(20, weight.shape[1], seed=2)
    inputs = inputs * torch.logspace(-0.3, 0.3, weight.shape[1])

    def run(tensors: dict[str, torch.Tensor], hidden: torch.Tensor, *, windows: object = None) -> torch.Tensor:
        return hidden + hidden @ tensors["linear.weight"].T

    return Lesson(run, inputs, run({"linear.weight": weight}, inputs), seed, len(inputs))  # type: ignore[arg-type]


def _nearest(weight: torch.Tensor, scheme: QuantScheme) -> Rounded:
    return round_to_grid(weight, group_grid(to_groups(weight, scheme), scheme), scheme)


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(bits=4, group_size=32),
        QuantScheme(bits=3, group_size=64),
        QuantScheme(bits=2, group_size=32, zero_point=False),
        QuantScheme(bits=3, group_size=WHOLE_ROW),
    ],
    ids=QuantScheme.describe,
)
def test_no_step_leaves_codes_and_grids_as_they_were(scheme: QuantScheme) -> None:
    weight = _normal(72, 72)
    start = _nearest(weight, scheme)
    # Codes that are not the nearest, as a descent leaves them.
    moved = (start.codes + torch.randint(-1, 2, start.codes.shape)).clamp(0, scheme.levels - 1)
    start = Rounded(moved, start.grid)
    lesson = _linear_lesson(weight)
    learned = learn_codes({"linear.weight": weight}, {"linear": start}, lesson, scheme, replace(FAST, steps=0))
    torch.testing.assert_close(learned.rounded["linear"].codes, start.codes, rtol=0, atol=0)
    torch.testing.assert_close(learned.rounded["linear"].grid.scales, start.grid.scales, rtol=0, atol=0)
    torch.testing.assert_close(learned.rounded["linear"].grid.zeros, start.grid.zeros, rtol=0, atol=0)
    assert learned.before == learned.after


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(bits=3, group_size=32),
        QuantScheme(bits=2, group_size=64, zero_point=False),
        QuantScheme(bits=3, group_size=WHOLE_ROW),
    ],
    ids=QuantScheme.describe,
)
def test_learning_lowers_the_error_that_it_says(scheme: QuantScheme) -> None:
    weight = _normal(72, 72)
    lesson, start = _linear_lesson(weight), _nearest(weight, scheme)
    learned = learn_codes({"linear.weight": weight}, {"linear": start}, lesson, scheme, FAST)

    def error(rounded: Rounded) -> float:
        """The definition, in float64."""
        inputs, targets = lesson.inputs.double(), lesson.targets.double()
        outputs = inputs + inputs @ rounded.dequantize(scheme).double().T
        of_token = targets.square().mean(dim=-1)
        added = ((targets - inputs).square().mean(dim=-1) / of_token).mean()
        return float(((outputs - targets).square().mean(dim=-1) / of_token).mean() / added)

    found = learned.rounded["linear"]
    assert error(found) < 0.8 * error(start)
    assert float(found.codes.min()) >= 0
    assert float(found.codes.max()) < scheme.levels
    torch.testing.assert_close(found.codes, found.codes.round())
    torch.testing.assert_close(found.grid.scales, found.grid.scales.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(found.grid.zeros, found.grid.zeros.round().clamp(0, scheme.levels - 1), rtol=0, atol=0)


def test_learning_repeats_itself_and_only_the_seed_changes_it() -> None:
    weight, scheme = _normal(64, 64), QuantScheme(bits=3, group_size=32)

    def codes(seed: int) -> torch.Tensor:
        start = {"linear": _nearest(weight, scheme)}
        lesson = _linear_lesson(weight, seed)
        return learn_codes({"linear.weight": weight}, start, lesson, scheme, FAST).rounded["linear"].codes

    assert torch.equal(codes(3), codes(3))
    assert not torch.equal(codes(3), codes(4))


def test_a_harmful_lesson_is_not_kept() -> None:
    weight, scheme = _normal(64, 64), QuantScheme(bits=4, group_size=32)
    exact = _nearest(weight, scheme)
    lesson = _linear_lesson(exact.dequantize(scheme))
    wild = replace(FAST, offset_reach=30.0, range_reach=3.0)
    learned = learn_codes({"linear.weight": weight}, {"linear": exact}, lesson, scheme, wild)
    assert learned.before == learned.after == 0
    assert torch.equal(learned.rounded["linear"].codes, exact.codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_max_comes_nearer_to_the_original_block_than_best(bits: int, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    spec, layer = source.spec, 0
    runner = BlockRunner.for_positions(spec, 48)
    with torch.no_grad():
        weights, hidden = load_block(source, layer), Ends(source).embed(tokens(12, 48))
        targets, statistics = collect_statistics(runner, layer, weights, hidden)
        lesson = Lesson(partial(runner.run, layer=layer), hidden, targets, seed=0, samples=len(hidden))
        errors = {}
        for effort in ("best", "max"):
            method = BlockMethod(QuantScheme(bits=bits, group_size=32), EFFORTS[effort])
            quantized = quantize_block(spec, layer, weights, statistics, method, Guide(lesson))
            block = dequantized(quantized.linears, quantized.norms)
            errors[effort] = float((runner.run(block, hidden, layer=layer) - targets).norm())
    assert errors["max"] < 0.9 * errors["best"]


def test_a_weight_beyond_its_range_stays_at_the_last_code() -> None:
    """It is 30 steps beyond; brought back to its code, it would be moved by gradients that it cannot follow."""
    scheme = QuantScheme(bits=2, group_size=32)
    weight = torch.zeros(32, 32)
    weight[0, :4] = torch.tensor([40.0, -1.0, 1.0, 2.0])
    start = round_to_grid(weight, GroupGrid(torch.ones(32, 1, 1), torch.ones(32, 1, 1)), scheme)
    lesson = _linear_lesson(weight)
    learned = learn_codes({"linear.weight": weight}, {"linear": start}, lesson, scheme, FAST)
    assert float(learned.rounded["linear"].codes[0, 0]) == 3
