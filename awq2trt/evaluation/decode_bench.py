"""How fast a decoder answers: time of a token, time to the first one, memory, and how far from the memory's bandwidth.

In: a model that is loaded. Out: a `BenchRow`. The method of AWQ's paper (arXiv:2306.00978, section 5.4): batch 1, a
prompt of 4 tokens, 200 tokens one after another, the median of their latencies. Greedy, so that the token is chosen
where the scores are. A call returns when its token is on the host, so wall time is what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from awq2trt.runtime.backend import Backend, ChoosingBackend

FIRST_TOKEN_LENGTHS: Final = (128, 512, 2048)
"""Prompts whose time to the first token is measured."""

_REPEATS: Final = 3

_WARM_UP_TOKENS: Final = 8


@dataclass(frozen=True)
class LaterTokens:
    """Tokens that stand further on in a conversation, where attention reads more.

    Attributes:
        end: Position behind the last of them.
        token_ms: Their median latency.
        floor_ms: As in `BenchRow`, there.
    """

    end: int
    token_ms: float
    floor_ms: float | None = None


@dataclass(frozen=True)
class BenchRow:
    """One executor of a model.

    Attributes:
        executor: What ran it.
        token_ms: Latency of a token; the median over all, or, where only whole answers can be timed, their mean.
        first_token_ms: Prompt's length -> time to the first token.
        memory_bytes: Of the device, at the peak; None where it is not known.
        floor_ms: Bytes of the weights and of the cache that a token reads, over the device's bandwidth; None where that
            is not known.
        later: Tokens further on in a conversation, as far as they were asked for.
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
        """Of one conversation."""
        return 1e3 / self.token_ms if self.token_ms else None

    @property
    def share(self) -> float | None:
        """Floor over time; 1 is perfect."""
        return self.floor_ms / self.token_ms if self.floor_ms and self.token_ms else None


@dataclass(frozen=True)
class KernelTime:
    """Kernels of one name, in one token.

    Attributes:
        name: Of the kernel, its parameters left out.
        us: All of them together.
        calls: How many.
    """

    name: str
    us: float
    calls: float


@dataclass(frozen=True)
class BenchReport:
    """One run of the benchmark.

    Attributes:
        model: What was measured.
        device: Where.
        versions: Of what took part.
        date: ISO.
        command: That repeats it.
        prompt: Tokens of the prompt.
        tokens: Generated.
        capacity: Positions of the cache.
        batch: Conversations at once.
        bandwidth_bytes_per_s: Of a large copy, read and written; None on a CPU.
        rows: One for each executor.
        kernels: Of the first executor, the longest first; empty if not asked for.
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
    """Median latency of a token.

    Args:
        backend: Its cache holds prompt and answer.
        prompt: Length of the prompt.
        tokens: Of the answer.
    """
    _answer(backend, prompt, min(tokens, _WARM_UP_TOKENS))
    return statistics.median(_answer(backend, prompt, tokens))


def measure_first_token_ms(backend: Backend, lengths: Sequence[int]) -> dict[int, float]:
    """Prompt's length -> median time to the first token, for those that the cache holds."""
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
    """Where a token's time goes on the GPU, as PyTorch's profiler sees it, inside captured graphs too.

    Args:
        backend: On a GPU.
        prompt: Length of the prompt.
        tokens: Over which times are averaged.
    """
    import torch

    backend.reset()
    token = _choose(backend, _prompt(backend, prompt))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(tokens):
            token = _choose(backend, [token])
    found: dict[str, tuple[float, int]] = {}
    for event in profile.events():
        name = _short_name(event.name)
        us, calls = found.get(name, (0.0, 0))
        found[name] = (us + _device_us(event), calls + 1)
    rows = [KernelTime(name, us / tokens, calls / tokens) for name, (us, calls) in found.items() if us]
    return tuple(sorted(rows, key=lambda row: -row.us))


def _answer(backend: Backend, prompt: int, tokens: int) -> list[float]:
    """Milliseconds of every token of one answer."""
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
    """Any tokens: what they are makes no difference to the time."""
    return [(7 * index + 3) % backend.vocab_size for index in range(length)]


def _short_name(name: str) -> str:
    """A kernel's name without its return type, parameters and template arguments."""
    plain = name.removeprefix("void ").partition("(")[0].partition("<")[0]
    return plain.rpartition("::")[2] if plain.count("::") > 1 else plain


def _device_us(event: Any) -> float:
    """Of one kernel; PyTorch renamed the field in 2.4."""
    return float(event.device_time_total if hasattr(event, "device_time_total") else event.cuda_time_total)
