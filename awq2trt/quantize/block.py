"""One decoder block quantized: statistics and fp32 weights in, codes and folded norms out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from awq2trt.decoder import BlockRunner
from awq2trt.families import DecoderSpec
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
    """

    linears: dict[str, QuantizedLinear]
    norms: dict[str, Tensor]
    reports: dict[str, LinearReport]


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
    searched: dict[str, tuple[float, Tensor]] = {}  # linear -> alpha, Gram matrix of its scaled input
    statistics_of = {name: statistics[g.balance_layers[0]] for g in spec.scale_groups() for name in g.balance_layers}
    for group in spec.scale_groups():
        seen = statistics[group.balance_layers[0]]
        found = search_scales(
            [folded[f"{name}.weight"] for name in group.balance_layers],
            seen.gram(),
            smooth_magnitude(seen.magnitude(), group, spec.head_dim),
            scheme,
            spread=partial(spread_over_heads, group=group, head_dim=spec.head_dim),
            where=where + group.balance_layers[0],
        )
        fold_scales_(folded, group, found.scales, spec.head_dim)
        scaled_gram = seen.gram() / torch.outer(found.scales, found.scales)
        searched.update(dict.fromkeys(group.balance_layers, (found.alpha, scaled_gram)))
    # Clips and codes come last: a fold changes the output rows of v_proj and up_proj after their own search.
    for name in spec.block.linears:
        alpha, gram = searched[name]
        weight = folded[f"{name}.weight"]
        clips = None if name in spec.unclipped() else search_clips(weight, gram, scheme)
        linears[name] = quantize(
            weight,
            scheme,
            shares=clips.shares if clips else WHOLE_RANGE,
            bias=folded.get(f"{name}.bias"),
            where=where + name,
        )
        reports[name] = LinearReport(
            alpha=alpha,
            clipped_share=clips.clipped_share if clips else 0.0,
            error_rounded=_relative_error(weights[f"{name}.weight"], None, statistics_of[name].gram(), scheme),
            error=_relative_error(weight, linears[name], gram, scheme),
        )
    return QuantizedBlock(linears, _plain(spec, folded), reports)


def _relative_error(weight: Tensor, linear: QuantizedLinear | None, gram: Tensor, scheme: QuantScheme) -> float:
    """|| (W' - W) x || / || W x || with W' = `linear`, or plain rounding of W."""
    rounded = fake_quantize(weight, scheme) if linear is None else torch.from_numpy(linear.dequantize())
    reference = output_error(weight, gram)
    return math.sqrt(output_error(rounded - weight, gram) / reference) if reference > 0 else 0.0


def _plain(spec: DecoderSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block that belong to no linear."""
    owned = {f"{name}.{kind}" for name in spec.block.linears for kind in ("weight", "bias")}
    return {name: value for name, value in weights.items() if name not in owned}
