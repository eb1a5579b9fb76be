"""One decoder block quantized: statistics and fp32 weights in, codes and folded norms out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.methods import METHODS
from awq2trt.models.decoder import BlockRunner, Observer
from awq2trt.models.families import UNFOLDED, DecoderSpec, ScaleGroup
from awq2trt.quantization.beginning import Beginning
from awq2trt.quantization.descent import descend
from awq2trt.quantization.effort import EFFORTS, SearchOptions
from awq2trt.quantization.fold import fold_scales_
from awq2trt.quantization.gptq import GptqOptions, gptq_round
from awq2trt.quantization.grids import cut_share, search_grids
from awq2trt.quantization.learning import LearnOptions, Lesson, learn_codes
from awq2trt.quantization.products import narrowed, output_error
from awq2trt.quantization.rounding import GroupGrid, Rounded, fake_quantize, group_grid, round_to_grid, to_groups
from awq2trt.quantization.scores import score_moments
from awq2trt.quantization.search import (
    ScaleOptions,
    ScaleResult,
    normalised_scales,
    search_scales,
    smooth_magnitude,
    spread_over_heads,
    weight_magnitude,
)
from awq2trt.quantization.statistics import InputStatistics
from awq2trt.quantization.tuning import TuneOptions
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantizedLinear, QuantScheme

CPU: Final = torch.device("cpu")

REPORT_ROWS: Final = 512
"""Rows that a linear's errors are measured on; all of a large one would take as long as their search."""

Statistics = Mapping[str, InputStatistics]
"""Input statistics by the first balance layer of each scale group."""


@dataclass(frozen=True)
class LinearReport:
    """What the search did to one linear.

    Attributes:
        alpha: Exponent of its group's scales; None without a search, and where no layer before absorbs scales.
        beta: How much its group's weights enter the scales, see `ScaleOptions`; None where alpha is.
        clipped_share: Share of its rounding groups whose range was shrunk.
        error_rounded: Relative output error of plain rounding, || dW X || / || W X ||, of at most `REPORT_ROWS` rows,
            evenly spaced; None without statistics.
        error: The same after the search. Where q and k are rounded for the scores (`SearchOptions.score_passes`), their
            own outputs' errors may be larger than they could be.
    """

    alpha: float | None = None
    clipped_share: float = 0.0
    error_rounded: float | None = None
    error: float | None = None
    beta: float | None = None


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


def collect_statistics(
    runner: BlockRunner, layer: int, weights: Mapping[str, Tensor], hidden: Tensor
) -> tuple[Tensor, Statistics]:
    """Runs a block over the calibration sequences, one at a time.

    Args:
        runner: Of the model.
        layer: Which block.
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

    return run_block(runner, layer, weights, hidden, observe=observe), statistics


def run_block(
    runner: BlockRunner, layer: int, weights: Mapping[str, Tensor], hidden: Tensor, *, observe: Observer | None = None
) -> Tensor:
    """A block's outputs for fp32 [samples, seqlen, hidden_size]; one sequence at a time keeps activations small."""
    return torch.cat([runner.run(weights, sequence, layer=layer, observe=observe) for sequence in hidden.split(1)])


@dataclass(frozen=True)
class BlockMethod:
    """How a block is quantized. Neither scales nor GPTQ is round-to-nearest, the paper's RTN baseline.

    Attributes:
        scheme: Bits, groups, zero points.
        search: Search scales and fold them, then search grids; None for neither.
        gptq: How GPTQ rounds; None for rounding to nearest.
        tune: How step sizes of the whole model are tuned after the last block; None for not.
    """

    scheme: QuantScheme
    search: SearchOptions | None = None
    gptq: GptqOptions | None = None
    tune: TuneOptions | None = None

    @property
    def uses_text(self) -> bool:
        """Whether it needs input statistics."""
        return self.search is not None or self.gptq is not None

    @property
    def sequential(self) -> bool:
        """Whether a block's inputs are those that the quantized blocks before it give (the reference GPTQ's order)."""
        return self.gptq is not None or (self.search is not None and self.search.sequential)

    @property
    def learn(self) -> LearnOptions | None:
        """How a block learns from the original one's outputs on the original inputs; None for not."""
        return self.search.learn if self.search is not None else None


