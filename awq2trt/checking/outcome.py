"""What `awq2trt check` found, of the stages or of golden outputs: what the stage hands over and the report prints."""

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
    """What `awq2trt check` found.

        outcome = awq2trt.check("out")
        print(outcome.result.passed)

    Attributes:
        result: The comparison of each stage with the one before it.
        commands: polygraphy commands that repeat this check.
        cut: The nodes that fail, if they were asked for and there are any.
    """

    result: CheckResult
    commands: tuple[Command, ...]
    cut: Cut | None = None


@dataclass(frozen=True)
class GoldenOutcome:
    """What `awq2trt check --golden` found.

        print(awq2trt.check_golden("out/onnx").executor)

    Attributes:
        results: Of ONNX Runtime, call by call.
        executor: What it ran on.
        engine: Of the engine, where there is one and this machine can run it.
        engine_skipped: Why the engine was not run; None if it was, or there is none.
    """

    results: tuple[GoldenResult, ...]
    executor: str = "ONNX Runtime, CPU"
    engine: tuple[GoldenResult, ...] = ()
    engine_skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Every call of everything that was run."""
        return all(result.passed for result in (*self.results, *self.engine))
