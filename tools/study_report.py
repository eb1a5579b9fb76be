"""Writes the study's tables as Markdown, CSV and plots."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from study_claims import Claim, all_claims
from study_tables import PERPLEXITY, Cell, Table
from study_walk import Measured, Setting

from awq2trt.version import __version__


@dataclass(frozen=True)
class Results:
    """The figures measured so far.

    Attributes:
        rows: Rows by setting.
        vocab_size: The model's vocabulary size, which is the perplexity of a uniform guess.
    """

    rows: Mapping[Setting, Measured]
    vocab_size: int

    def values(self, cell: Cell) -> list[float]:
        """A cell's figures, one for every draw that was measured."""
        found = [self.rows[setting] for setting in cell.settings if setting in self.rows]
        if cell.what == PERPLEXITY:
            return [measured.perplexity[cell.test] for measured in found]
        return [float(getattr(measured, cell.what)) for measured in found]

    def mean(self, cell: Cell) -> float | None:
        """Mean of all draws that were measured; None without any."""
        values = self.values(cell)
        return sum(values) / len(values) if values else None


def write_markdown(path: Path, model: str, tables: Sequence[Table], results: Results) -> None:
    """Writes the paper's orderings and all tables, each with its command, any plot, and the paper's figures."""
    devices = Counter(row.device for row in results.rows.values())
    computed = "; ".join(f"{count} figures on {device}" for device, count in devices.most_common())
    lines = [
        f"# Study of {model}",
        "",
        f"awq2trt {__version__}, in fp32: {computed}. Perplexity on the first 8 windows of 1,024 tokens of WikiText-2 "
        "raw test, no BOS; calibrated on 32 windows of 512 tokens of WikiText-2 raw validation; unless a table says "
        "otherwise. A figure of several draws of calibration windows is their mean, with the lowest and the highest.",
        "",
        f"A perplexity above {results.vocab_size:,}, the size of the vocabulary, is worse than a uniform guess: the "
        "model is destroyed, and the order of such figures means nothing.",
    ]
    lines += ["", *markdown_claims(all_claims(), results)]
    for table in tables:
        lines += ["", *_markdown_table(table, model, results)]
        if (path.parent / f"{table.name}.png").is_file():
            lines += ["", f"![{table.title.replace('`', '')}]({table.name}.png)"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def markdown_claims(claims: Iterable[Claim], results: Results) -> Iterator[str]:
    """Lists which of the paper's orderings hold, except those with a missing figure."""
    yield "## The paper's orderings"
    yield ""
    yield "| paper | lower perplexity < higher | here | |"
    yield "|---|---|---:|---|"
    for claim in claims:
        low, high = results.mean(claim.better), results.mean(claim.worse)
        if low is None or high is None:
            continue
        if claim.better_base and claim.worse_base:
            low -= results.mean(claim.better_base) or 0.0
            high -= results.mean(claim.worse_base) or 0.0
        verdict = "holds" if low < high else f"**differs**: {claim.why}".removesuffix(": ")
        verdict = "means nothing" if low > results.vocab_size else verdict
        yield f"| {claim.where} | {claim.text} | {_short(low)} < {_short(high)} | {verdict} |"


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


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
    if len(values) == 1:
        return _short(mean)
    return f"{_short(mean)} ({_short(min(values))} to {_short(max(values))}, {len(values)} draws)"


def write_csv(path: Path, table: Table, results: Results) -> None:
    """Writes every figure of a table in a line of its own, with separate draws."""
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
    """Plots perplexities: lines over the first label for a curve, bars otherwise.

    Destroyed models are left out; if there are no others, there is no plot.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

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
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlabel(table.headers[0])
    axes.set_ylabel("perplexity")
    axes.set_title(table.title.replace("`", ""))
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _points(table: Table, column: int, results: Results) -> list[tuple[int, tuple[str, ...], list[float]]]:
    """The line's index, its labels, and the figures of all draws."""
    return [
        (index, names, values)
        for index, (names, cells) in enumerate(table.lines)
        if (values := results.values(cells[column])) and min(values) <= results.vocab_size
    ]