@dataclass(frozen=True)
class Guide:
    """What a block is told beside its statistics.

    Attributes:
        lesson: What it learns from; None for a method that does not learn.
        start: Where to begin instead of a search; the weights are those that it scaled already.
    """

    lesson: Lesson | None = None
    start: Beginning | None = None


UNGUIDED: Final = Guide()


def method_of(options: QuantizeOptions) -> BlockMethod:
    """The method that a user's options ask for.

    Raises:
        UsageError: Step sizes are to be tuned, but the method uses no text.
    """
    method = METHODS[options.method]
    if options.tune and not method.uses_text:
        raise UsageError(
            f"--method {options.method} uses no calibration text to tune step sizes on.",
            where="--tune",
            fix="another method, or without --tune.",
        )
    return BlockMethod(
        options.scheme,
        search=EFFORTS[options.effort] if method.searches_scales else None,
        gptq=GptqOptions(act_order=options.act_order) if method.rounds_columns else None,
        tune=TuneOptions.for_scheme(options.scheme) if options.tune else None,
    )


def require_refining(method: BlockMethod, options: QuantizeOptions) -> None:
    """Refuses a method that has nothing to do where codes and grids are given.

    Raises:
        UsageError: It searches scales and grids only, or rounds by GPTQ.
    """
    if method.gptq or method.search is None or method.search.keeps_nearest:
        efforts = " or ".join(f"--effort {name}" for name, search in EFFORTS.items() if not search.keeps_nearest)
        effort = f" --effort {options.effort}" if method.search else ""
        raise UsageError(
            f"--method {options.method}{effort} does not go on from the codes of another checkpoint.",
            where=f"--init-from {options.init_from}",
            fix=f"--method awq with {efforts}.",
        )


def quantize_block(
    spec: DecoderSpec,
    layer: int,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    method: BlockMethod,
    guide: Guide = UNGUIDED,
) -> QuantizedBlock:
    """Scales by group, folded; then clips by linear; then rounding; then learning; each if the method asks for it.

    Args:
        spec: The model.
        layer: Which block.
        weights: The block's fp32 tensors; not changed.
        statistics: As `collect_statistics` returns; empty for a method that uses no text.
        method: What to do.
        guide: Where to begin, and what to learn from.
    """
    where, searched = spec.prefix(layer), method.search is not None and guide.start is None
    folded, inputs = _fold_searched(
        spec, weights, statistics, method if searched else replace(method, search=None), where
    )
    if guide.start is not None:
        inputs = _scaled_before(spec, inputs, guide.start.scales)
    moments = _score_moments(spec, layer, folded, inputs, method)
    rounded: dict[str, Rounded] = {}
    # Grids and codes come last: a fold changes the output rows of v_proj and up_proj after their own search.
    for name in spec.block.linears:
        weight, seen = folded[f"{name}.weight"], inputs.get(name)
        if guide.start is None:
            grid = _searched_grid(spec, name, weight, seen, method) if seen else None
            rounded[name] = _round(weight, seen, grid, method, where + name)
        else:
            rounded[name] = guide.start.rounded[name]
        if seen and method.search:
            rounded[name] = _descended(weight, rounded[name], seen, method, moments.get(name))
    if guide.lesson is not None and method.learn is not None:
        rounded = learn_codes(folded, rounded, guide.lesson, method.scheme, method.learn).rounded
    linears: dict[str, QuantizedLinear] = {}
    reports: dict[str, LinearReport] = {}
    for name, found in rounded.items():
        linears[name] = found.to_linear(method.scheme, bias=folded.get(f"{name}.bias"), where=where + name)
        reports[name] = LinearReport()
        if name in inputs:
            original, folded_weight = weights[f"{name}.weight"], folded[f"{name}.weight"]
            reports[name] = _report(original, folded_weight, found, inputs[name], method)
    search = {
        f"{group.balance_layers[0]}.{kind}": value
        for group in (spec.scale_groups() if method.search else ())
        for kind, value in inputs[group.balance_layers[0]].search().items()
    }
    return QuantizedBlock(linears, plain_tensors(spec, folded), reports, search)


