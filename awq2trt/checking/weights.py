"""Compares weights with the stage before, number by number, so that every wrong scale, zero point, row or nibble shows.

One wrong group among thousands hardly moves the logits, so no comparison of outputs finds it. Here every tensor is
computed again from the stage before and compared with what is stored. In: two stages' tensors. Out: findings, each with
the tensor's name and the first wrong element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from awq2trt.checking.tolerance import UNIT_ROUNDOFF
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import CheckpointError
from awq2trt.models.families.rotary import GrowingBase
from awq2trt.onnx_export.rotary_graph import rotary_names
from awq2trt.scheme import QuantizedLinear

Array = NDArray[Any]

HALF_STEP: Final = 0.5 + 1e-4
"""How far, in steps, the nearest code may be from its weight: half a step, plus the roundings of w * s / s' / scale in
fp32, which are four roundings of a number below 16 steps: 4 * 2^-24 * 16 = 4e-6, which another machine's order of
operations may double."""

DEVIATIONS: Final = 2
"""How many standard deviations of its mean over a group's channels a group may be away beyond its limits, since codes
that compensate scatter around their weights."""

_SUBNORMAL: Final = 2.0**-25
"""Half of fp16's smallest number: the most that rounding near zero can lose."""


@dataclass(frozen=True)
class Finding:
    """Something in a stage's weights that cannot come from the stage before.

    Attributes:
        place: Full name of the tensor or linear.
        message: What is wrong, one sentence.
    """

    place: str
    message: str


def rounded_finding(place: str, expected: Array, stored: Array) -> Finding | None:
    """Checks a plain tensor that was only rounded to the type in which it is stored."""
    if stored.shape != expected.shape:
        return Finding(place, f"expected shape {list(expected.shape)}, got {list(stored.shape)}.")
    unit = UNIT_ROUNDOFF[str(stored.dtype)]
    wanted, got = expected.astype(np.float64), stored.astype(np.float64)
    # The fp32 value that was rounded differs by two roundings (of a product and a quotient) from the one computed here.
    slack = unit + 4 * UNIT_ROUNDOFF["float32"]
    wrong = ~(np.abs(got - wanted) <= slack * np.abs(wanted) + _SUBNORMAL)  # NaN counts as wrong
    return _first_wrong(place, wrong, wanted, got) if wrong.any() else None


@dataclass(frozen=True)
class Codes:
    """How a linear's codes were chosen.

    Attributes:
        nearest: Whether every code must be the nearest on its group's grid, as most methods choose them; otherwise only
            the error of each group as a whole is checked.
        scale_roundoff: How far, relatively, a scale may have changed after the codes were chosen: in bf16 checkpoints
            it is rounded last, to 8 bits. A weight that is k steps from zero then moves by up to k times that.
        magnitude: Mean magnitude of each input channel, [K]: in channels that are hardly used, codes may be far from
            their weights. None if it is not known.
    """

    nearest: bool
    scale_roundoff: float = 0.0
    magnitude: Array | None = None


def code_finding(place: str, weight: Array, linear: QuantizedLinear, chosen: Codes) -> Finding | None:
    """Checks codes against the weight that they were made from.

    Args:
        place: Name of the linear.
        weight: The weight that was rounded, fp32 [N, K].
        linear: The quantized linear.
        chosen: How its codes were chosen.
    """
    group = np.arange(linear.in_features) // linear.group_length  # [K]
    scales = linear.scales.astype(np.float64)[:, group]
    zeros = float(linear.scheme.symmetric_zero) if linear.zeros is None else linear.zeros.astype(np.float64)[:, group]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = weight / scales  # [N, K]
        grid = np.clip(steps + zeros, 0, linear.scheme.levels - 1)
    if not chosen.nearest:
        weights = _Groups(steps, grid - zeros, linear.codes - zeros, group, linear.scheme.levels)
        return _group_finding(place, weights, chosen.magnitude)
    wrong = ~(np.abs(grid - linear.codes) <= HALF_STEP + np.abs(steps) * chosen.scale_roundoff)
    if not wrong.any():
        return None
    row, column = (int(index) for index in np.argwhere(wrong)[0])
    return Finding(
        place,
        f"{np.count_nonzero(wrong)} of {wrong.size} codes are not the nearest to their weights; the first is in "
        f"row {row}, channel {column}: code {linear.codes[row, column]} for a weight at {grid[row, column]:.2f}.",
    )


