"""Begins at a quantized checkpoint, ours or another tool's: at its codes and grids, and the weights they stand for.

In: the checkpoint, and the original model's block. Out: the block as the checkpoint scaled it, in fp32, with the codes
and grids of its linears. AWQ folds scales into linears and norms; GPTQ and AutoRound do not. A checkpoint does not
record its scales, so they are fitted: the checkpoint's weight is near diag(a) W diag(b), where a and b are means of so
many quotients that rounding errors matter little. Norms and biases are the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from awq2trt.artifact.arrays import read_arrays
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.search_files import SEARCH_FILE
from awq2trt.errors import UsageError
from awq2trt.models.block_weights import load_block
from awq2trt.models.families import ACTIVATION, LINEAR, OFFSET_NORM, UNFOLDED, ScaleGroup
from awq2trt.models.sources.base import ModelSource
from awq2trt.quantization.fold import fold_scales_
from awq2trt.quantization.rounding import Rounded
from awq2trt.quantization.search import smooth_magnitude, spread_over_heads
from awq2trt.scheme import QuantScheme

WORTH_FITTING: Final = 0.95
"""A checkpoint counts as scaled if fitted scales leave at most this share of the squared distance to its weights.
Fitting only rounding errors removes one N-th of the distance; fitting real scales removes nearly all of it."""


@dataclass(frozen=True)
class Beginning:
    """A block as a checkpoint has it.

    Attributes:
        tensors: fp32, by name relative to the block: linears before rounding, norms and biases.
        rounded: Codes and grids by linear.
        scales: The scales s folded into every input that linears share, fp32 [K], by the first of those linears.
    """

    tensors: dict[str, Tensor]
    rounded: dict[str, Rounded]
    scales: dict[str, Tensor]


def open_beginning(directory: Path, source: ModelSource, scheme: QuantScheme) -> QuantizedCheckpoint:
    """Opens the checkpoint that `--init-from` names.

    Raises:
        UsageError: The checkpoint belongs to another model, or has another scheme.
        CheckpointError: It is not a quantized checkpoint, or is damaged.
        UnsupportedError: Its format is not supported.
    """
    checkpoint, where = QuantizedCheckpoint.open(directory), f"--init-from {directory}"
    for what, got, expected in (
        ("family", checkpoint.spec.family, source.spec.family),
        ("blocks", checkpoint.spec.num_layers, source.spec.num_layers),
        ("shapes", checkpoint.spec.block_shapes(), source.spec.block_shapes()),
    ):
        if got != expected:
            raise UsageError(
                f"the checkpoint belongs to another model: {what} {got}, but {source.name} has {expected}.",
                where=where,
                fix="name a checkpoint that was made from this model.",
            )
    if checkpoint.scheme != scheme:
        raise UsageError(
            f"the checkpoint is {checkpoint.scheme.describe()}, but {scheme.describe()} is wanted.",
            where=where,
            fix=f"use {_flags(checkpoint.scheme)}; codes cannot be converted to another scheme.",
        )
    return checkpoint


def _flags(scheme: QuantScheme) -> str:
    """The options that describe a scheme."""
    symmetric = "" if scheme.zero_point else " --symmetric"
    return f"--bits {scheme.bits} --group-size {scheme.group_size}{symmetric}"


def begin_block(
    checkpoint: QuantizedCheckpoint, layer: int, weights: Mapping[str, Tensor], scheme: QuantScheme
) -> Beginning:
    """Reads one block of the checkpoint.

    Args:
        checkpoint: The checkpoint to begin at.
        layer: The block's number.
        weights: The original block's fp32 tensors.
        scheme: The checkpoint's, with the type that step sizes will have.

    Raises:
        ArtifactError: Its file of scales is damaged.
    """
    spec, prefix = checkpoint.spec, checkpoint.spec.prefix(layer)
    file = checkpoint.directory / SEARCH_FILE
    known = read_arrays(file, fix="quantize the model again.") if file.is_file() else {}
    stored, folded, scales = load_block(checkpoint, layer), dict(weights), dict[str, Tensor]()
    for group in spec.scale_groups():
        first = group.balance_layers[0]
        found = known.get(f"{prefix}{first}.scales")
        if found is None:
            scales[first] = find_scales(stored, folded, group, spec.head_dim)
        else:
            scales[first] = torch.as_tensor(found)
        if group.smooth_kind != UNFOLDED:
            fold_scales_(folded, group, scales[first], spec.head_dim)
    linears = {f"{name}.weight": folded[f"{name}.weight"] for name in spec.block.linears}
    stored_linears = {name: checkpoint.linear(prefix + name) for name in spec.block.linears}
    rounded = {name: Rounded.of(replace(linear, scheme=scheme)) for name, linear in stored_linears.items()}
    return Beginning({**stored, **linears}, rounded, scales)


def find_scales(
    stored: Mapping[str, Tensor], weights: Mapping[str, Tensor], group: ScaleGroup, head_dim: int
) -> Tensor:
    """Finds the scales that a checkpoint has folded into a group, fp32 [K]; all 1 if it has none.

    Args:
        stored: The checkpoint's block, dequantized.
        weights: The original block, with the groups before this one folded.
        group: The layers.
        head_dim: Channels of a head, for groups with tied heads.
    """
    wanted, given = (
        torch.cat([block[f"{name}.weight"] for name in group.balance_layers]) for block in (stored, weights)
    )
    none, key = torch.ones_like(given[0]), f"{group.smooth_layer}.weight"
    if group.smooth_kind == UNFOLDED:
        return none
    if group.smooth_kind == ACTIVATION:
        return stored.get(f"{group.smooth_layer}.scales", none)
    if group.smooth_kind == LINEAR:
        scales = _columns(wanted, given, group, head_dim)
    else:
        offset = 1 if group.smooth_kind == OFFSET_NORM else 0
        gain = stored[key] + offset
        scales = torch.where(gain != 0, (weights[key] + offset) / gain, 1.0)
    scaled, plain = (wanted - given * scales).square().sum(), (wanted - given).square().sum()
    return scales if scaled < WORTH_FITTING * plain else none


def _columns(wanted: Tensor, given: Tensor, group: ScaleGroup, head_dim: int) -> Tensor:
    """The factors of columns that bring `given` nearest to `wanted`; channels that read the same output share one."""
    products, squares = (
        smooth_magnitude((wanted * given).sum(dim=0), group, head_dim),
        smooth_magnitude(given.square().sum(dim=0), group, head_dim),
    )
    found = torch.where((squares > 0) & (products > 0), products / squares, 1.0)
    return spread_over_heads(found, group, head_dim)