def dequantized(linears: Mapping[str, QuantizedLinear], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A quantized block's tensors, fp32, as `BlockRunner` takes them, of its linears and whatever else it has."""
    tensors = dict(plain)
    for name, linear in linears.items():
        tensors[f"{name}.weight"] = torch.as_tensor(linear.dequantize())
        if linear.bias is not None:
            tensors[f"{name}.bias"] = torch.as_tensor(linear.bias).float()
    return tensors


@dataclass(frozen=True)
class _LinearInput:
    """Mean |x| and E[x x^T] of a linear's input as it was, s, E[x] and E[x x^T] as they are after folding, over s."""

    alpha: float | None
    beta: float | None
    magnitude: Tensor
    scales: Tensor
    unscaled_gram: Tensor
    mean: Tensor
    gram: Tensor

    @classmethod
    def unscaled(cls, statistics: InputStatistics) -> _LinearInput:
        """Before, or without, a search."""
        gram, magnitude = statistics.gram(), statistics.magnitude()
        return cls(None, None, magnitude, torch.ones_like(magnitude), gram, statistics.mean(), gram)

    def scaled(self, found: ScaleResult) -> _LinearInput:
        """After scales were folded."""
        gram = self.unscaled_gram / torch.outer(found.scales, found.scales)
        mean = self.mean / found.scales
        return replace(self, alpha=found.alpha, beta=found.beta, scales=found.scales, mean=mean, gram=gram)

    def search(self) -> dict[str, Tensor]:
        """What `QuantizedBlock.search` keeps of it."""
        return {"magnitude": self.magnitude, "scales": self.scales}


def _fold_searched(
    spec: DecoderSpec, weights: Mapping[str, Tensor], statistics: Statistics, method: BlockMethod, where: str
) -> tuple[dict[str, Tensor], dict[str, _LinearInput]]:
    """The weights with the scales of every group folded in, if the method searches scales; every linear's input then.

    A group's search sees what the groups before it were folded into. No inputs where the method uses no text.
    """
    folded, inputs = dict(weights), dict[str, _LinearInput]()
    for group in spec.scale_groups() if statistics else ():
        seen = _LinearInput.unscaled(statistics[group.balance_layers[0]])
        if method.search and group.smooth_kind != UNFOLDED:
            found = _search_group(spec, folded, group, seen, method, where)
            fold_scales_(folded, group, found.scales, spec.head_dim)
            seen = seen.scaled(found)
        inputs.update(dict.fromkeys(group.balance_layers, seen))
    return folded, inputs


def _scaled_before(
    spec: DecoderSpec, inputs: Mapping[str, _LinearInput], scales: Mapping[str, Tensor]
) -> dict[str, _LinearInput]:
    """The inputs of linears that were scaled already, with the scales noted, and the magnitude that was before them."""
    noted = dict[str, _LinearInput]()
    for group in spec.scale_groups():
        seen, own = inputs[group.balance_layers[0]], scales[group.balance_layers[0]]
        seen = replace(seen, scales=own, magnitude=seen.magnitude * own)
        noted.update(dict.fromkeys(group.balance_layers, seen))
    return noted


def _searched_grid(
    spec: DecoderSpec, name: str, weight: Tensor, seen: _LinearInput, method: BlockMethod
) -> GroupGrid | None:
    """The grid that the search finds for a linear; None where the method leaves it at the whole range."""
    if method.search is None or (name in spec.unclipped() and not method.search.grids_of_scores):
        return None
    return search_grids(weight, seen.gram, method.scheme, method.search.grids)


def _score_moments(
    spec: DecoderSpec, layer: int, folded: Mapping[str, Tensor], inputs: Mapping[str, _LinearInput], method: BlockMethod
) -> dict[str, Tensor]:
    """How errors of rows of q and k weigh on each other, by linear; empty where the method does not look at scores."""
    if method.search is None or not method.search.score_passes or method.gptq:
        return {}
    seen = inputs[spec.block.q_proj]
    return score_moments(spec, layer, folded, seen.mean, seen.gram)


def _round(
    weight: Tensor,
    seen: _LinearInput | None,
    grid: GroupGrid | None,
    method: BlockMethod,
    where: str,
) -> Rounded:
    """Codes of one linear, on the grid found if there is one."""
    scheme, device = method.scheme, weight.device
    if seen and method.gptq:
        # One column after another is too little work at a time for anything but a CPU.
        weight, gram, grid = weight.cpu(), seen.gram.cpu(), grid.to(CPU) if grid else None
        return gptq_round(weight, gram, scheme, method.gptq, grid=grid, where=where).to(device)
    return round_to_grid(weight, grid or group_grid(to_groups(weight, scheme), scheme), scheme)


def _descended(
    weight: Tensor, rounded: Rounded, seen: _LinearInput, method: BlockMethod, moments: Tensor | None
) -> Rounded:
    """The codes of one linear after their descent; unchanged where the method has none, or rounds by GPTQ."""
    search, scheme, device = method.search, method.scheme, weight.device
    if search is None or method.gptq or not (search.code_passes or search.score_passes):
        return rounded
    weight, gram = weight.cpu(), seen.gram.cpu()
    rounded = descend(weight, rounded.to(CPU), gram, scheme, passes=search.code_passes)
    if moments is not None:
        rounded = descend(weight, rounded, gram, scheme, passes=search.score_passes, moments=moments.cpu())
    return rounded.to(device)


def _report(original: Tensor, folded: Tensor, found: Rounded, seen: _LinearInput, method: BlockMethod) -> LinearReport:
    """What became of one linear, its weight before and after folding given."""
    rows = slice(None, None, -(-len(original) // REPORT_ROWS))
    plain, rounded = fake_quantize(original[rows], method.scheme), found.dequantize(method.scheme)
    return LinearReport(
        alpha=seen.alpha,
        beta=seen.beta,
        clipped_share=cut_share(folded, found.grid, method.scheme) if method.search else 0.0,
        error_rounded=_relative_error(plain, original[rows], seen.unscaled_gram),
        error=_relative_error(rounded[rows], folded[rows], seen.gram),
    )


def _search_group(
    spec: DecoderSpec,
    weights: Mapping[str, Tensor],
    group: ScaleGroup,
    seen: _LinearInput,
    method: BlockMethod,
    where: str,
) -> ScaleResult:
    """Searches a group's scales."""
    balanced = [weights[f"{name}.weight"] for name in group.balance_layers]
    inputs = smooth_magnitude(seen.magnitude, group, spec.head_dim)
    of_weights = smooth_magnitude(weight_magnitude(torch.cat(balanced), method.scheme), group, spec.head_dim)

    def scales_of(alpha: float, beta: float) -> Tensor:
        scales = normalised_scales(inputs, alpha, beta, weights=of_weights)
        return spread_over_heads(scales, group, spec.head_dim)

    options = method.search.scales if method.search else ScaleOptions()
    return search_scales(balanced, seen.gram, scales_of, method.scheme, options, where=where + group.balance_layers[0])


def _relative_error(rounded: Tensor, weight: Tensor, gram: Tensor) -> float:
    """|| (W' - W) x || / || W x ||, root mean square over inputs."""
    gram = narrowed(gram)
    reference = output_error(weight, gram)
    return math.sqrt(output_error(rounded - weight, gram) / reference) if reference > 0 else 0.0


def plain_tensors(spec: DecoderSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block that belong to no quantized linear."""
    owned = {f"{name}.{kind}" for name in spec.block.linears for kind in ("weight", "bias")}
    return {name: value for name, value in weights.items() if name not in owned}