def compensated_limits(levels: int) -> tuple[float, float]:
    """Limits for a group whose codes are not the nearest, because they make up for other errors.

    The first is on its mean error in steps, which a zero point that is wrong by one changes by 1. The second is on how
    far the share of the weights that codes reproduce, <w, w'> / <w, w>, may be from 1: a step size that is doubled
    makes it 2, one that is halved 0.5, and codes of another row or channel make it a number around 0.

    With fewer levels, a step is a larger part of the weights, and so is what compensates for its errors. Measured in
    three draws of `best` of SmolLM2-135M, whole models, beyond `DEVIATIONS`: at most 0.50 and 0.35 in INT4 (groups of
    128); 0.69 and 0.55 in INT3; 0.49 and 1.02 in INT2 (groups of 64), except for the few groups that `_outliers`
    counts. In INT2, a step size that is wrong by a factor of 2 is not found.

    Args:
        levels: How many codes there are.
    """
    return 0.6 if levels >= 16 else 0.8, 0.34 + 14 / levels**2


def _outliers(levels: int, groups: int) -> int:
    """How many of a linear's groups may reproduce any share of their weights.

    With fewer than 16 levels, a group of small weights beside large ones may be given to the errors of others as a
    whole: measured, up to five of the 0.9 million groups of an INT3 model and of the 1.7 million of an INT2 model, the
    worst of them 5.8 times its weights away from them.
    """
    return 0 if levels >= 16 else groups // 1000


@dataclass(frozen=True)
class _Groups:
    """The weights of a linear in steps from zero, [N, K] each.

    Attributes:
        exact: As they are.
        nearest: Moved into the range of the grid.
        got: As codes say.
        group: Number of each channel's group, [K].
        levels: How many codes there are.
    """

    exact: Array
    nearest: Array
    got: Array
    group: NDArray[np.int64]
    levels: int


def _group_finding(place: str, weights: _Groups, magnitude: Array | None) -> Finding | None:
    """Checks each group as a whole."""
    starts = np.flatnonzero(np.diff(weights.group, prepend=-1))
    share = np.ones(len(weights.group)) if magnitude is None else magnitude.astype(np.float64)
    # In a group that no input uses, nothing tells what its codes should be, and all channels are equal.
    share = np.where((np.add.reduceat(share, starts) == 0)[weights.group], 1, share)
    share /= np.add.reduceat(share, starts)[weights.group]

    def mean_of(values: Array) -> Array:
        found: Array = np.add.reduceat(values * share, starts, axis=1)
        return found

    error = weights.nearest - weights.got
    mean, size = mean_of(error), np.sqrt(mean_of(weights.exact**2))
    # As if all channels counted alike: where one counts for most, its own error would excuse itself.
    squares, channels = mean_of(error**2), np.diff([*starts, len(share)])
    slack = DEVIATIONS * np.sqrt(np.maximum(squares - mean**2, 0) / channels)
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = mean_of(weights.exact * weights.got) / size**2
        off = np.abs(fit - 1) - DEVIATIONS * np.sqrt(squares / channels) / size
    empty = (size == 0) & (mean_of(weights.got**2) == 0)
    fit, off = np.where(empty, 1, fit), np.where(empty, 0, off)
    most, most_off = compensated_limits(weights.levels)
    wrong, misfits = ~(np.abs(mean) - slack <= most), ~(off <= most_off)  # NaN counts as wrong
    if np.count_nonzero(misfits) > _outliers(weights.levels, misfits.size) or np.isnan(off).any():
        wrong |= misfits
    if not wrong.any():
        return None
    row, index = (int(value) for value in np.argwhere(wrong)[0])
    return Finding(
        place,
        f"{np.count_nonzero(wrong)} of {wrong.size} groups are far from their weights; the first is in row {row}, "
        f"group {index}: {mean[row, index]:+.2f} steps in the mean, {fit[row, index]:.2f} times the weights.",
    )


