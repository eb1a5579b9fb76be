"""Quantizes one decoder block: statistics and fp32 weights in, codes and folded norms out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from awq2trt.machine.device import CPU
from awq2trt.machine.ranks import ALONE, Ranks, Share
from awq2trt.models.decoder import BlockRunner, Observer
from awq2trt.models.families import UNFOLDED, DecoderSpec, ScaleGroup
from awq2trt.quantization.aims import Aims
from awq2trt.quantization.beginning import Beginning
from awq2trt.quantization.correction import Pursuit
from awq2trt.quantization.dealing import Rows, deal, dealt_unevenly
from awq2trt.quantization.descent import descend
from awq2trt.quantization.fold import fold_scales_
from awq2trt.quantization.gptq import gptq_round
from awq2trt.quantization.grids import cut_share, search_grids
from awq2trt.quantization.learning import Lesson, learn_codes
from awq2trt.quantization.linear_input import InputMoments, LinearInput, scaled_before
from awq2trt.quantization.method import BlockMethod
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
from awq2trt.quantization.statistics import InputStatistics, require_finite
from awq2trt.scheme import QuantizedLinear
from awq2trt.tracing import span

REPORT_ROWS: Final = 512
"""Rows on which a linear's errors are measured; all rows of a large one would take as long as its search."""

Statistics = Mapping[str, InputStatistics]
"""Input statistics by the first balance layer of each scale group."""


@dataclass(frozen=True)
class LinearReport:
    """What the search did to one linear.

    Attributes:
        alpha: Exponent of its group's scales; None without a search, or if no layer before it absorbs scales.
        beta: How much its group's weights enter the scales, see `ScaleOptions`; None if alpha is None.
        clipped_share: Share of its rounding groups whose range was narrowed.
        error_rounded: Relative output error of plain rounding, || dW X || / || W X ||, over at most `REPORT_ROWS` rows,
            evenly spaced; None without statistics.
        error: The same after the search. If q and k are rounded for the scores (`SearchOptions.score_passes`), the
            errors of their own outputs may be larger than necessary.
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
        linears: Quantized linears, by name relative to the block.
        norms: Norm weights and other plain tensors, fp32, by name relative to the block.
        reports: Reports by linear.
        search: fp32 [K], by name relative to the block: what the search saw and found for every input that linears
            share, named after the first of them: `<linear>.magnitude`, the mean |x| of its channels as the original
                model has them, and `<linear>.scales`, s. With these, folding can be repeated.
    """

    linears: dict[str, QuantizedLinear]
    norms: dict[str, Tensor]
    reports: dict[str, LinearReport]
    search: dict[str, Tensor] = field(default_factory=dict)


def collect_statistics(
    runner: BlockRunner, layer: int, weights: Mapping[str, Tensor], hidden: Tensor, ranks: Ranks = ALONE
) -> tuple[Tensor, Statistics]:
    """Runs a block over the calibration sequences, one at a time.

    Args:
        runner: Runner of the model's blocks.
        layer: The block's number.
        weights: The block's tensors; products of statistics on a CPU have factors of the type of its linears.
        hidden: Its inputs, fp32 [samples, seqlen, hidden_size]; this rank's share of them.
        ranks: The ranks that share the sequences.

    Returns:
        The block's outputs, of the same shape, and the statistics of every group's input over all ranks.
    """
    factors = weights[f"{runner.spec.block.q_proj}.weight"].dtype
    statistics = {
        group.balance_layers[0]: InputStatistics.empty(runner.spec.linear_shape(group.balance_layers[0])[1], factors)
        for group in runner.spec.scale_groups()
    }

    def observe(name: str, x: Tensor) -> None:
        statistics[name].add_(x)

    outputs = run_block(runner, layer, weights, hidden, observe=observe)
    for seen in statistics.values():
        seen.add_other_ranks_(ranks)
    return outputs, statistics


