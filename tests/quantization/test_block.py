"""Rounding, search and folding: definitions, known optima, invariances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import nearest
from tiny_models import save_llama, tokens

from awq2trt.errors import CalibrationError, CheckpointError
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import BlockRunner, Ends
from awq2trt.models.families import LINEAR, DecoderSpec, ScaleGroup
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.quantization.block import QuantizedBlock, collect_statistics, quantize_alone, quantize_block
from awq2trt.quantization.effort import ANY_WIDTH, EFFORTS
from awq2trt.quantization.fold import fold_scales_, smooth_scales
from awq2trt.quantization.method import BlockMethod, method_of
from awq2trt.quantization.products import output_error
from awq2trt.quantization.rounding import fake_quantize
from awq2trt.quantization.search import (
    FIRST_ALPHAS,
    ScaleOptions,
    normalised_scales,
    search_scales,
    smooth_magnitude,
    spread_over_heads,
    weight_magnitude,
)
from awq2trt.quantization.statistics import InputStatistics, require_finite
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import WHOLE_ROW, QuantScheme


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SCHEMES = [
    QuantScheme(bits=b, group_size=g, zero_point=z)
    for b in (2, 3, 4)
    for g in (32, 64, 128, WHOLE_ROW)
    for z in (True, False)
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
@pytest.mark.parametrize("columns", [128, 72, 33])
def test_error_is_at_most_half_a_step(scheme: QuantScheme, columns: int) -> None:
    weight = _normal(7, columns) + 0.3
    linear = nearest(weight, scheme)
    steps = np.repeat(linear.scales.astype(np.float32), linear.group_length, axis=1)[:, :columns]
    error = np.abs(linear.dequantize() - weight.numpy())
    # Asymmetric: the zero point is rounded too, so an extreme can lie another half step outside the grid. fp16 step
    # sizes are off by up to 2^-11 of 15 steps.
    bound = (1.0 if scheme.zero_point else 0.5) + 15 * 2**-11
    assert (error <= bound * steps).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=QuantScheme.describe)
def test_fake_quantize_is_what_the_codes_say(scheme: QuantScheme) -> None:
    weight = _normal(5, 72)
    np.testing.assert_array_equal(fake_quantize(weight, scheme).numpy(), nearest(weight, scheme).dequantize())


@settings(deadline=None, max_examples=30)
@given(st.floats(-1, 1), st.floats(1e-3, 10))
def test_weights_on_the_grid_are_exact(low: float, span: float) -> None:
    step = torch.tensor(span / 15).half().float()
    zero = round(np.clip(-low / float(step), 0, 15))
    weight = (torch.arange(16.0) - zero).repeat(2, 2) * step  # every code of a group of 32
    torch.testing.assert_close(fake_quantize(weight, QuantScheme(group_size=32)), weight, rtol=0, atol=0)


def test_a_group_of_one_sign_keeps_its_values() -> None:
    weight = torch.linspace(1.0, 2.0, 32).unsqueeze(0)
    assert float((fake_quantize(weight, QuantScheme(group_size=32)) - weight).abs().max()) <= 2.0 / 15 / 2 + 1e-3


def test_all_zero_and_tiny_groups_become_zero() -> None:
    weight = torch.cat((torch.zeros(2, 32), torch.full((2, 32), 1e-12)), dim=1)
    for zero_point in (True, False):
        linear = nearest(weight, QuantScheme(group_size=32, zero_point=zero_point))
        assert not linear.dequantize().any()


def test_weights_beyond_fp16_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"up_proj.*fp16"):
        nearest(torch.full((2, 32), 1e7), QuantScheme(group_size=32), where="model.layers.0.mlp.up_proj")


def _salient_problem() -> tuple[torch.Tensor, InputStatistics]:
    """Weights and inputs in which one channel in 64 carries most of the input."""
    x = _normal(256, 64, seed=3) * 0.1
    x[:, 5] *= 100
    statistics = InputStatistics.empty(64)
    statistics.add_(x)
    return _normal(16, 64, seed=4), statistics


@pytest.mark.parametrize("adaptive", [True, False])
def test_scale_search_protects_the_salient_channel(adaptive: bool) -> None:
    weight, statistics = _salient_problem()
    scheme = QuantScheme(group_size=64)
    found = search_scales(
        [weight], statistics.gram(), partial(normalised_scales, statistics.magnitude()), scheme, ScaleOptions(adaptive)
    )
    assert found.alpha > 0
    assert int(found.scales.argmax()) == 5
    assert found.loss < 0.5 * output_error(fake_quantize(weight, scheme) - weight, statistics.gram())
    difference = fake_quantize(weight * found.scales, scheme) / found.scales - weight
    assert output_error(difference, statistics.gram()) == pytest.approx(found.loss, rel=0.01)


def test_the_adaptive_grid_finds_what_a_fine_grid_finds() -> None:
    weight, statistics = _salient_problem()
    gram, scheme = statistics.gram(), QuantScheme(bits=3, group_size=64)
    scales_of = partial(normalised_scales, statistics.magnitude())
    adaptive = search_scales([weight], gram, scales_of, scheme, ScaleOptions(adaptive=True))
    losses = {
        alpha: output_error(fake_quantize(weight * scales_of(alpha), scheme) / scales_of(alpha) - weight, gram)
        for alpha in (i / 80 for i in range(80))
    }
    paper = min(losses[i / 20] for i in range(20))
    assert adaptive.loss <= 1.02 * paper
    assert adaptive.loss <= 1.1 * min(losses.values())


def test_the_first_alphas_are_tried_on_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.quantization.search.ROUGH_ROWS", 8)
    weight, statistics = _salient_problem()
    weight, scheme = weight.repeat_interleave(4, dim=0), QuantScheme(bits=3, group_size=64)
    seen: list[int] = []

    def counted(difference: torch.Tensor, gram: torch.Tensor) -> float:
        seen.append(len(difference))
        return output_error(difference, gram)

    monkeypatch.setattr("awq2trt.quantization.search.output_error", counted)
    scales_of = partial(normalised_scales, statistics.magnitude())
    found = search_scales([weight], statistics.gram(), scales_of, scheme, ScaleOptions())
    assert seen[: len(FIRST_ALPHAS)] == len(FIRST_ALPHAS) * [len(weight) // 4]
    assert set(seen[len(FIRST_ALPHAS) :]) == {len(weight)}
    monkeypatch.setattr("awq2trt.quantization.search.ROUGH_SHARE", 1)
    on_all = search_scales([weight], statistics.gram(), scales_of, scheme, ScaleOptions())
    assert (found.alpha, found.loss) == (on_all.alpha, on_all.loss)  # every row is there four times


def test_dead_channels_keep_scale_one() -> None:
    magnitude = torch.tensor([0.0, 1.0, 4.0, 0.0])
    scales = normalised_scales(magnitude, 0.5)
    torch.testing.assert_close(scales, torch.tensor([1.0, 2**-0.5, 2**0.5, 1.0]))
    assert normalised_scales(torch.zeros(3), 0.5).tolist() == [1.0, 1.0, 1.0]


def test_activations_that_are_not_finite_are_refused_by_name() -> None:
    _, statistics = _salient_problem()
    gram = statistics.gram()
    gram[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match=r"layers\.7"):
        require_finite(gram, "model.layers.7.q")


def test_tied_heads_share_a_scale() -> None:
    group = ScaleGroup("v_proj", LINEAR, ("o_proj",), heads_tied=2)
    magnitude = torch.arange(8.0)  # 2 KV heads x 2 query heads x head_dim 2
    by_output = smooth_magnitude(magnitude, group, head_dim=2)
    assert by_output.tolist() == [1.0, 2.0, 5.0, 6.0]
    tied = spread_over_heads(by_output, group, head_dim=2)
    assert tied.tolist() == [1.0, 2.0, 1.0, 2.0, 5.0, 6.0, 5.0, 6.0]
    assert smooth_scales(group, tied, head_dim=2).tolist() == by_output.tolist()
    with pytest.raises(ValueError, match="tied"):
        smooth_scales(group, magnitude, head_dim=2)


@pytest.mark.parametrize("bias", [False, True])
def test_folding_alone_does_not_move_the_logits(bias: bool, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path, attention_bias=bias, mlp_bias=bias))
    spec, ids = source.spec, tokens(2, 40)
    runner, ends = BlockRunner.for_positions(spec, 40), Ends(source)
    before = after = ends.embed(ids)
    generator = torch.Generator().manual_seed(8)
    with torch.inference_mode():
        for layer in range(spec.num_layers):
            weights = load_block(source, layer)
            before = runner.run(weights, before, layer=layer)
            folded = dict(weights)
            for group in spec.scale_groups():
                channels = spec.linear_shape(group.balance_layers[0])[1]
                by_output = torch.rand(channels // group.heads_tied, generator=generator) * 3 + 0.2
                fold_scales_(folded, group, spread_over_heads(by_output, group, spec.head_dim), spec.head_dim)
            assert all(not torch.equal(folded[f"{n}.weight"], weights[f"{n}.weight"]) for n in spec.block.linears)
            after = runner.run(folded, after, layer=layer)
        expected, got = ends.logits(before).double(), ends.logits(after).double()
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("effort", EFFORTS)
def test_awq_lowers_the_error_of_every_linear_of_a_block(effort: str, tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    spec = source.spec
    runner = BlockRunner.for_positions(spec, 64)
    with torch.inference_mode():
        weights = load_block(source, 0)
        _, statistics = collect_statistics(runner, 0, weights, Ends(source).embed(tokens(8, 64)))
        method = BlockMethod(QuantScheme(group_size=32), EFFORTS[effort])
        block = quantize_block(spec, 0, weights, statistics, method)
    assert set(block.linears) == set(spec.block.linears)
    assert set(block.norms) == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    for name, report in block.reports.items():
        assert report.error is not None
        assert report.error_rounded is not None
        assert report.error < report.error_rounded * 1.05, name
    assert sum(r.error or 0 for r in block.reports.values()) < sum(r.error_rounded or 0 for r in block.reports.values())


def _depending(spec: DecoderSpec, samples: int, seed: int, fall: float) -> dict[str, torch.Tensor]:
    """Inputs of every group, [samples, K], whose channels depend on each other in the same way for every seed.

    The energy of directions falls by `fall` orders of magnitude.
    """
    found = {}
    for index, group in enumerate(spec.scale_groups()):
        name = group.balance_layers[0]
        width = spec.linear_shape(name)[1]
        mixing = _normal(width, width, seed=100 + index) * torch.logspace(0, -fall / 2, width).unsqueeze(1)
        found[name] = _normal(samples, width, seed=seed + index) @ mixing
    return found


def _block_of(source: SafetensorsSource, inputs: Mapping[str, torch.Tensor], **changes: Any) -> QuantizedBlock:
    """The first block by the descents of `best`, with some options changed."""
    statistics = {name: InputStatistics.empty(x.shape[1]) for name, x in inputs.items()}
    for name, seen in statistics.items():
        seen.add_(inputs[name])
    search = replace(EFFORTS["best"], correct=None, score_passes=0, **changes)
    method = BlockMethod(QuantScheme(bits=3, group_size=32), search)
    with torch.inference_mode():
        return quantize_block(source.spec, 0, load_block(source, 0), statistics, method)


def test_damped_codes_err_less_on_inputs_that_were_not_seen(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    few, others = _depending(source.spec, 100, seed=0, fall=1.0), _depending(source.spec, 5000, seed=50, fall=1.0)

    def error_on_others(damping: float) -> float:
        block, total = _block_of(source, few, damping=damping), 0.0
        for name in ("q_proj", "k_proj"):
            full = f"self_attn.{name}"
            rounded = torch.from_numpy(block.linears[full].dequantize()) / block.search["self_attn.q_proj.scales"]
            change = rounded - load_block(source, 0)[f"{full}.weight"]
            total += float((others["self_attn.q_proj"] @ change.T).square().sum())
        return total

    assert error_on_others(0.3) < 0.97 * error_on_others(0.01)


def test_codes_that_begin_as_gptqs_err_less_than_those_that_begin_as_the_nearest(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    inputs = _depending(source.spec, 2000, seed=0, fall=4.0)

    def errors(width: int) -> dict[str, float]:
        block = _block_of(source, inputs, compensated_width=width, damping=0.01)
        return {name: report.error or 0 for name, report in block.reports.items()}

    nearest, begun = errors(0), errors(ANY_WIDTH)
    assert sum(begun.values()) < 0.98 * sum(nearest.values())
    # Only linears whose input is not wider than said.
    narrow = source.spec.linear_shape("mlp.up_proj")[1]
    assert source.spec.linear_shape("mlp.down_proj")[1] > narrow
    assert errors(narrow) == {**begun, "mlp.down_proj": nearest["mlp.down_proj"]}


def test_scales_of_activations_and_weights_are_llm_awqs_two_forms() -> None:
    magnitude, weights = torch.tensor([0.5, 2.0, 8.0]), torch.tensor([0.1, 0.4, 0.2])
    plain = magnitude**0.3
    both = magnitude**0.3 / weights**0.7
    torch.testing.assert_close(normalised_scales(magnitude, 0.3), plain / (plain.max() * plain.min()).sqrt())
    torch.testing.assert_close(
        normalised_scales(magnitude, 0.3, 1.0, weights=weights), both / (both.max() * both.min()).sqrt()
    )


def test_weight_magnitude_is_relative_to_the_group() -> None:
    weight = torch.zeros(2, 64)
    weight[:, 3], weight[:, 40] = torch.tensor([2.0, -4.0]), torch.tensor([1.0, 0.5])
    weight[0, 5], weight[1, 41] = -1.0, 1.0
    magnitude = weight_magnitude(weight, QuantScheme(group_size=32))
    assert magnitude[[3, 5, 40, 41, 0]].tolist() == [1.0, 0.25, 0.75, 0.5, 0.0]


def test_large_columns_of_weights_call_for_beta() -> None:
    weight, statistics = _salient_problem()
    weight[:, 40:50] *= 6  # columns that widen their groups: dividing them helps the others
    scheme, gram = QuantScheme(bits=3, group_size=32), statistics.gram()
    scales_of = partial(normalised_scales, statistics.magnitude(), weights=weight_magnitude(weight, scheme))
    one = search_scales([weight], gram, scales_of, scheme, ScaleOptions())
    three = search_scales([weight], gram, scales_of, scheme, ScaleOptions(betas=(0.0, 0.5, 1.0)))
    assert one.beta == 0 < three.beta
    assert three.loss < one.loss
    found = scales_of(three.alpha, three.beta)
    torch.testing.assert_close(three.scales, found)


def test_rows_stand_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq2trt.quantization.search.LEAST_ROWS", 4)
    weight, statistics = _salient_problem()
    weight = torch.cat((weight, 3 * weight, -weight))
    scales_of, scheme = partial(normalised_scales, statistics.magnitude()), QuantScheme(group_size=64)
    some = search_scales([weight], statistics.gram(), scales_of, scheme, ScaleOptions(weights=10 * 64))
    every_fifth = search_scales([weight[::5]], statistics.gram(), scales_of, scheme, ScaleOptions(weights=None))
    assert (some.alpha, some.loss) == (every_fifth.alpha, every_fifth.loss)
    fewest = search_scales([weight], statistics.gram(), scales_of, scheme, ScaleOptions(weights=1))
    every_twelfth = search_scales([weight[::12]], statistics.gram(), scales_of, scheme, ScaleOptions(weights=None))
    assert (fewest.alpha, fewest.loss) == (every_twelfth.alpha, every_twelfth.loss)


def _statistics(x: torch.Tensor) -> InputStatistics:
    found = InputStatistics.empty(x.shape[1])
    found.add_(x)
    return found


SEARCHES = [{}, {"effort": "fast"}, {"effort": "best"}, {"method": "gptq"}, {"method": "awq+gptq"}]


@pytest.mark.parametrize("changes", SEARCHES)
def test_linears_alone_err_less_on_what_they_read(changes: dict[str, Any]) -> None:
    x, method = _normal(400, 96, seed=1) + 2 * _normal(96, seed=2), method_of(QuantizeOptions(group_size=32, **changes))
    weights = {"a": _normal(40, 96, seed=3), "b": _normal(24, 96, seed=4)}
    bias = _normal(40, seed=5)
    biases: dict[str, torch.Tensor | None] = {"a": bias, "b": None}
    found = {each.name: each for each in quantize_alone(weights, biases, _statistics(x), method)}
    assert list(found) == ["a", "b"]
    for name, each in found.items():
        rounded = torch.as_tensor(each.linear.dequantize())
        errors = [
            float(torch.linalg.norm(x @ (value - weights[name]).T) / torch.linalg.norm(x @ weights[name].T))
            for value in (rounded, fake_quantize(weights[name], method.scheme))
        ]
        assert errors[0] < 0.9 * errors[1]
        assert (each.report.error, each.report.error_rounded) == pytest.approx(errors, rel=0.02)
        assert each.report.alpha is None
        assert each.magnitude is not None
        torch.testing.assert_close(each.magnitude, x.abs().mean(dim=0))
    assert found["b"].linear.bias is None
    np.testing.assert_array_equal(found["a"].linear.bias, bias.half().numpy())


def test_linears_alone_are_rounded_without_statistics() -> None:
    weight, method = _normal(24, 96), method_of(QuantizeOptions(group_size=32, method="rtn"))
    (found,) = quantize_alone({"a": weight}, {"a": None}, None, method)
    assert found.magnitude is None
    assert found.report.error is None
    np.testing.assert_array_equal(found.linear.dequantize(), fake_quantize(weight, method.scheme).numpy())


@pytest.mark.parametrize("changes", SEARCHES)
def test_channels_that_were_still_in_few_rows_are_not_given_errors(changes: dict[str, Any]) -> None:
    """A picture shows few rows, on which some channels hardly move; on others they do as the rest."""
    method = method_of(QuantizeOptions(group_size=32, **changes))
    weight, few, many = _normal(40, 96, seed=3), _normal(16, 96, seed=1), _normal(400, 96, seed=2)
    few[:, ::3] *= 1e-3
    (found,) = quantize_alone({"a": weight}, {"a": None}, _statistics(few), method)
    errors = [
        float(torch.linalg.norm(many @ (value - weight).T))
        for value in (torch.as_tensor(found.linear.dequantize()), fake_quantize(weight, method.scheme))
    ]
    assert errors[0] < (1.15 if method.search else 1.6) * errors[1]  # GPTQ's own damping is less
