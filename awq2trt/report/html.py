"""Renders an `Inspection` as one HTML page without external files: with SVG plots, for phones, light and dark.

In: an `Inspection`, the inputs of a block, and perplexities that `eval --json` wrote. Out: the page as a string.
matplotlib draws the plots; their text stays text and takes the page's colour, so that a plot follows the reader's
theme.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from awq2trt.errors import ToolError, UsageError
from awq2trt.foreign_files import read_json, reading
from awq2trt.report.inspection import InputChannels, Inspection, LinearRow
from awq2trt.version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK: Final = "#123456"
"""A placeholder for the page's text colour until the SVG is in the page."""

_COLORS: Final = ("#3d85c6", "#e0742c", "#2a9d74", "#a06cc4", "#c9a227", "#8d99a6")
"""Blue, orange and green of Okabe and Ito: distinct for readers with any colour vision, on white and on black."""

_WIDTH_IN, _HEIGHT_IN = 4.8, 3.0
"""346 points wide, so that letters keep their size on a phone and grow with the page elsewhere."""


@dataclass(frozen=True)
class PerplexityBar:
    """A perplexity, as the page draws it.

    Attributes:
        label: Model and executor.
        value: The perplexity.
    """

    label: str
    value: float


def read_perplexities(path: Path) -> list[PerplexityBar]:
    """Reads perplexities that `awq2trt eval --json` wrote.

    Raises:
        UsageError: The file holds no perplexities.
    """
    fix = "name a file that `awq2trt eval MODEL... --text FILE --json FILE` wrote."
    with reading("perplexities", path, fix=fix, error=UsageError):
        results = read_json(path, what="perplexities", fix=fix, error=UsageError)["results"]
        return [
            PerplexityBar(f"{Path(result['model']).name}, {result['executor']}", float(result["perplexity"]["value"]))
            for result in results
        ]


def render_page(
    inspection: Inspection, channels: Sequence[InputChannels], perplexities: Sequence[PerplexityBar] = ()
) -> str:
    """Renders the page.

    Args:
        inspection: The checkpoint's inspection.
        channels: The inputs of one block.
        perplexities: Perplexities that `eval` measured, all on the same text.

    Raises:
        ToolError: matplotlib is not installed.
    """
    figures = [
        ("Output error by block", "Mean over a block's linears; the shade spans from the best to the worst.", _errors),
        ("alpha by block", "How much of the spread of activations is moved into the scales.", draw_alphas),
        ("Size", f"{inspection.size_bytes / 1e6:,.1f} MB of weights.", _sizes),
    ]
    drawn = [_figure(title, note, partial(draw, inspection)) for title, note, draw in figures]
    drawn += [
        _figure(
            f"Input of {entry.name}",
            f"Channels; the salient 1 %, {len(entry.salient)} of {entry.activation.size}, in orange.",
            partial(_channels, entry),
        )
        for entry in channels
    ]
    if perplexities:
        drawn.append(_figure("Perplexity", "Lower is better.", partial(_bars, perplexities)))
    return _PAGE.format(
        title=html.escape(f"{inspection.model}, {inspection.scheme}"),
        version=__version__,
        cards="\n".join(_cards(inspection)),
        figures="\n".join(figure for figure in drawn if figure),
        blocks="\n".join(_block_rows(inspection)),
    )