def onnx_findings(model: ir.Model, checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    """Finds initializers of an exported model that differ from the checkpoint's tensors in the graph's type."""
    stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    spec = checkpoint.spec
    linears = {spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.block.linears}
    if checkpoint.head_scheme is not None:
        linears.add(spec.stored_head)
    for name in linears:
        yield from _linear_findings(name, checkpoint.linear(name), stored)
    owned = {f"{name}.{kind}" for name in linears for kind in _KINDS}
    yield from _plain_findings({name: value for name, value in stored.items() if name not in owned}, checkpoint)
    yield from _rotary_findings(checkpoint, stored)


_KINDS: Final = ("codes", "scales", "zeros", "bias")
"""Last parts of the names of a linear's initializers."""


def plain_findings(model: ir.Model, checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    """The same of a graph beside the decoder: an embedding that is the head's weight, or what the model sees with."""
    stored = {name: value.const_value for name, value in model.graph.initializers.items() if value.const_value}
    coded = [name for name in (checkpoint.spec.stored_head, *checkpoint.vision_linears) if f"{name}.codes" in stored]
    for name in coded:
        yield from _linear_findings(name, checkpoint.linear(name), stored)
    owned = {f"{name}.{kind}" for name in coded for kind in _KINDS}
    yield from _plain_findings({name: value for name, value in stored.items() if name not in owned}, checkpoint)


def _plain_findings(stored: Mapping[str, ir.TensorProtocol], checkpoint: QuantizedCheckpoint) -> Iterator[Finding]:
    spec = checkpoint.spec
    gains = {f"{name}.weight" for name in spec.norms()} if spec.norm.unit_offset else set()
    for name, tensor in stored.items():
        if name.startswith("rotary"):
            continue
        try:
            expected = checkpoint.tensor(name)
            if name in gains:
                expected = expected.astype(np.float32) + 1
        except CheckpointError:
            continue  # a constant of the graph itself
        yield from _equal(name, expected.astype(tensor.numpy().dtype), tensor.numpy())


def _linear_findings(name: str, linear: QuantizedLinear, stored: Mapping[str, ir.TensorProtocol]) -> Iterator[Finding]:
    wanted = {"codes", "scales"} | ({"zeros"} if linear.zeros is not None else set())
    wanted |= {"bias"} if linear.bias is not None else set()
    missing = sorted(kind for kind in wanted if f"{name}.{kind}" not in stored)
    if missing:
        yield Finding(name, f"the graph has no {', '.join(missing)}.")
        return
    tensors = {kind: stored[f"{name}.{kind}"].numpy() for kind in wanted}
    scales = tensors["scales"]
    column_group = np.arange(linear.in_features) // linear.group_length
    if tensors["codes"].shape != linear.codes.shape or scales.shape != linear.scales.shape:
        yield Finding(name, f"expected codes {list(linear.codes.shape)}, got {list(tensors['codes'].shape)}.")
        return
    steps = tensors["codes"].astype(np.int16)
    if "zeros" in tensors:
        steps = steps - tensors["zeros"].astype(np.int16)[:, column_group]
    zeros = linear.scheme.symmetric_zero if linear.zeros is None else linear.zeros.astype(np.int16)[:, column_group]
    yield from _equal(name, linear.codes.astype(np.int16) - zeros, steps, what="code minus zero point")
    yield from _equal(f"{name}.scales", linear.scales.astype(scales.dtype), scales)
    if linear.bias is not None:
        yield from _equal(f"{name}.bias", linear.bias.astype(tensors["bias"].dtype), tensors["bias"])


def _rotary_findings(checkpoint: QuantizedCheckpoint, stored: Mapping[str, ir.TensorProtocol]) -> Iterator[Finding]:
    for index, rope in enumerate(checkpoint.spec.ropes):
        names = rotary_names(index)
        missing = [name for name in names if name not in stored]
        if missing:
            # Some graphs compute the rows that they need, and others are given tables.
            if not isinstance(rope.beyond, GrowingBase) and rope.sections is None:
                yield Finding(missing[0], "the graph has no such table.")
            continue
        tables = [stored[name].numpy() for name in names]
        capacity = len(tables[0]) - rope.first_long_row(len(tables[0]))
        for name, table, expected in zip(names, tables, rope.stored_tables(capacity), strict=True):
            yield from _equal(name, expected.astype(table.dtype), table)


def _equal(place: str, expected: Array, got: Array, what: str = "value") -> Iterator[Finding]:
    if got.shape != expected.shape:
        yield Finding(place, f"expected shape {list(expected.shape)}, got {list(got.shape)}.")
        return
    wrong = ~(got == expected)
    if wrong.any():
        yield _first_wrong(place, wrong, expected.astype(np.float64), got.astype(np.float64), what)


def _first_wrong(place: str, wrong: Array, expected: Array, got: Array, what: str = "value") -> Finding:
    index = tuple(int(value) for value in np.argwhere(wrong)[0])
    return Finding(
        place,
        f"{np.count_nonzero(wrong)} of {wrong.size} elements differ; the first is at {list(index)}: {what} "
        f"{got[index]:g}, expected {expected[index]:g}.",
    )
