"""The study's tables as Markdown, CSV and plots."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from study_tables import PERPLEXITY, Cell, Table
from study_walk import Measured, Setting

from awq2trt import __version__


@dataclass(frozen=True)
class Results:
    """What is measured so far.

    Attributes:
        rows: By setting.
        vocab_size: Of the model: the perplexity of a uniform guess.
    """

    rows: Mapping[Setting, Measured]
    vocab_size: int

    def values(self, cell: Cell) -> list[float]:
        """A cell's figures, one for every draw that is measured."""
        found = [self.rows[setting] for setting in cell.settings if setting in self.rows]
        if cell.what == PERPLEXITY:
            return [measured.perplexity[cell.test] for measured in found]
        return [float(getattr(measured, cell.what)) for measured in found]


def write_markdown(path: Path, model: str, tables: Sequence[Table], results: Results) -> None:
    """All tables, each with its command and what the paper has."""
    seconds = sum(row.quantize_seconds + row.evaluate_seconds for row in results.rows.values())
    lines = [
        f"# Study of {model}",
        "",
        f"awq2trt {__version__}, torch {torch.__version__}, Python {platform.python_version()}, fp32 on the CPU "
        f"({os.cpu_count()} cores). Perplexity on the first 8 windows of 1,024 tokens of WikiText-2 raw test, no BOS; "
        "calibrated on 32 windows of 512 tokens of WikiText-2 raw validation; unless a table says otherwise. "
        "A figure of several draws of calibration windows is their mean, with the lowest and the highest.",
        "",
        f"A perplexity above {results.vocab_size:,}, the size of the vocabulary, is worse than a uniform guess: the "
        "model is destroyed, and the order of such figures means nothing.",
        "",
        f"{len(results.rows)} figures, {seconds / 60:.0f} minutes of one core's time without what walks share.",
    ]
    for table in tables:
        lines += ["", *_markdown_table(table, model, results)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown_table(table: Table, model: str, results: Results) -> Iterator[str]:
    labels = len(table.lines[0][0])
    yield f"## {table.title}"
    yield ""
    yield f"`python tools/study.py --tables {table.name} --model {model}`"
    yield ""
    yield "| " + " | ".join(table.headers) + " |"
    yield "|" + "---|" * labels + "---:|" * (len(table.headers) - labels)
    for names, cells in table.lines:
        yield "| " + " | ".join([*names, *(_cell(cell, results) for cell in cells)]) + " |"
    yield ""
    yield f"In the paper: {table.paper}"


def _cell(cell: Cell, results: Results) -> str:
    values = results.values(cell)
    if not cell.settings:
        return ""
    if not values:
        return "not measured"
    mean = sum(values) / len(values)
    if cell.what == "changed_steps":
        return f"{mean:.1%}"
    if cell.what == "step_ratio":
        return f"{mean:.3f}"
    if min(values) > results.vocab_size:
        return "worse than a guess"
    text = f"{mean:.2f}" if mean < 1000 else f"{mean:,.0f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.2f} to {max(values):.2f}, {len(values)} draws)"


def write_csv(path: Path, table: Table, results: Results) -> None:
    """Every figure of a table in a line of its own, draws apart."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "column", "draw", "what", "value", "quantize_cpu_s", "evaluate_cpu_s", "setting"])
        for names, cells in table.lines:
            columns = table.headers[len(names) :]
            for column, cell in zip(columns, cells, strict=True):
                for setting in cell.settings:
                    if setting not in results.rows:
                        continue
                    row = results.rows[setting]
                    (value,) = results.values(Cell((setting,), cell.what, cell.test))
                    draw = setting.calibration.draw if setting.calibration else ""
                    seconds = [f"{row.quantize_seconds:.1f}", f"{row.evaluate_seconds:.1f}"]
                    writer.writerow([" / ".join(names), column, draw, cell.what, value, *seconds, setting.name()])


def plot(path: Path, table: Table, results: Results) -> None:
    """Perplexities: lines over the first label of a curve, bars otherwise.

    Destroyed models are left out; a table of nothing else has no plot.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    labels = len(table.lines[0][0])
    columns = [i for i in range(len(table.headers) - labels) if table.lines[0][1][i].what == PERPLEXITY]
    if not any(_points(table, column, results) for column in columns):
        return
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    for place, column in enumerate(columns):
        points = _points(table, column, results)
        means = [sum(values) / len(values) for _, _, values in points]
        spread = [
            [mean - min(values) for mean, (_, _, values) in zip(means, points, strict=True)],
            [max(values) - mean for mean, (_, _, values) in zip(means, points, strict=True)],
        ]
        name = table.headers[labels + column]
        if table.curve:
            at = [float(names[0]) for _, names, _ in points]
            axes.errorbar(at, means, yerr=spread, marker="o", capsize=3, label=name)
        else:
            width = 0.8 / len(columns)
            places = [index + (place - (len(columns) - 1) / 2) * width for index, _, _ in points]
            axes.bar(places, means, width, yerr=spread, capsize=2, label=name)
    if not table.curve:
        names = [", ".join(names).replace("`", "") for names, _ in table.lines]
        axes.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
    else:
        axes.set_xlabel(table.headers[0])
    axes.set_yscale("log")
    axes.set_ylabel("perplexity")
    axes.set_title(table.title.replace("`", ""))
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _points(table: Table, column: int, results: Results) -> list[tuple[int, tuple[str, ...], list[float]]]:
    """Line's index, its labels, and the figures of all draws."""
    return [
        (index, names, values)
        for index, (names, cells) in enumerate(table.lines)
        if (values := results.values(cells[column])) and min(values) <= results.vocab_size
    ]