def _figure(title: str, note: str, draw: Callable[[Axes], bool]) -> str:
    """A plot with its caption; empty if there is nothing to draw."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ToolError(
            "matplotlib, which draws the plots, is not installed.", where="--html", fix="pip install 'awq2trt[plot]'"
        ) from error
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "font.size": 9.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        axes = figure.subplots()
        axes.set_prop_cycle(color=_COLORS)
        if not draw(axes):
            return ""
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    label = f'<svg role="img" aria-label="{html.escape(title)}"'
    caption = f"<figcaption><b>{html.escape(title)}</b> {html.escape(note)}</figcaption>"
    return f"<figure>{svg.replace('<svg', label, 1)}{caption}</figure>"


def _errors(inspection: Inspection, axes: Axes) -> bool:
    drawn = False
    for color, label, key in ((_COLORS[5], "rounded", "error_rounded"), (_COLORS[0], inspection.method, "error")):
        blocks = _by_block(inspection, key)
        if not blocks:
            continue
        x = sorted(blocks)
        axes.fill_between(
            x, [min(blocks[b]) for b in x], [max(blocks[b]) for b in x], color=color, alpha=0.18, linewidth=0
        )
        axes.plot(x, [sum(blocks[b]) / len(blocks[b]) for b in x], color=color, label=label, linewidth=1.6)
        drawn = True
    axes.set(xlabel="block", ylabel="relative error", ylim=(0, None))
    if drawn:
        axes.legend(frameon=False, ncols=2, loc="upper right")
    return drawn


def draw_alphas(inspection: Inspection, axes: Axes) -> bool:
    """Draws the alphas of every linear, block by block; returns whether there are any."""
    groups: dict[str, dict[int, float]] = {}
    for row in inspection.linears:
        if row.alpha is not None:
            groups.setdefault(_kind(row), {})[row.block] = row.alpha
    # Linears that share an input share its alpha, so those that never differ get one line.
    merged: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for kind, values in groups.items():
        merged.setdefault(tuple(sorted(values.items())), []).append(kind)
    for points, kinds in merged.items():
        label = ", ".join(kind.removesuffix("_proj") for kind in kinds)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=label)
    # The search may refine an alpha to beyond 1.
    highest = max((alpha for by_block in groups.values() for alpha in by_block.values()), default=1.0)
    axes.set(xlabel="block", ylabel="alpha", ylim=(-0.03, max(1.0, highest) + 0.03))
    if merged:
        axes.legend(frameon=False, ncols=4, loc="upper center")
    return bool(merged)


def _sizes(inspection: Inspection, axes: Axes) -> bool:
    names, values = list(inspection.sizes), list(inspection.sizes.values())
    total = sum(values)
    wedges, *_ = axes.pie(values, startangle=90, counterclock=False, colors=_COLORS, wedgeprops={"linewidth": 0})
    labels = [f"{name}: {value / 1e6:,.1f} MB, {value / total:.0%}" for name, value in zip(names, values, strict=True)]
    axes.legend(wedges, labels, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return True


def _channels(entry: InputChannels, axes: Axes) -> bool:
    from matplotlib.ticker import FuncFormatter, LogLocator

    salient = entry.salient
    rest = np.setdiff1d(np.arange(entry.activation.size), salient)
    floor = np.finfo(np.float32).tiny  # a dead channel cannot be drawn on a logarithmic axis
    activation, weight = np.maximum(entry.activation, floor), np.maximum(entry.weight, floor)
    axes.scatter(weight[rest], activation[rest], s=5, color=_COLORS[0], alpha=0.55, linewidths=0)
    axes.scatter(weight[salient], activation[salient], s=18, color=_COLORS[1], linewidths=0, label="salient")
    axes.set(xscale="log", yscale="log", xlabel="mean |weight| of the channel", ylabel="mean |activation|")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    return True


def _bars(perplexities: Sequence[PerplexityBar], axes: Axes) -> bool:
    labels = [entry.label for entry in perplexities]
    values = [entry.value for entry in perplexities]
    bars = axes.barh(range(len(values)), values, color=_COLORS[0], height=0.6)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="perplexity")
    return True


def _cards(inspection: Inspection) -> list[str]:
    errors = [row.error for row in inspection.linears if row.error is not None]
    rounded = [row.error_rounded for row in inspection.linears if row.error_rounded is not None]
    facts = [
        ("method", inspection.method),
        ("scheme", inspection.scheme),
        ("weights", f"{inspection.size_bytes / 1e6:,.1f} MB"),
        ("bits a weight", f"{inspection.bits_per_weight:.2f}"),
        ("mean error", f"{sum(errors) / len(errors):.1%}" if errors else "not measured"),
        ("rounding alone", f"{sum(rounded) / len(rounded):.1%}" if rounded else "not measured"),
    ]
    return [f"<div><span>{name}</span><b>{html.escape(value)}</b></div>" for name, value in facts]


def _block_rows(inspection: Inspection) -> list[str]:
    """One line for every block, which expands to its linears."""
    blocks: dict[int, list[LinearRow]] = {}
    for row in inspection.linears:
        blocks.setdefault(row.block, []).append(row)
    lines = []
    for block, rows in blocks.items():
        errors = [row.error for row in rows if row.error is not None]
        error = f"{sum(errors) / len(errors):.1%}" if errors else ""
        size = sum(row.size_bytes for row in rows) / 1e6
        inner = "".join(_linear_cells(row) for row in rows)
        summary = f"<span>block {block}</span><span>error {error}</span><span>{size:,.2f} MB</span>"
        heads = "".join(f"<th>{name}" for name in _LINEAR_COLUMNS)
        table = f"<table><tr>{heads}</tr>{inner}</table>"
        lines.append(f"<details><summary>{summary}</summary><div class=scroll>{table}</div></details>")
    return lines


_LINEAR_COLUMNS: Final = ("linear", "bits", "group", "alpha", "clipped", "rounded", "error", "kB")


def _linear_cells(row: LinearRow) -> str:
    shares = [_percent(value) for value in (row.clipped_share, row.error_rounded, row.error)]
    alpha = "" if row.alpha is None else f"{row.alpha:.2f}"
    cells = [_kind(row), row.bits, row.group_length, alpha, *shares, f"{row.size_bytes / 1e3:,.1f}"]
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in cells) + "</tr>"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _kind(row: LinearRow) -> str:
    return row.name.rpartition(".")[2]


def _by_block(inspection: Inspection, key: str) -> dict[int, list[float]]:
    blocks: dict[int, list[float]] = {}
    for row in inspection.linears:
        value: Any = getattr(row, key)
        if value is not None:
            blocks.setdefault(row.block, []).append(float(value))
    return blocks


_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1d2733; --soft: #66737f; --line: #dde3e8; --card: #f6f8fa }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #12171c; --ink: #e6ebf0; --soft: #98a5b1; --line: #2b343d; --card: #1a2129 }}
}}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; padding: 1.2rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }}
h1 {{ font-size: 1.5rem; margin: 0.4rem 0 1rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.1rem; margin: 1.8rem 0 0.6rem }}
.cards {{ display: grid; gap: 0.6rem; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)) }}
.cards div {{ background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.5rem 0.8rem }}
.cards span {{ display: block; color: var(--soft); font-size: 0.8rem }}
.figures {{ display: grid; gap: 0.9rem; margin-top: 0.9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }}
figure {{ margin: 0; padding: 0.8rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem }}
figure svg {{ display: block; width: 100%; height: auto }}
figcaption {{ color: var(--soft); font-size: 0.85rem; margin-top: 0.4rem }}
figcaption b {{ color: var(--ink) }}
details {{ border-bottom: 1px solid var(--line) }}
summary {{ cursor: pointer; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; padding:
0.35rem 0 }} summary span {{ flex: 1 1 6rem; font-variant-numeric: tabular-nums }}
summary span:first-child::before {{ content: "\\25B8"; display: inline-block; width: 1.1em; color: var(--soft) }}
details[open] summary span:first-child::before {{ content: "\\25BE" }}
.scroll {{ overflow-x: auto; padding-bottom: 0.6rem }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.85rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: right; padding: 0.15rem 0.5rem; white-space: nowrap }}
th {{ color: var(--soft); font-weight: 500 }}
th:first-child, td:first-child {{ text-align: left }}
footer {{ color: var(--soft); font-size: 0.8rem; margin-top: 2rem }}
</style>
<h1>{title}</h1>
<div class="cards">
{cards}
</div>
<div class="figures">
{figures}
</div>
<h2>Blocks</h2>
{blocks}
<footer>Errors are || (W' - W) x || / || W x || on the calibration text. Made by awq2trt {version}.</footer>
</html>
"""
