"""Formats a benchmark of complete models as lines, JSON, Markdown and a plot."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from awq2trt.errors import ToolError
from awq2trt.evaluation.decode_bench import FIRST_TOKEN_LENGTHS, BenchReport, BenchRow, LaterTokens

_KERNELS_SHOWN: Final = 15


def bench_lines(report: BenchReport) -> Iterator[str]:
    """Formats what `awq2trt bench DIR` prints."""
    yield from _heads(report)
    first = "".join(f"{f'first at {length}':>15}" for length in FIRST_TOKEN_LENGTHS)
    yield f"{'executor':44} {'ms/token':>9} {'tokens/s':>9}{first} {'GiB':>6} {'floor ms':>9} {'share':>6}"
    for row in report.rows:
        yield (row.failed and f"{row.executor:44} not measured: {row.failed}") or _row_line(row)
    if _has_later(report):
        yield ""
        yield f"{'executor':44} {'end':>6} {'ms/token':>9} {'tokens/s':>9} {'floor ms':>9} {'share':>6}"
        for row in report.rows:
            for later in row.later:
                yield " ".join((f"{row.executor:44}", *_later_columns(later)))
    if report.kernels:
        yield ""
        yield from kernel_lines(report)


def bench_markdown(report: BenchReport) -> str:
    """Formats a table for documents, with device, versions, date and command."""
    first = " | ".join(f"first token at {length}, ms" for length in FIRST_TOKEN_LENGTHS)
    lines = [
        *(f"{line}  " for line in _heads(report)),
        "",
        f"| executor | ms a token | tokens/s | {first} | GiB | share of the floor |",
        "|" + " --- |" * (5 + len(FIRST_TOKEN_LENGTHS)),
    ]
    for row in report.rows:
        times = " | ".join(_number(row.first_token_ms.get(length), 1) for length in FIRST_TOKEN_LENGTHS)
        numbers = f"{_number(row.token_ms, 2)} | {_number(row.tokens_per_s, 1)} | {times} | {_gib(row)}"
        lines.append(f"| {row.executor} | {numbers} | {_number(row.share, 2)} |")
    if _has_later(report):
        lines += ["", "| executor | end of the conversation | ms a token | tokens/s | floor, ms | share |"]
        lines.append("|" + " --- |" * 6)
        lines += [
            f"| {row.executor} | {' | '.join(column.strip() for column in _later_columns(later))} |"
            for row in report.rows
            for later in row.later
        ]
    return "\n".join(lines) + "\n"


def bench_json(report: BenchReport) -> str:
    """Formats all numbers as JSON."""
    return json.dumps(asdict(report), indent=1) + "\n"


def plot_bench(report: BenchReport, path: Path) -> None:
    """Draws tokens per second as a bar for each executor, and the floor.

    Raises:
        ToolError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ToolError("matplotlib is not installed.", where="--plot", fix="pip install matplotlib") from error
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = [row for row in report.rows if row.tokens_per_s]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.6 * len(rows)), constrained_layout=True)
    axes.barh([row.executor for row in rows], [row.tokens_per_s for row in rows])
    floors = [row.floor_ms for row in rows if row.floor_ms]
    if floors:
        axes.axvline(1e3 / floors[0], linestyle="--", color="black", label="weight bytes over bandwidth")
        axes.legend()
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s")
    axes.set_title(f"{report.model}, {report.device}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def kernel_lines(report: BenchReport) -> Iterator[str]:
    """Formats where a token's time goes."""
    total = sum(kernel.us for kernel in report.kernels)
    calls = sum(kernel.calls for kernel in report.kernels)
    yield f"a token of {report.rows[0].executor}: {total:.0f} us in {calls:.0f} kernels"
    yield f"{'us':>8} {'share':>6} {'calls':>6}  kernel"
    for kernel in report.kernels[:_KERNELS_SHOWN]:
        yield f"{kernel.us:8.1f} {kernel.us / total:6.1%} {kernel.calls:6.1f}  {kernel.name}"
    if len(report.kernels) > _KERNELS_SHOWN:
        rest = report.kernels[_KERNELS_SHOWN:]
        us, calls = sum(kernel.us for kernel in rest), sum(kernel.calls for kernel in rest)
        yield f"{us:8.1f} {us / total:6.1%} {calls:6.1f}  {len(rest)} others"


def _heads(report: BenchReport) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    bandwidth = report.bandwidth_bytes_per_s
    copy = f"; copy {bandwidth / 1e12:.2f} TB/s" if bandwidth else ""
    yield f"{report.model} on {report.device}, {report.date}, {versions}"
    yield (
        f"batch {report.batch}, prompt of {report.prompt} tokens, {report.tokens} generated, cache of "
        f"{report.capacity}{copy}"
    )
    yield report.command


def _row_line(row: BenchRow) -> str:
    first = "".join(f"{_number(row.first_token_ms.get(length), 1):>15}" for length in FIRST_TOKEN_LENGTHS)
    speed = f"{_number(row.token_ms, 2):>9} {_number(row.tokens_per_s, 1):>9}"
    return f"{row.executor:44} {speed}{first} {_gib(row):>6} {_number(row.floor_ms, 2):>9} {_number(row.share, 2):>6}"


def _has_later(report: BenchReport) -> bool:
    return any(row.later for row in report.rows)


def _later_columns(later: LaterTokens) -> tuple[str, ...]:
    share = later.floor_ms / later.token_ms if later.floor_ms else None
    return (
        f"{later.end:>6}",
        f"{_number(later.token_ms, 2):>9}",
        f"{_number(1e3 / later.token_ms, 1):>9}",
        f"{_number(later.floor_ms, 2):>9}",
        f"{_number(share, 2):>6}",
    )


def _gib(row: BenchRow) -> str:
    return _number(None if row.memory_bytes is None else row.memory_bytes / 2**30, 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
