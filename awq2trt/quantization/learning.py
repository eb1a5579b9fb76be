"""Codes and grids of a block learned together, by signed gradients of the block's output error.

In: a block's fp32 weights with scales folded in, the codes and grids that the search left, the block's inputs as the
quantized blocks before give them, and the outputs of the original model. Out: codes and grids whose block comes nearer
to those outputs. Every weight gets an offset that is added before rounding, every group two factors on the ends of its
range; all follow the sign of their gradients, by steps that shrink to nothing, with rounding taken for the identity
(AutoRound, arXiv:2309.05516, section 3). Unlike there, learning begins at codes and grids that a search found, it aims
at what the original blocks make of the original inputs, and it never ends with a larger error than it began with.

A weight begins at its own place within the code that the search gave it: one near the border to the next code moves
there by a small change, one in the middle by a large one. A code that is not the nearest to its weight begins at the
border to the code that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.quantization.rounding import GroupGrid, Rounded, as_step, from_groups, to_groups
from awq2trt.scheme import QuantScheme

INSIDE: Final = 0.499
"""A weight begins at most so far from the middle of its code, in steps: not on the border itself."""

FACTORS: Final = (0.5, 1.5)
"""Between these stay the factors of the ends of a range."""

RunBlock = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Tensors of a block and its inputs [samples, seqlen, hidden_size] -> its outputs, same shape."""


@dataclass(frozen=True)
class LearnOptions:
    """How long and how fast a block learns.

    Attributes:
        steps: Of the signed gradient.
        windows: Calibration windows of each step.
        offset_reach: How far an offset goes if all its gradients have one sign, in steps of its grid.
        range_reach: The same for the factors of the ends of ranges.
        looks: How often the error on all windows is looked at; the best of these moments is kept.
    """

    steps: int = 200
    windows: int = 8
    offset_reach: float = 0.5
    range_reach: float = 0.1
    looks: int = 4


@dataclass(frozen=True)
class Lesson:
    """What a block learns from.

    Attributes:
        run: The block as a function of its tensors.
        inputs: As the quantized blocks before give them, fp32 [samples, seqlen, hidden_size]; this rank's share.
        targets: The original block's outputs on its own inputs, same shape.
        seed: Of the order of windows.
        samples: Windows of all ranks.
        ranks: Among which they are shared.
    """

    run: RunBlock
    inputs: Tensor
    targets: Tensor
    seed: int
    samples: int
    ranks: Ranks = ALONE

    def own(self, chosen: Tensor) -> Tensor:
        """Where in `inputs` those of some windows are that are this rank's, int64."""
        share = self.ranks.share(self.samples)
        own: Tensor = chosen[(chosen >= share.start) & (chosen < share.stop)] - share.start
        return own


