"""Learns codes and grids of a block together, by signed gradients of the block's output error.

In: a block's fp32 weights with scales folded in, the codes and grids that the search left, the block's inputs as the
quantized blocks before give them, and the outputs of the original model. Out: codes and grids with which the block's
outputs are nearer to those. Every weight has an offset that is added before rounding, and every group has two factors
for the ends of its range. All of them follow the sign of their gradients, in steps that shrink to 0, and rounding
counts as the identity in gradients (AutoRound, arXiv:2309.05516, section 3). Unlike in that paper, learning begins at
codes and grids that a search found, it aims at the outputs of the original blocks on the original inputs, and it never
ends with a larger error than at the beginning.

A weight begins at its own position within the code that the search gave it: near the border to the next code, a small
change is enough to get there; in the middle, a large one is needed. A code that is not the nearest to its weight begins
at the border to the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.models.rotary import Windows
from awq2trt.quantization.rounding import GroupGrid, Rounded, as_step, from_groups, to_groups
from awq2trt.scheme import QuantScheme

INSIDE: Final = 0.499
"""How far a weight may be from the middle of its code at the beginning, in steps, so that it is not on the border."""

FACTORS: Final = (0.5, 1.5)
"""Limits of the factors for the ends of a range."""


class RunBlock(Protocol):
    """A block: tensors and its inputs [samples, seqlen, hidden_size] -> its outputs, same shape."""

    def __call__(self, weights: Mapping[str, Tensor], hidden: Tensor, *, windows: Windows = None) -> Tensor:
        """Runs it; `windows` are the windows of this rank that `hidden` belongs to."""


@dataclass(frozen=True)
class LearnOptions:
    """How long and how fast a block learns.

    Attributes:
        steps: Number of steps along the signed gradient.
        windows: Number of calibration windows in each step.
        offset_reach: How far an offset moves if all its gradients have the same sign, in steps of its grid.
        range_reach: The same for the factors of the ends of ranges.
        looks: How often the error on all windows is measured; the best state is kept.
    """

    steps: int = 200
    windows: int = 8
    offset_reach: float = 0.5
    range_reach: float = 0.1
    looks: int = 4


@dataclass(frozen=True)
class Lesson:
    """The data that a block learns from.

    Attributes:
        run: The block as a function of its tensors.
        inputs: Outputs of the quantized blocks before it, fp32 [samples, seqlen, hidden_size]; this rank's share.
        targets: The original block's outputs on its own inputs, of the same shape.
        seed: Seed of the order of windows.
        samples: Number of windows of all ranks.
        ranks: The ranks that share the windows.
    """

    run: RunBlock
    inputs: Tensor
    targets: Tensor
    seed: int
    samples: int
    ranks: Ranks = ALONE

    def own(self, chosen: Tensor) -> Tensor:
        """Returns the indices in `inputs` of those of some windows that belong to this rank, int64."""
        share = self.ranks.share(self.samples)
        own: Tensor = chosen[(chosen >= share.start) & (chosen < share.stop)] - share.start
        return own


@dataclass(frozen=True)
class Learned:
    """The result of learning.

    Attributes:
        rounded: Codes and grids by linear.
        before: Error of the block's outputs at the start, see `learn_codes`.
        after: The same at the end.
    """

    rounded: dict[str, Rounded]
    before: float
    after: float


def learn_codes(
    tensors: Mapping[str, Tensor],
    start: Mapping[str, Rounded],
    lesson: Lesson,
    scheme: QuantScheme,
    options: LearnOptions,
) -> Learned:
    """Learns the codes and grids of a block.

    The error is the mean square of the outputs' difference, divided for each token by the mean square of its residual
    stream, since the next norm divides by that; and then divided by the same measure of what the block adds to the
    stream.

    Args:
        tensors: All tensors of the block, fp32, by name relative to it; `<linear>.weight` is already scaled.
        start: Codes and grids of its linears to begin with.
        lesson: The data to learn from.
        scheme: Bits, groups, zero points.
        options: How long.
    """
    packs = _packs(tensors, start, scheme)
    error = _BlockError.of_block(lesson, tensors, packs)
    windows = WindowDraws.start(lesson.samples, options.windows, lesson.seed)
    before = best = error.of_all(options.windows)
    kept = [pack.state() for pack in packs]
    look = max(1, options.steps // options.looks)
    for step in range(options.steps):
        _step_(packs, error, windows.next_(), 2 * (1 - step / options.steps) / options.steps, options)
        if (step + 1) % look == 0 or step + 1 == options.steps:
            now = error.of_all(options.windows)
            if now < best:
                best, kept = now, [pack.state() for pack in packs]
    rounded: dict[str, Rounded] = {}
    for pack, state in zip(packs, kept, strict=True):
        pack.restore_(state)
        rounded |= pack.rounded(tensors)
    return Learned(rounded, before, best)


def _step_(packs: Sequence[_Pack], error: _BlockError, chosen: Tensor, left: float, options: LearnOptions) -> None:
    """Takes a step down the signed gradient of the error on some windows; `left` scales its length."""
    learned = [parameter for pack in packs for parameter in (pack.offset, pack.factors)]
    gradients = error.gradients(learned, chosen)
    reaches = (options.offset_reach, options.range_reach) * len(packs)
    with torch.no_grad():
        for parameter, gradient, reach in zip(learned, gradients, reaches, strict=True):
            parameter.sub_(gradient.sign_(), alpha=left * reach)
        for pack in packs:
            pack.factors.clamp_(*FACTORS)


@dataclass(frozen=True)
class _BlockError:
    """How far a block's outputs are from the targets, as a function of what is learned."""

    _lesson: Lesson
    _tensors: Mapping[str, Tensor]
    _packs: Sequence[_Pack]
    _token_weights: Tensor  # [samples, seqlen, 1]

    @classmethod
    def of_block(cls, lesson: Lesson, tensors: Mapping[str, Tensor], packs: Sequence[_Pack]) -> _BlockError:
        """Makes the error of a block, with weights for the tokens, see `learn_codes`."""
        tiny = torch.finfo(torch.float32).tiny
        weights = 1 / lesson.targets.square().mean(dim=-1, keepdim=True).clamp(min=tiny)
        per_window = lesson.inputs.shape[1] * lesson.inputs.shape[2]
        added = lesson.ranks.total(float((weights * (lesson.targets - lesson.inputs).square()).sum()))
        return cls(lesson, tensors, packs, weights / max(added / (lesson.samples * per_window), tiny))

    def weights(self) -> dict[str, Tensor]:
        """The block's tensors, with the linears that the current codes and grids stand for."""
        tensors = dict(self._tensors)
        for pack in self._packs:
            tensors.update(pack.weights(tensors))
        return tensors

    def gradients(self, learned: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
        """Gradients of the error on some windows, summed over the ranks."""
        own = self._lesson.own(chosen)
        if len(own):
            with torch.enable_grad():
                error = self.of(self.weights(), own) * (len(own) / len(chosen))
                found = list(torch.autograd.grad(error, learned))
        else:
            found = [torch.zeros_like(parameter) for parameter in learned]
        self._lesson.ranks.sum_(found)
        return found

    def of(self, weights: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        """The error on some of this rank's windows."""
        # The other kernels for attention add gradients in an order that varies from run to run.
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self._lesson.run(weights, self._lesson.inputs[chosen], windows=chosen)
        return ((outputs - self._lesson.targets[chosen]).square() * self._token_weights[chosen]).mean()

    def of_all(self, at_once: int) -> float:
        """The error on all windows of all ranks."""
        pieces = torch.arange(len(self._lesson.inputs)).split(at_once)
        with torch.no_grad():
            weights = self.weights()
            own = sum(float(self.of(weights, piece)) * len(piece) for piece in pieces if len(piece))
        return self._lesson.ranks.total(own) / self._lesson.samples


@dataclass
class _Pack:
    """Linears whose groups have the same length G, learned as one tensor of R groups: few large operations are faster.

    Attributes:
        names: Names of the linears.
        rows: Number of groups in each.
        scheme: Bits, groups, zero points.
        weight: The weights, [R, G].
        ends: Lower and upper ends of the ranges at the beginning, [2, R, 1].
        place: What is added to weight / scale + zero before rounding at the beginning, [R, G].
        offset: What is added to that; it is learned.
        factors: Factors of the ends, [2, R, 1]; they are learned.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    scheme: QuantScheme
    weight: Tensor
    ends: Tensor
    place: Tensor
    offset: Tensor
    factors: Tensor

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], start: Mapping[str, Rounded], scheme: QuantScheme) -> _Pack:
        """Makes a pack in the state in which the search left its linears."""
        grouped = [to_groups(weight, scheme).flatten(0, 1) for weight in weights.values()]
        weight, last = torch.cat(grouped), scheme.levels - 1
        scales = torch.cat([start[name].grid.scales.flatten(0, 1) for name in weights])
        zeros = torch.cat([start[name].grid.zeros.flatten(0, 1) for name in weights])
        codes = torch.cat([to_groups(start[name].codes, scheme).flatten(0, 1) for name in weights])
        exact = weight / scales + zeros
        # A weight beyond its range needs no offset: its nearest code is the last one.
        at_end = ((codes == 0) & (exact < 0)) | ((codes == last) & (exact > last))
        place = torch.where(at_end, 0.0, exact.clamp(codes - INSIDE, codes + INSIDE) - exact)
        return cls(
            names=tuple(weights),
            rows=tuple(map(len, grouped)),
            scheme=scheme,
            weight=weight,
            ends=torch.stack([-zeros * scales, (last - zeros) * scales]),
            place=place,
            offset=torch.zeros_like(weight, requires_grad=True),
            factors=torch.ones(2, len(weight), 1, requires_grad=True),
        )

    def weights(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The weights that the current codes stand for, by `<linear>.weight`, [N, K]."""
        scales, zeros, codes = self._now()
        for name, grouped in zip(self.names, ((codes - zeros) * scales).split(self.rows), strict=True):
            rows, columns = tensors[f"{name}.weight"].shape
            yield f"{name}.weight", from_groups(grouped.view(rows, -1, grouped.shape[-1]), columns)

    def rounded(self, tensors: Mapping[str, Tensor]) -> dict[str, Rounded]:
        """The current codes and grids, by linear."""
        found = {}
        with torch.no_grad():
            parts = [value.split(self.rows) for value in self._now()]
        for name, scales, zeros, codes in zip(self.names, *parts, strict=True):
            rows, columns = tensors[f"{name}.weight"].shape
            grid = GroupGrid(scales.view(rows, -1, 1), zeros.view(rows, -1, 1))
            found[name] = Rounded(from_groups(codes.view(rows, -1, codes.shape[-1]), columns), grid)
        return found

    def state(self) -> tuple[Tensor, Tensor]:
        """Copies what was learned so far."""
        return self.offset.detach().clone(), self.factors.detach().clone()

    def restore_(self, state: tuple[Tensor, Tensor]) -> None:
        """Returns to a copied state."""
        with torch.no_grad():
            self.offset.copy_(state[0])
            self.factors.copy_(state[1])

    def _now(self) -> tuple[Tensor, Tensor, Tensor]:
        """The current step sizes and zero points [R, 1], and codes [R, G]."""
        last = self.scheme.levels - 1
        low, high = self.ends * self.factors
        if self.scheme.zero_point:
            scales = with_its_gradient((high - low) / last, self._as_step)
            zeros = with_its_gradient(-low / scales, torch.round).clamp(0, last)
        else:
            zeros = torch.full_like(high, self.scheme.symmetric_zero)
            scales = with_its_gradient(high / (last - zeros), self._as_step)
        exact = self.weight / scales + zeros + self.place + self.offset
        return scales, zeros, with_its_gradient(exact, torch.round).clamp(0, last)

    def _as_step(self, scales: Tensor) -> Tensor:
        return as_step(scales, self.scheme)


def _packs(tensors: Mapping[str, Tensor], start: Mapping[str, Rounded], scheme: QuantScheme) -> list[_Pack]:
    by_length: dict[int, dict[str, Tensor]] = {}
    for name in start:
        weight = tensors[f"{name}.weight"]
        by_length.setdefault(scheme.group_of(weight.shape[1]), {})[name] = weight
    return [_Pack.of(weights, start, scheme) for weights in by_length.values()]


@dataclass
class WindowDraws:
    """Draws windows in an order that is drawn again whenever all were used."""

    _count: int
    _at_once: int
    _generator: torch.Generator
    _left: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, count: int, at_once: int, seed: int) -> WindowDraws:
        """Makes the draws, of `at_once` of `count` windows at a time."""
        return cls(count, min(at_once, count), torch.Generator("cpu").manual_seed(seed))

    def next_(self) -> Tensor:
        """Indices of the next windows, int64 [windows]."""
        if len(self._left) < self._at_once:
            self._left += torch.randperm(self._count, generator=self._generator, device="cpu").tolist()
        chosen, self._left = self._left[: self._at_once], self._left[self._at_once :]
        return torch.tensor(chosen)


class _Through(torch.autograd.Function):
    """change(value) in the forward pass, and the identity in the backward pass (straight-through estimator)."""

    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return change(value)

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def with_its_gradient(value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns change(value), with the gradient of the value itself."""
    changed: Tensor = _Through.apply(value, change)  # type: ignore[no-untyped-call]
    return changed
