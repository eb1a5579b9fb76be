"""Predicts for every target whether a model fits, and how fast it can decode at most and by expectation.

In: a `Footprint`, a `Target`. Out: an `Outlook`, and a table of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from awq2trt.engine.predict import Footprint
from awq2trt.engine.published_speeds import published_line
from awq2trt.target import Target

_GIB: Final = 1 << 30

_SYSTEM_BYTES: Final = 3 * _GIB // 2
"""Memory that a Jetson keeps for itself: carve-outs, the kernel, Ubuntu without a desktop. This is an assumption."""

_BEST_SHARE: Final = 0.95
"""Share of the memory's bandwidth that our kernel reaches on an H100 with the largest linears, which take so long that
the latency of a launch hardly matters. At a Jetson's bandwidth all linears take that long. It has not been measured
there."""


@dataclass(frozen=True)
class Outlook:
    """What to expect of a model on a target.

    Attributes:
        target: The target; its memory and bandwidth are known.
        footprint: The model.
        usable_bytes: The target's memory minus what the system keeps.
        swap_bytes: Swap that building needs in addition to the memory; 0 for none.
        fits: Whether the model runs there; building can use swap, running cannot.
        tokens_per_s: Fastest decoding that the memory's bandwidth allows, with an empty cache and with a full one.
        expected_tokens_per_s: Expected decoding with a full cache: from the speed of other software's kernels on this
            device to the speed that ours reach if launches cost nothing; None if nothing was published about the
            device.
    """

    target: Target
    footprint: Footprint

    @property
    def usable_bytes(self) -> int:
        return (self.target.memory_bytes or 0) - (_SYSTEM_BYTES if self.target.is_kit else 0)

    @property
    def fits(self) -> bool:
        return self.footprint.run_bytes <= self.usable_bytes

    @property
    def swap_bytes(self) -> int:
        return max(0, self.footprint.build_bytes - self.usable_bytes) if self.target.is_kit else 0

    @property
    def tokens_per_s(self) -> tuple[float, float]:
        bandwidth = self.target.bandwidth_bytes_per_s or 0.0
        weights = self.footprint.read_bytes
        return bandwidth / weights, bandwidth / (weights + self.footprint.cache_bytes)

    @property
    def expected_tokens_per_s(self) -> tuple[float, float] | None:
        bandwidth = self.target.bandwidth_bytes_per_s or 0.0
        line = published_line(bandwidth)
        if line is None:
            return None
        floor_s = (self.footprint.read_bytes + self.footprint.cache_bytes) / bandwidth
        return 1 / line.token_s(floor_s), _BEST_SHARE / floor_s


def outlook_lines(outlooks: Sequence[Outlook]) -> Iterator[str]:
    """Formats a table of one model on several targets."""
    kits = [outlook for outlook in outlooks if outlook.target.is_kit]
    for footprint in dict.fromkeys(outlook.footprint for outlook in (kits or outlooks)):
        yield (
            f"weights {_gib(footprint.weights_bytes)}, cache {_gib(footprint.cache_bytes)}, activations of the longest "
            f"prefill {_gib(footprint.activation_bytes)} GiB; computed, not measured"
        )
    yield _row("target", "GiB", "to run", "to build", "tokens/s, at most", "expected, full", "fits")
    for outlook in outlooks:
        memory = str((outlook.target.memory_bytes or 0) >> 30)
        build = _gib(outlook.footprint.build_bytes) if outlook.target.is_kit else "-"
        empty, full = outlook.tokens_per_s
        speed = f"{empty:.1f} .. {full:.1f}"
        run = _gib(outlook.footprint.run_bytes)
        expected = outlook.expected_tokens_per_s
        likely = f"{expected[0]:.1f} .. {expected[1]:.1f}" if expected else "-"
        yield _row(outlook.target.name, memory, run, build, speed, likely, _verdict(outlook))


def _row(target: str, *columns: str) -> str:
    memory, run, build, speed, expected, verdict = columns
    return f"{target:15} {memory:>4}  {run:>7}  {build:>8}  {speed:>18}  {expected:>14}  {verdict}"


def _verdict(outlook: Outlook) -> str:
    if not outlook.fits:
        return "no"
    return f"yes, with {_gib(outlook.swap_bytes)} GiB of swap to build" if outlook.swap_bytes else "yes"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f}" if size_bytes < 10 * _GIB else f"{size_bytes / _GIB:.1f}"
