"""The findings of `awq2trt check`, about stages or golden outputs, which the stage returns and the report prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awq2trt.checking.bisect import Cut
    from awq2trt.checking.polygraphy_files import Command
    from awq2trt.checking.results import CheckResult
    from awq2trt.runtime.golden import GoldenResult


@dataclass(frozen=True)
class CheckOutcome:
    """The findings of `awq2trt check`.

        outcome = awq2trt.check("out")
        print(outcome.result.passed)

    Attributes:
        result: The comparison of each stage with the one before it.
        commands: polygraphy commands that repeat this check.
        cut: The nodes that fail, if they were wanted and there are any.
    """

    result: CheckResult
    commands: tuple[Command, ...]
    cut: Cut | None = None


@dataclass(frozen=True)
class GoldenOutcome:
    """The findings of `awq2trt check --golden`.

        print(awq2trt.check_golden("out/onnx").executor)

    Attributes:
        results: Results of ONNX Runtime, call by call.
        executor: The provider or device that it ran on.
        engine: Results of the engine, if there is one and this machine can run it.
        engine_skipped: Why the engine was not run; None if it was run, or there is none.
    """

    results: tuple[GoldenResult, ...]
    executor: str = "ONNX Runtime, CPU"
    engine: tuple[GoldenResult, ...] = ()
    engine_skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every call passed, on everything that was run."""
        return all(result.passed for result in (*self.results, *self.engine))
