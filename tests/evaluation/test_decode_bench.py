"""Where a token's time goes, by kernels that start before the one before them has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from awq2trt.evaluation import decode_bench
from awq2trt.evaluation.decode_bench import KernelTime, profile_kernels

OURS = "void awq2trt::(anonymous namespace)::decode_kernel<__half, true>(awq2trt::LinearParams<__half>, int)"


def event(name: str, start: float, end: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end))


class Backend:
    """Answers with one token, whatever it is asked."""

    vocab_size = 7

    def reset(self) -> None:
        pass

    def choose(self, tokens: list[int]) -> int:
        return len(tokens)


def test_times_of_kernels_that_overlap_add_up_to_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event("Memcpy DtoH", 130.0, 132.0), event(OURS, 100.0, 110.0), event(OURS, 102.0, 125.0)]

    class Profile:
        def __init__(self, activities: object) -> None: ...
        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None: ...
        def events(self) -> list[SimpleNamespace]:
            return events

    monkeypatch.setattr("torch.profiler.profile", Profile)
    monkeypatch.setattr(decode_bench, "_choose", lambda backend, tokens: backend.choose(tokens))
    rows = profile_kernels(Backend(), prompt=4, tokens=2)  # type: ignore[arg-type]
    assert rows == (KernelTime("awq2trt::decode_kernel", 12.5, 1.0), KernelTime("Memcpy DtoH", 1.0, 0.5))
