"""Weights moved such that a linear makes up for what the quantized layers before it got wrong.

In: a block's tensors, those before a linear quantized already, and the streams before the block, the quantized model's
and the original's. Out: what the linear reads, E[x~ x~^T], and weights whose outputs on it come nearer to the
original's on x. Least squares would take W E[x x~^T] (E[x~ x~^T])^-1 (Qronos, arXiv:2505.11695). That follows the
calibration text wherever an input has little energy, so it is damped, and only a share of it is taken.

A linear whose output joins the residual stream can make up for the stream's own error, too: what it aims at is its
original output plus what the stream lacks before it.

With x~ = x - (x - x~), the move is (W E[(x - x~) x~^T] + E[r x~^T]) (E[x~ x~^T] + damping)^-1, r what the stream lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.models.decoder import Observer
from awq2trt.models.families import DecoderSpec, ScaleGroup
from awq2trt.models.rotary import Windows
from awq2trt.quantization.statistics import InputStatistics, require_finite


@dataclass(frozen=True)
class CorrectionOptions:
    """How far weights follow.

    Attributes:
        share: Fraction of the damped least-squares solution that is applied.
        damping: Added to the diagonal of E[x~ x~^T], as a share of each channel's own: whatever scales are folded.
    """

    share: float = 0.5
    damping: float = 0.1


class RunObserved(Protocol):
    """A block: tensors and its inputs [samples, seqlen, hidden_size] -> its outputs, same shape."""

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        hidden: Tensor,
        *,
        observe: Observer | None = None,
        windows: Windows = None,
    ) -> Tensor:
        """Runs it; `observe` sees the inputs of its linears, `windows` are those that `hidden` belongs to."""


@dataclass(frozen=True)
class Drift:
    """How what a linear reads differs from what it should.

    Attributes:
        seen: Statistics of its input x~ as the quantized layers before it produce it.
        of_input: E[(x - x~) x~^T], fp32 [K, K].
        of_stream: E[r x~^T], fp32 [hidden_size, K]; None for a linear whose output does not join the stream.
    """

    seen: InputStatistics
    of_input: Tensor
    of_stream: Tensor | None

    def corrected(self, weights: Sequence[Tensor], options: CorrectionOptions, where: str = "") -> list[Tensor]:
        """The weights of the group that make up for it: fp32 [N, K] each, and so returned.

        Args:
            weights: Weights of linears that share the input.
            options: How far to go.
            where: Name of the first of them, for errors.

        Raises:
            CalibrationError: The input had NaN or infinite values.
        """
        weight, gram = torch.cat([*weights]), self.seen.gram()
        require_finite(gram, where)
        energy = gram.diagonal().clone()
        # Over each channel's size, G has a condition number of at most K / damping, which fp32 bears.
        size = torch.where(energy > 0, energy, 1.0).sqrt()
        gram.div_(size).div_(size.unsqueeze(1))
        gram.diagonal().add_(torch.where(energy > 0, options.damping, 1.0))
        wanted = weight @ self.of_input
        if self.of_stream is not None:
            wanted += self.of_stream
        move = torch.cholesky_solve(wanted.div_(size).T, torch.linalg.cholesky(gram)).T.div_(size)
        return list((weight + options.share * move).split([*map(len, weights)]))


@dataclass(frozen=True)
class Pursuit:
    """The original model, for a block of the quantized one to come near to.

    Attributes:
        run: The block as a function of its tensors.
        inputs: As the quantized blocks before give them, fp32 [samples, seqlen, hidden_size]; this rank's share.
        originals: As the original ones do, same shape.
        ranks: Among which windows are shared.
    """

    run: RunObserved
    inputs: Tensor
    originals: Tensor
    ranks: Ranks = ALONE

    def drift(
        self, spec: DecoderSpec, group: ScaleGroup, original: Mapping[str, Tensor], current: Mapping[str, Tensor]
    ) -> Drift:
        """What a group of linears reads, beside what it should.

        Args:
            spec: The model.
            group: Linears that share an input.
            original: The block's tensors, fp32, with scales folded in.
            current: The same, the linears before the group quantized.
        """
        name = group.balance_layers[0]
        rows, columns = spec.linear_shape(name)
        joins = _joins_stream(spec, name)
        found = Drift(
            InputStatistics.empty(columns), torch.zeros(columns, columns), torch.zeros(rows, columns) if joins else None
        )
        for index in range(len(self.inputs)):  # not split(), which makes one piece of nothing, as a rank may have
            window = slice(index, index + 1)
            hidden, wanted = self.inputs[window], self.originals[window]
            run = partial(self.run, windows=window)
            seen, should = _read(run, current, hidden, name), _read(run, original, wanted, name)
            found.seen.add_(seen[name])
            found.of_input.addmm_((should[name] - seen[name]).T, seen[name])
            if found.of_stream is not None:
                lacks = (wanted - hidden).flatten(0, 1)
                if name == spec.block.down_proj:
                    attention = spec.block.o_proj
                    lacks += should[attention] @ original[f"{attention}.weight"].T
                    lacks -= seen[attention] @ current[f"{attention}.weight"].T
                found.of_stream.addmm_(lacks.T, seen[name])
        found.seen.add_other_ranks_(self.ranks)
        sums = [found.of_input, *([found.of_stream] if found.of_stream is not None else [])]
        self.ranks.sum_(sums)
        for value in sums:
            value /= found.seen.tokens
        return found


class _Seen(Exception):  # noqa: N818  (nothing is wrong: what was looked for was seen, and the run may end)
    """Ends a run of a block."""


def _read(run: RunObserved, weights: Mapping[str, Tensor], hidden: Tensor, last: str) -> dict[str, Tensor]:
    """What the linears of a block read up to one, fp32 [tokens, K] by the first of those that share it."""
    inputs: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        inputs[name] = x
        if name == last:
            raise _Seen

    with suppress(_Seen):
        run(weights, hidden, observe=observe)
    return inputs


def _joins_stream(spec: DecoderSpec, name: str) -> bool:
    """Whether a linear's output is added to the residual stream as it is, after all that was added before it."""
    names = spec.block
    if names.post_attention_norm is not None or names.post_mlp_norm is not None:
        return False
    return name in (names.o_proj, names.down_proj)
