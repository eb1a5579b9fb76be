"""Measures how fast a decoder answers: time per token, time to the first token, memory, and share of the bandwidth.

In: a model that is loaded. Out: a `BenchRow`. The method of AWQ's paper (arXiv:2306.00978, section 5.4): batch 1, a
prompt of 4 tokens, 200 tokens one after another, the median of their latencies. Decoding is greedy, so that tokens are
chosen on the scores' device. A call returns when its token is on the host, so wall time is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from awq2trt.runtime.backend import Backend, ChoosingBackend

FIRST_TOKEN_LENGTHS: Final = (128, 512, 2048)
"""Prompt lengths for which the time to the first token is measured."""

_REPEATS: Final = 3

_WARM_UP_TOKENS: Final = 8


@dataclass(frozen=True)
class LaterTokens:
    """Tokens later in a conversation, where attention reads more.

    Attributes:
        end: Position behind the last of them.
        token_ms: Their median latency.
        floor_ms: The floor as in `BenchRow`, for these tokens.
    """

    end: int
    token_ms: float
    floor_ms: float | None = None


@dataclass(frozen=True)
class BenchRow:
    """The result for one executor of a model.

    Attributes:
        executor: What ran it.
        token_ms: Latency of a token: the median over all or, if only complete answers can be timed, their mean.
        first_token_ms: Time to the first token, by length of the prompt.
        memory_bytes: Peak memory on the device; None if unknown.
        floor_ms: Bytes of the weights and of the cache that a token reads, over the device's bandwidth; None if that is
            unknown.
        later: Tokens later in a conversation, if they were wanted.
        failed: Why it was not measured; None if it was.
    """

    executor: str
    token_ms: float | None = None
    first_token_ms: dict[int, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    floor_ms: float | None = None
    later: tuple[LaterTokens, ...] = ()
    failed: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of one conversation."""
        return 1e3 / self.token_ms if self.token_ms else None

    @property
    def share(self) -> float | None:
        """Floor divided by time; 1 is perfect."""
        return self.floor_ms / self.token_ms if self.floor_ms and self.token_ms else None


@dataclass(frozen=True)
class KernelTime:
    """Time of the kernels with one name, within one token.

    Attributes:
        name: Name of the kernel without its parameters.
        us: Time of all its calls together, without what they spend beside the kernel before.
        calls: Number of calls.
    """

    name: str
    us: float
    calls: float


@dataclass(frozen=True)
class BenchReport:
    """One run of the benchmark.

    Attributes:
        model: What was measured.
        device: The device that it ran on.
        versions: Versions of the software involved.
        date: Date in ISO format.
        command: Command that repeats the run.
        prompt: Tokens in the prompt.
        tokens: Number of generated tokens.
        capacity: Positions in the cache.
        batch: Number of conversations at once.
        bandwidth_bytes_per_s: Bytes that a large copy reads and writes per second; None on a CPU.
        rows: The results, one for each executor.
        kernels: Kernels of the first executor, the longest first; empty if they were not wanted.
    """

    model: str
    device: str
    versions: dict[str, str]
    date: str
    command: str
    prompt: int
    tokens: int
    capacity: int
    batch: int
    bandwidth_bytes_per_s: float | None
    rows: tuple[BenchRow, ...]
    kernels: tuple[KernelTime, ...] = ()


def measure_token_ms(backend: Backend, prompt: int, tokens: int) -> float:
    """Measures the median latency of a token.

    Args:
        backend: A backend whose cache can hold prompt and answer.
        prompt: Length of the prompt.
        tokens: Length of the answer.
    """
    _answer(backend, prompt, min(tokens, _WARM_UP_TOKENS))
    return statistics.median(_answer(backend, prompt, tokens))


def measure_first_token_ms(backend: Backend, lengths: Sequence[int]) -> dict[int, float]:
    """Measures the median time to the first token, for all prompt lengths that the cache can hold."""
    times = {}
    for length in lengths:
        if length > backend.capacity:
            continue
        seconds = []
        for _ in range(_REPEATS + 1):
            backend.reset()
            started = time.perf_counter()
            _choose(backend, _prompt(backend, length))
            seconds.append(time.perf_counter() - started)
        times[length] = 1e3 * statistics.median(seconds[1:])
    return times


def profile_kernels(backend: Backend, prompt: int, tokens: int) -> tuple[KernelTime, ...]:
    """Measures where a token's time goes on the GPU, by PyTorch's profiler, which also sees into captured graphs.

    Args:
        backend: A backend on a GPU.
        prompt: Length of the prompt.
        tokens: Number of tokens over which times are averaged.
    """
    import torch

    backend.reset()
    token = _choose(backend, _prompt(backend, prompt))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(tokens):
            token = _choose(backend, [token])
    rows = [KernelTime(name, us / tokens, calls / tokens) for name, us, calls in _times_by_name(profile.events()) if us]
    return tuple(sorted(rows, key=lambda row: -row.us))


def _times_by_name(events: Iterable[Any]) -> Iterator[tuple[str, float, int]]:
    """Yields the name, the microseconds and the number of calls of each kind of kernel.

    A kernel of ours starts while the one before it still runs, and waits for it: what counts is by how much it ends
    later, so that the times add up to that of the token.
    """
    found: dict[str, tuple[float, int]] = {}
    latest = 0.0
    for event in sorted(events, key=lambda event: float(event.time_range.end)):
        us, calls = found.get(_short_name(event.name), (0.0, 0))
        start, end = float(event.time_range.start), float(event.time_range.end)
        found[_short_name(event.name)] = (us + end - max(start, latest), calls + 1)
        latest = end
    for name, (us, calls) in found.items():
        yield name, us, calls


def _answer(backend: Backend, prompt: int, tokens: int) -> list[float]:
    """Returns the milliseconds of every token of one answer."""
    backend.reset()
    token = _choose(backend, _prompt(backend, prompt))
    times = []
    for _ in range(tokens):
        started = time.perf_counter()
        token = _choose(backend, [token])
        times.append(1e3 * (time.perf_counter() - started))
    return times


def _choose(backend: Backend, tokens: Sequence[int]) -> int:
    if isinstance(backend, ChoosingBackend):
        return backend.choose(tokens)
    return int(backend.forward(tokens).argmax())


def _prompt(backend: Backend, length: int) -> list[int]:
    """Returns arbitrary tokens, since their values do not change the time."""
    return [(7 * index + 3) % backend.vocab_size for index in range(length)]


def _short_name(name: str) -> str:
    """A kernel's name without its return type, parameters and template arguments."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "").partition("(")[0].partition("<")[0]
    return plain.rpartition("::")[2] if plain.count("::") > 1 else plain