def run_block(
    runner: BlockRunner, layer: int, weights: Mapping[str, Tensor], hidden: Tensor, *, observe: Observer | None = None
) -> Tensor:
    """Returns a block's outputs for fp32 [samples, seqlen, hidden_size]; runs one sequence at a time to save memory."""
    if not len(hidden):  # a rank may have no window
        return hidden
    return torch.cat(
        [
            runner.run(weights, sequence, layer=layer, observe=observe, windows=slice(index, index + 1))
            for index, sequence in enumerate(hidden.split(1))
        ]
    )


@dataclass(frozen=True)
class Guide:
    """What a block is given in addition to its statistics.

    Attributes:
        lesson: The data that it learns from; None for a method that does not learn.
        start: The codes and grids to begin with instead of a search; then the weights are already scaled.
        pursuit: What its weights are corrected by; None for a method that does not correct them.
    """

    lesson: Lesson | None = None
    start: Beginning | None = None
    pursuit: Pursuit | None = None


UNGUIDED: Final = Guide()


def _found_scales(spec: DecoderSpec, inputs: Mapping[str, LinearInput]) -> dict[str, Tensor]:
    """What the search saw and found, under the names that `QuantizedBlock.search` has."""
    return {
        f"{group.balance_layers[0]}.{kind}": value
        for group in spec.scale_groups()
        for kind, value in inputs[group.balance_layers[0]].search().items()
    }


def quantize_block(
    spec: DecoderSpec,
    layer: int,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
    method: BlockMethod,
    guide: Guide = UNGUIDED,
) -> QuantizedBlock:
    """Searches and folds scales, then corrects, clips and rounds each linear, then learns; steps may be left out.

    Args:
        spec: The model.
        layer: The block's number.
        weights: The block's fp32 tensors; not changed.
        statistics: The result of `collect_statistics`; empty for a method that uses no text.
        method: How to quantize.
        guide: Where to begin, and what to learn from.
    """
    where, searched = spec.prefix(layer), method.search is not None and guide.start is None
    folded, inputs = _fold_searched(
        spec, weights, statistics, method if searched else replace(method, search=None), where
    )
    if guide.start is not None:
        inputs = scaled_before(spec, inputs, guide.start.scales)
    moments = _score_moments(spec, layer, folded, inputs, method)
    aims = Aims(spec, where, method, guide.pursuit, folded, dict(folded), dict(inputs))
    rounded: dict[str, Rounded] = {}
    linears: dict[str, QuantizedLinear] = {}
    reports: dict[str, LinearReport] = {}

    def finish(name: str, found: Rounded) -> None:
        linears[name] = found.to_linear(method.scheme, bias=folded.get(f"{name}.bias"), where=where + name)
        reports[name] = LinearReport()
        if name in inputs:
            original, aim = weights[f"{name}.weight"], aims.weight(name)
            with span("report", linear=where + name):
                reports[name] = _report(original, aim, found, inputs[name], method)

    # Grids and codes come last, because a later fold changes the output rows of v_proj and up_proj.
    for name, found in _quantized_in_turn(spec, aims, moments, guide):
        if guide.lesson is not None and method.learn is not None:
            rounded[name] = found
        else:
            finish(name, found)  # packed at once, since bytes take a quarter of the memory of codes in fp32
        aims.finish_(name, found)
    if guide.lesson is not None and method.learn is not None:
        with span("learn", block=layer):
            rounded = learn_codes(aims.tensors, rounded, guide.lesson, method.scheme, method.learn).rounded
        for name, found in rounded.items():
            finish(name, found)
    search = _found_scales(spec, inputs) if method.search else {}
    return QuantizedBlock(linears, plain_tensors(spec, folded), reports, search)


@dataclass(frozen=True)
class LoneLinear:
    """A quantized linear that belongs to no block.

    Attributes:
        name: Its full name.
        linear: Its codes.
        report: What they cost.
        magnitude: Mean |x| of its input channels, fp32 [K]; None for a method that uses no text.
    """

    name: str
    linear: QuantizedLinear
    report: LinearReport
    magnitude: Tensor | None


