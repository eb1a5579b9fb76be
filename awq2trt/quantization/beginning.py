"""A quantized checkpoint to begin at, ours or another tool's: its codes and grids, and the weights they stand for.

In: the checkpoint, and the original model's block. Out: the block as the checkpoint scaled it, in fp32, with the codes
and grids of its linears. AWQ folds scales into linears and norms, GPTQ and AutoRound do not; which scales, a checkpoint
does not say. They are fitted: the checkpoint's weight is near diag(a) W diag(b), with a and b the means of so many
quotients that the errors of rounding are small in them. Norms and biases are the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UsageError
from awq2trt.models.decoder import load_block
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.quantization.rounding import Rounded
from awq2trt.scheme import QuantScheme

FIT_PASSES: Final = 8
"""Of alternating least squares; the fit is settled to fp32 after 3 or 4 where columns differ by a factor of 100."""

WORTH_FITTING: Final = 0.95
"""Without folding, a fit takes K + N numbers of N K away from the error, some 1 %; with it, nearly all."""


@dataclass(frozen=True)
class Beginning:
    """A block where a checkpoint has it.

    Attributes:
        tensors: fp32, by name relative to the block: linears before rounding, norms and biases.
        rounded: Codes and grids, by linear.
    """

    tensors: dict[str, Tensor]
    rounded: dict[str, Rounded]


def open_beginning(directory: Path, source: ModelSource, scheme: QuantScheme) -> QuantizedCheckpoint:
    """Opens the checkpoint that `--init-from` names.

    Raises:
        UsageError: It is another model's, or of another scheme.
        CheckpointError: It is no quantized checkpoint, or damaged.
        UnsupportedError: Its format is not known.
    """
    checkpoint, where = QuantizedCheckpoint.open(directory), f"--init-from {directory}"
    for what, got, expected in (
        ("family", checkpoint.spec.family, source.spec.family),
        ("blocks", checkpoint.spec.num_layers, source.spec.num_layers),
        ("shapes", checkpoint.spec.block_shapes(), source.spec.block_shapes()),
    ):
        if got != expected:
            raise UsageError(
                f"the checkpoint is of another model: {what} {got}, where {source.name} has {expected}.",
                where=where,
                fix="name a checkpoint that was made of this model.",
            )
    if checkpoint.scheme != scheme:
        raise UsageError(
            f"the checkpoint is {checkpoint.scheme.describe()}, but {scheme.describe()} is asked for.",
            where=where,
            fix=f"{_flags(checkpoint.scheme)}; codes cannot be carried over to another scheme.",
        )
    return checkpoint


def _flags(scheme: QuantScheme) -> str:
    """The options that ask for a scheme."""
    symmetric = "" if scheme.zero_point else " --symmetric"
    return f"--bits {scheme.bits} --group-size {scheme.group_size}{symmetric}"


def begin_block(checkpoint: QuantizedCheckpoint, layer: int, weights: Mapping[str, Tensor]) -> Beginning:
    """One block of the checkpoint.

    Args:
        checkpoint: Where to begin.
        layer: Which block.
        weights: The original block's fp32 tensors.
    """
    spec: DecoderSpec = checkpoint.spec
    tensors, rounded = load_block(checkpoint, layer), dict[str, Rounded]()
    for name in spec.block.linears:
        rounded[name] = Rounded.of(checkpoint.linear(spec.prefix(layer) + name))
        key = f"{name}.weight"
        tensors[key] = scaled_like(weights[key], tensors[key])
    return Beginning(tensors, rounded)


def scaled_like(weight: Tensor, rounded: Tensor) -> Tensor:
    """diag(a) W diag(b) that is nearest to the rounded weight; W itself where that is as good.

    Args:
        weight: W, fp32 [N, K].
        rounded: The weight that a checkpoint's codes stand for, [N, K].
    """
    columns = torch.ones_like(weight[0])
    for _ in range(FIT_PASSES):
        rows = _quotients(rounded, weight * columns, dim=1)
        columns = _quotients(rounded, weight * rows, dim=0).squeeze(0)
    fitted = weight * columns * rows
    fitted_error, plain_error = (rounded - fitted).square().sum(), (rounded - weight).square().sum()
    return fitted if fitted_error < WORTH_FITTING * plain_error else weight


def _quotients(wanted: Tensor, given: Tensor, *, dim: int) -> Tensor:
    """The factors of rows or columns that bring `given` nearest to `wanted`; 1 where all of `given` is 0."""
    square = given.square().sum(dim=dim, keepdim=True)
    return torch.where(square > 0, (wanted * given).sum(dim=dim, keepdim=True) / square, 1.0)
