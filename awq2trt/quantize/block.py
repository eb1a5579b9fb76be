"""One decoder block quantized: statistics and fp32 weights in, codes and folded norms out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from awq2trt.decoder import BlockRunner
from awq2trt.families import DecoderSpec, ScaleGroup
from awq2trt.quantize.fold import fold_scales_
from awq2trt.quantize.rounding import WHOLE_RANGE, fake_quantize, quantize
from awq2trt.quantize.search import (
    InputStatistics,
    output_error,
    search_clips,
    search_scales,
    smooth_magnitude,
    spread_over_heads,
)
from awq2trt.scheme import QuantizedLinear, QuantScheme

Statistics = Mapping[str, InputStatistics]
"""Input statistics by the first balance layer of each scale group."""


@dataclass(frozen=True)
class LinearReport:
    """What the search did to one linear.

    Attributes:
        alpha: Exponent of its group's scales; None for plain rounding.
        clipped_share: Share of its rounding groups whose range was shrunk.
        error_rounded: Relative output error of plain rounding, || dW X || / || W X ||; None without statistics.
        error: The same after the search.
    """

    alpha: float | None = None
    clipped_share: float = 0.0
    error_rounded: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class QuantizedBlock:
    """A finished block.

    Attributes:
        linears: By name relative to the block.
        norms: Norm weights and other plain tensors, fp32, by name relative to the block.
        reports: By linear.
        search: fp32 [K], by name relative to the block: what the search saw and found of every input that linears
            share, named after the first of them: `<linear>.magnitude`, the mean |x| of its channels as the original
            model has them, and `<linear>.scales`, s. Folding can be repeated from these.
    """

    linears: dict[str, QuantizedLinear]
    norms: dict[str, Tensor]
    reports: dict[str, LinearReport]
    search: dict[str, Tensor] = field(default_factory=dict)


def collect_statistics(runner: BlockRunner, weights: Mapping[str, Tensor], hidden: Tensor) -> tuple[Tensor, Statistics]:
    """Runs a block over the calibration sequences, one at a time.

    Args:
        runner: Of the model.
        weights: The block's fp32 tensors.
        hidden: Its inputs, fp32 [samples, seqlen, hidden_size].

    Returns:
        Its outputs, same shape, and the statistics of every group's input.
    """
    statistics = {
        group.balance_layers[0]: InputStatistics.empty(runner.spec.linear_shape(group.balance_layers[0])[1])
        for group in runner.spec.scale_groups()
    }

    def observe(name: str, x: Tensor) -> None:
        statistics[name].add_(x)

    outputs = [runner.run(weights, sequence, observe=observe) for sequence in hidden.split(1)]
    return torch.cat(outputs), statistics


def round_block(spec: DecoderSpec, weights: Mapping[str, Tensor], scheme: QuantScheme, *, where: str) -> QuantizedBlock:
    """Round-to-nearest: no statistics, no scales, no clips (the paper's RTN baseline)."""
    linears = {
        name: quantize(weights[f"{name}.weight"], scheme, bias=weights.get(f"{name}.bias"), where=where + name)
        for name in spec.block.linears
    }
    return QuantizedBlock(linears, _plain(spec, weights), {name: LinearReport() for name in linears})


def awq_block(
    spec: DecoderSpec, weights: Mapping[str, Tensor], statistics: Statistics, scheme: QuantScheme, *, where: str
) -> QuantizedBlock:
    """AWQ: scales by group, folded; then clips by linear; then rounding.

    Args:
        spec: The model.
        weights: The block's fp32 tensors; not changed.
        statistics: As `collect_statistics` returns.
        scheme: How to round.
        where: The block's name prefix, for errors.
    """
    folded = dict(weights)
    linears: dict[str, QuantizedLinear] = {}
    reports: dict[str, LinearReport] = {}
    scaled = [_scale_group_(spec, folded, group, statistics, scheme, where) for group in spec.scale_groups()]
    # Clips and codes come last: a fold changes the output rows of v_proj and up_proj after their own search.
    for inputs in scaled:
        for name in inputs.group.balance_layers:
            weight = folded[f"{name}.weight"]
            clips = None if name in spec.unclipped() else search_clips(weight, inputs.gram, scheme)
            shares = clips.shares if clips else WHOLE_RANGE
            linears[name] = quantize(weight, scheme, shares=shares, bias=folded.get(f"{name}.bias"), where=where + name)
            rounded = fake_quantize(weights[f"{name}.weight"], scheme)
            reports[name] = LinearReport(
                alpha=inputs.alpha,
                clipped_share=clips.clipped_share if clips else 0.0,
                error_rounded=_relative_error(rounded, weights[f"{name}.weight"], inputs.unscaled_gram),
                error=_relative_error(torch.from_numpy(linears[name].dequantize()), weight, inputs.gram),
            )
    search = {
        f"{inputs.group.balance_layers[0]}.{kind}": value
        for inputs in scaled
        for kind, value in (("magnitude", inputs.magnitude), ("scales", inputs.scales))
    }
    return QuantizedBlock(linears, _plain(spec, folded), reports, search)


@dataclass(frozen=True)
class _ScaledInput:
    """A group after its scale search: mean |x| and E[x x^T] of its input as it was, and the latter divided by s."""

    group: ScaleGroup
    alpha: float
    scales: Tensor
    magnitude: Tensor
    unscaled_gram: Tensor
    gram: Tensor


def _scale_group_(
    spec: DecoderSpec,
    weights: dict[str, Tensor],
    group: ScaleGroup,
    statistics: Statistics,
    scheme: QuantScheme,
    where: str,
) -> _ScaledInput:
    """Searches a group's scales and folds them into `weights`."""
    seen = statistics[group.balance_layers[0]]
    gram = seen.gram()
    found = search_scales(
        [weights[f"{name}.weight"] for name in group.balance_layers],
        gram,
        smooth_magnitude(seen.magnitude(), group, spec.head_dim),
        scheme,
        spread=partial(spread_over_heads, group=group, head_dim=spec.head_dim),
        where=where + group.balance_layers[0],
    )
    fold_scales_(weights, group, found.scales, spec.head_dim)
    scaled_gram = gram / torch.outer(found.scales, found.scales)
    return _ScaledInput(group, found.alpha, found.scales, seen.magnitude(), gram, scaled_gram)


def _relative_error(rounded: Tensor, weight: Tensor, gram: Tensor) -> float:
    """|| (W' - W) x || / || W x ||, root mean square over inputs."""
    reference = output_error(weight, gram)
    return math.sqrt(output_error(rounded - weight, gram) / reference) if reference > 0 else 0.0


def _plain(spec: DecoderSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block that belong to no linear."""
    owned = {f"{name}.{kind}" for name in spec.block.linears for kind in ("weight", "bias")}
    return {name: value for name, value in weights.items() if name not in owned}