def quantize_alone(
    weights: Mapping[str, Tensor],
    biases: Mapping[str, Tensor | None],
    statistics: InputStatistics | None,
    method: BlockMethod,
) -> Iterator[LoneLinear]:
    """Rounds linears that share an input and belong to no block; nothing before them absorbs scales, so none is scaled.

    Args:
        weights: fp32 [N, K], by the linear's full name.
        biases: fp32 [N], by the same names; None where a linear has none.
        statistics: Those of their input; None for a method that uses no text.
        method: How to quantize; of its steps, grids are searched and codes chosen. What was seen of the input may be
            little (`InputMoments`).
    """
    seen = None if statistics is None else LinearInput.unscaled(statistics)
    moments_of, clipped = InputMoments(method, alone=True), method.search is not None
    for name, weight in weights.items():
        rows = {name: _Rows(name, weight, seen, None, None, clipped)}
        for _, found in _quantized_by_ranks(rows, moments_of, method):
            report = LinearReport() if seen is None else _report(weight, weight, found, seen, method)
            linear = found.to_linear(method.scheme, bias=biases[name], where=name)
            yield LoneLinear(name, linear, report, None if seen is None else seen.magnitude)


REHEARSED_ROWS: Final = 64
REHEARSED_GROUPS: Final = 16
"""Rows and groups of the linear that is rehearsed: so many that kernels are compiled for what divides them as it does
those of larger linears, and for groups that are the first, the second and any other."""


@torch.no_grad()
def rehearse(method: BlockMethod) -> None:
    """Searches and rounds a small linear in vain: then kernels are compiled, and libraries loaded, for all others."""
    if not method.uses_text:
        return
    columns = REHEARSED_GROUPS * method.scheme.group_of(1 << 7)
    drawn = torch.randn(2, REHEARSED_ROWS, columns, generator=torch.Generator(CPU).manual_seed(0), device=CPU)
    weight, x = drawn.to(torch.get_default_device())
    statistics = InputStatistics.empty(columns)
    statistics.add_(x)
    seen, moments_of = LinearInput.unscaled(statistics), InputMoments(method)
    moments_of.turn_to(seen, "a rehearsal")
    _quantized_piece(_Rows("a rehearsal", weight, seen, None, None, clipped=True), moments_of, method)