@dataclass(frozen=True)
class Learned:
    """What learning gave.

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

    The error is the mean square of the outputs' difference, each token's over the mean square of its residual stream,
    since the next norm divides by it; over the same of what the block adds to the stream.

    Args:
        tensors: All of the block, fp32, by name relative to it; `<linear>.weight` scaled already.
        start: Codes and grids of its linears, where to begin.
        lesson: What to learn from.
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
    """One step down the signed gradient of the error on some windows; `left` is its share of what can be reached."""
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
    """How far a block's outputs are from what they should be, as a function of what is learned."""

    _lesson: Lesson
    _tensors: Mapping[str, Tensor]
    _packs: Sequence[_Pack]
    _token_weights: Tensor  # [samples, seqlen, 1]

    @classmethod
    def of_block(cls, lesson: Lesson, tensors: Mapping[str, Tensor], packs: Sequence[_Pack]) -> _BlockError:
        """Weighs the tokens, see `learn_codes`."""
        tiny = torch.finfo(torch.float32).tiny
        weights = 1 / lesson.targets.square().mean(dim=-1, keepdim=True).clamp(min=tiny)
        per_window = lesson.inputs.shape[1] * lesson.inputs.shape[2]
        added = lesson.ranks.total(float((weights * (lesson.targets - lesson.inputs).square()).sum()))
        return cls(lesson, tensors, packs, weights / max(added / (lesson.samples * per_window), tiny))

    def weights(self) -> dict[str, Tensor]:
        """The block's tensors with the linears that the present codes and grids stand for."""
        tensors = dict(self._tensors)
        for pack in self._packs:
            tensors.update(pack.weights(tensors))
        return tensors

    def gradients(self, learned: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
        """Of the error on some windows, every rank's part of them summed."""
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
        """On some of this rank's windows."""
        # The other kernels of attention add gradients in an order that differs from run to run.
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self._lesson.run(weights, self._lesson.inputs[chosen])
        return ((outputs - self._lesson.targets[chosen]).square() * self._token_weights[chosen]).mean()

    def of_all(self, at_once: int) -> float:
        """On all windows of all ranks."""
        pieces = torch.arange(len(self._lesson.inputs)).split(at_once)
        with torch.no_grad():
            weights = self.weights()
            own = sum(float(self.of(weights, piece)) * len(piece) for piece in pieces if len(piece))
        return self._lesson.ranks.total(own) / self._lesson.samples


@dataclass
class _Pack:
    """Linears whose groups have one length G, learned as one tensor of R groups: few large operations are faster.

    Attributes:
        names: Of the linears.
        rows: Groups of each.
        scheme: Bits, groups, zero points.
        weight: [R, G].
        ends: Lower and upper ends of the ranges where learning starts, [2, R, 1].
        place: What is added to weight / scale + zero before rounding where learning starts, [R, G].
        offset: Added to that; learned.
        factors: Of the ends; learned, [2, R, 1].
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
        """Where the search left them."""
        grouped = [to_groups(weight, scheme).flatten(0, 1) for weight in weights.values()]
        weight, last = torch.cat(grouped), scheme.levels - 1
        scales = torch.cat([start[name].grid.scales.flatten(0, 1) for name in weights])
        zeros = torch.cat([start[name].grid.zeros.flatten(0, 1) for name in weights])
        codes = torch.cat([to_groups(start[name].codes, scheme).flatten(0, 1) for name in weights])
        exact = weight / scales + zeros
        # A weight beyond its range is where it should be: its nearest code is the last one.
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
        """What the present codes stand for, by `<linear>.weight`, [N, K]."""
        scales, zeros, codes = self._now()
        for name, grouped in zip(self.names, ((codes - zeros) * scales).split(self.rows), strict=True):
            rows, columns = tensors[f"{name}.weight"].shape
            yield f"{name}.weight", from_groups(grouped.view(rows, -1, grouped.shape[-1]), columns)

    def rounded(self, tensors: Mapping[str, Tensor]) -> dict[str, Rounded]:
        """The present codes and grids, by linear."""
        found = {}
        with torch.no_grad():
            parts = [value.split(self.rows) for value in self._now()]
        for name, scales, zeros, codes in zip(self.names, *parts, strict=True):
            rows, columns = tensors[f"{name}.weight"].shape
            grid = GroupGrid(scales.view(rows, -1, 1), zeros.view(rows, -1, 1))
            found[name] = Rounded(from_groups(codes.view(rows, -1, codes.shape[-1]), columns), grid)
        return found

    def state(self) -> tuple[Tensor, Tensor]:
        """What was learned so far."""
        return self.offset.detach().clone(), self.factors.detach().clone()

    def restore_(self, state: tuple[Tensor, Tensor]) -> None:
        """Goes back to what `state` gave."""
        with torch.no_grad():
            self.offset.copy_(state[0])
            self.factors.copy_(state[1])

    def _now(self) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes and zero points [R, 1], codes [R, G]."""
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
    """Windows in an order drawn anew whenever all were seen."""

    _count: int
    _at_once: int
    _generator: torch.Generator
    _left: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, count: int, at_once: int, seed: int) -> WindowDraws:
        """Before the first: `at_once` of `count` windows at a time."""
        return cls(count, min(at_once, count), torch.Generator("cpu").manual_seed(seed))

    def next_(self) -> Tensor:
        """Indices of the next ones, int64 [windows]."""
        if len(self._left) < self._at_once:
            self._left += torch.randperm(self._count, generator=self._generator, device="cpu").tolist()
        chosen, self._left = self._left[: self._at_once], self._left[self._at_once :]
        return torch.tensor(chosen)


class _Through(torch.autograd.Function):
    """change(value) on the way forward, the identity on the way back (straight-through estimator)."""

    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return change(value)

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def with_its_gradient(value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(value), with the gradient of the value itself."""
    changed: Tensor = _Through.apply(value, change)  # type: ignore[no-untyped-call]
    return changed