def dequantized(linears: Mapping[str, QuantizedLinear], plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A quantized block's tensors in fp32, as `BlockRunner` takes them: those of its linears and all others."""
    tensors = dict(plain)
    for name, linear in linears.items():
        tensors[f"{name}.weight"] = Rounded.of(linear).dequantize(linear.scheme)  # where PyTorch computes
        if linear.bias is not None:
            tensors[f"{name}.bias"] = torch.as_tensor(linear.bias).float()
    return tensors


def _fold_searched(
    spec: DecoderSpec, weights: Mapping[str, Tensor], statistics: Statistics, method: BlockMethod, where: str
) -> tuple[dict[str, Tensor], dict[str, LinearInput]]:
    """Searches and folds the scales of all groups, if the method searches any; also returns every linear's input.

    A group's search sees the results of folding the groups before it. There are no inputs if the method uses no text.
    """
    folded, inputs = dict(weights), dict[str, LinearInput]()
    for group in spec.scale_groups() if statistics else ():
        seen = LinearInput.unscaled(statistics[group.balance_layers[0]])
        if method.search and group.smooth_kind != UNFOLDED:
            with span("search scales", linear=where + group.balance_layers[0]):
                found = _search_group(spec, folded, group, seen, method, where)
            fold_scales_(folded, group, found.scales, spec.head_dim)
            seen = seen.scaled(found)
        inputs.update(dict.fromkeys(group.balance_layers, seen))
    return folded, inputs


@dataclass(frozen=True)
class _Rows:
    """Rows of one linear: their weights with scales folded in, and everything needed to round them.

    Attributes:
        where: Full name of the linear.
        weight: fp32 [N, K].
        seen: The linear's input; None if no text is used.
        moments: How errors of its rows interact, by head; None if they do not.
        start: Codes and grids to begin with; None to round.
        clipped: Whether grids are searched.
    """

    where: str
    weight: Tensor
    seen: LinearInput | None
    moments: Tensor | None
    start: Rounded | None
    clipped: bool

    @property
    def shape(self) -> Rows:
        """How many rows there are, and how many have to be rounded together."""
        length, width = self.weight.shape
        return Rows(length, width, 1 if self.moments is None else self.moments.shape[1])

    def part(self, own: slice) -> _Rows:
        """A part of the rows, in multiples of `unit`."""
        unit = self.shape.unit
        moments = None if self.moments is None else self.moments[own.start // unit : own.stop // unit]
        return replace(
            self, weight=self.weight[own], moments=moments, start=self.start.rows(own) if self.start else None
        )


def _quantized_in_turn(
    spec: DecoderSpec, aims: Aims, moments: Mapping[str, Tensor], guide: Guide
) -> Iterator[tuple[str, Rounded]]:
    """Rounds a block's linears; if weights are corrected, by what the linears before them became."""
    method, names, moments_of = aims.method, spec.block.linears, InputMoments(aims.method)
    for turn in [[name] for name in names] if method.correct is not None else [list(names)]:
        wholes = {}
        for name in turn:
            with span("correct", linear=aims.where + name):
                aims.correct_(name)
            wholes[name] = _Rows(
                aims.where + name,
                aims.weight(name),
                aims.inputs.get(name),
                moments.get(name),
                guide.start.rounded[name] if guide.start else None,
                method.search is not None and (name not in spec.unclipped() or method.search.grids_of_scores),
            )
        for name, found in _quantized_by_ranks(wholes, moments_of, method):
            following = names[names.index(name) + 1 :]
            moments_of.forget_unless(aims.inputs.get(following[0]) if following else None)
            yield name, found


def _quantized_by_ranks(
    linears: Mapping[str, _Rows], moments_of: InputMoments, method: BlockMethod
) -> Iterator[tuple[str, Rounded]]:
    """Rounds linears, with the work dealt out among ranks."""
    dealt = deal({name: whole.shape for name, whole in linears.items()}, method.ranks)
    # Where ranks have shares of other linears, all have to be done before the first is put together.
    together = [[*linears]] if dealt_unevenly(dealt, method.ranks) else [[name] for name in linears]
    for names in together:
        own = {name: _quantized_shares(linears[name], dealt[name], moments_of, method) for name in names}
        for name in names:
            shape = linears[name].shape.length, linears[name].shape.width
            yield name, Rounded.of_ranks(own.pop(name), dealt[name], method.ranks, shape, method.scheme)


def _quantized_shares(
    whole: _Rows, shares: Sequence[Share], moments_of: InputMoments, method: BlockMethod
) -> list[Rounded]:
    """Rounds this rank's shares of a linear, whose rows do not depend on each other."""
    mine = [whole.part(share.rows) for share in shares if share.rank == method.ranks.rank]
    if whole.seen and mine:
        moments_of.turn_to(whole.seen, whole.where)
    found = [
        Rounded.of_pieces([_quantized_piece(rows.part(piece), moments_of, method) for piece in rows.shape.pieces()])
        for rows in mine
    ]
    return found if method.ranks.count == 1 else [rounded.narrow() for rounded in found]


def _quantized_piece(rows: _Rows, moments_of: InputMoments, method: BlockMethod) -> Rounded:
    weight, rounded = rows.weight, rows.start
    if not len(weight):  # a rank may have no rows of a small linear
        return round_to_grid(weight, group_grid(to_groups(weight, method.scheme), method.scheme), method.scheme)
    if rounded is None:
        grid = None
        if rows.clipped and rows.seen and method.search:
            with span("search grids", linear=rows.where):
                grid = search_grids(weight, moments_of.gram_of_grids, method.scheme, method.search.grids)
        with span("round", linear=rows.where):
            rounded = _round(rows, grid, moments_of, method)
    if rows.seen is None:
        return rounded
    with span("descend", linear=rows.where):
        return _descended(weight, rounded, moments_of.gram, method, rows.moments)


def _score_moments(
    spec: DecoderSpec, layer: int, folded: Mapping[str, Tensor], inputs: Mapping[str, LinearInput], method: BlockMethod
) -> dict[str, Tensor]:
    """How errors of rows of q and k interact, by linear; empty if the method does not consider attention scores."""
    if method.search is None or not method.search.score_passes or method.gptq:
        return {}
    seen = inputs[spec.block.q_proj]
    return score_moments(spec, layer, folded, seen.mean, seen.gram())


def _round(rows: _Rows, grid: GroupGrid | None, moments_of: InputMoments, method: BlockMethod) -> Rounded:
    """Chooses the codes of one linear, on the grid that was found if there is one."""
    weight, scheme = rows.weight, method.scheme
    if rows.seen and weight.shape[1] <= method.compensated_width:
        return gptq_round(weight, moments_of.spread, scheme, grid=grid)
    return round_to_grid(weight, grid or group_grid(to_groups(weight, scheme), scheme), scheme)


def _descended(weight: Tensor, rounded: Rounded, gram: Tensor, method: BlockMethod, moments: Tensor | None) -> Rounded:
    """Lets the codes of one linear descend; unchanged if the method has no descent, or rounds by GPTQ."""
    search, scheme = method.search, method.scheme
    if search is None or method.gptq or not (search.code_passes or search.score_passes):
        return rounded
    rounded = descend(weight, rounded, gram, scheme, passes=search.code_passes)
    if moments is None:
        return rounded
    return descend(weight, rounded, gram, scheme, passes=search.score_passes, moments=moments)


def _report(original: Tensor, folded: Tensor, found: Rounded, seen: LinearInput, method: BlockMethod) -> LinearReport:
    """Reports on one linear, given its weight before and after folding."""
    scheme, ranks, length = method.scheme, method.ranks, len(original)
    own, step = ranks.share(length), -(-length // REPORT_ROWS)
    original, folded, found = original[own], folded[own], found.rows(own)
    clipped = cut_share(folded, found.grid, scheme) if method.search and len(original) else 0.0
    measured = slice(-own.start % step, None, step)  # the same rows for any number of ranks
    # One after the other, so that only one E[x x^T] is in memory.
    plain = original[measured]
    plain_error = _relative_error(fake_quantize(plain, scheme), plain, seen.unscaled_gram(), ranks)
    error = _relative_error(found.rows(measured).dequantize(scheme), folded[measured], seen.gram(), ranks)
    return LinearReport(
        alpha=seen.alpha,
        beta=seen.beta,
        clipped_share=ranks.total(clipped * len(original) / length),
        error_rounded=plain_error,
        error=error,
    )


def _search_group(
    spec: DecoderSpec,
    weights: Mapping[str, Tensor],
    group: ScaleGroup,
    seen: LinearInput,
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

    options, gram = method.search.scales if method.search else ScaleOptions(), seen.gram()
    require_finite(gram, where + group.balance_layers[0])
    return search_scales(balanced, gram, scales_of, method.scheme, options, ranks=method.ranks)


def _relative_error(rounded: Tensor, weight: Tensor, gram: Tensor, ranks: Ranks) -> float:
    """|| (W' - W) x || / || W x ||, the root mean square over inputs, over the rows of all ranks."""
    gram = narrowed(gram)
    reference, error = ranks.total(output_error(weight, gram)), ranks.total(output_error(rounded - weight, gram))
    return math.sqrt(error / reference) if reference > 0 else 0.0


def plain_tensors(spec: DecoderSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block that belong to no quantized linear."""
    owned = {f"{name}.{kind}" for name in spec.block.linears for kind in ("weight", "bias")}
    return {name: value for name, value in weights.items() if name not in owned}
