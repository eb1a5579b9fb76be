"""The figures in each table of the study, and what the AWQ paper (arXiv:2306.00978) shows there.

The paper's figures are perplexities on WikiText-2 of models with 1 to 70 billion parameters, so that only orderings can
be compared with those of a model with 135 million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from study_walk import Calibration, Keep, Multiply, Setting

from awq2trt.methods import METHODS
from awq2trt.recipe import QuantizeOptions

PERPLEXITY: Final = "perplexity"


@dataclass(frozen=True)
class Cell:
    """A figure of a table.

    Attributes:
        settings: One for every draw.
        what: `perplexity`, `changed_steps`, `step_ratio` or `quantize_seconds`.
        test: The text to test on.
    """

    settings: tuple[Setting, ...]
    what: str = PERPLEXITY
    test: str = "wikitext2"


Line = tuple[tuple[str, ...], tuple[Cell, ...]]
"""Labels and cells."""


@dataclass(frozen=True)
class Table:
    """A table of the study.

    Attributes:
        name: Its name on the command line and in files.
        title: What it shows.
        headers: Headings of the label columns, then of the cells.
        lines: Lines with labels and cells.
        paper: The paper's figures.
        curve: Whether its plot has lines over the first label, not bars.
    """

    name: str
    title: str
    headers: tuple[str, ...]
    lines: tuple[Line, ...]
    paper: str
    curve: bool = False

    def settings(self) -> Iterator[Setting]:
        """All figures that it needs."""
        for _, cells in self.lines:
            for cell in cells:
                yield from cell.settings


def all_tables(*, full: bool) -> tuple[Table, ...]:
    """Returns all tables.

    Args:
        full: Whether they have every cell, in three draws, rather than one draw of the cells that two cores measure in
            an hour.
    """
    draws = Draws(some=range(3), more=range(3)) if full else Draws(some=range(1), more=range(0))
    return (
        _methods(draws),
        _kept(draws),
        _multiplied(draws),
        _group_sizes(draws),
        _two_bits(draws),
        _windows(draws),
        _domains(draws),
        *([_texts(draws.more), _robustness(draws.more), _which_linears(), _tuned(draws.more)] if full else []),
    )


WHOLE_SPLIT: Final = 1_000_000
"""A number of windows that no text has."""

PAPER_CALIBRATION: Final = Calibration("pile", samples=128, seqlen=512)
"""The paper calibrates on the Pile's validation set; 128 sequences of 512 tokens are its released code's."""


def as_in_paper(table: Table) -> Table:
    """Returns the same table in the paper's protocol: the complete test split in windows of 2,048 tokens, one draw."""

    def setting(of_study: Setting) -> Setting:
        calibrated = of_study.calibration and replace(PAPER_CALIBRATION, samples=_paper_samples(of_study.calibration))
        return replace(of_study, calibration=calibrated, windows=WHOLE_SPLIT, seqlen=2048)

    def cell(of_study: Cell) -> Cell:
        return replace(of_study, settings=tuple(map(setting, of_study.settings[:1])))

    lines = tuple((labels, tuple(map(cell, cells))) for labels, cells in table.lines)
    title = f"{table.title}; the whole test split in windows of 2,048 tokens, calibrated on the Pile"
    return replace(table, name=f"paper-{table.name}", title=title, lines=lines)


def _paper_samples(of_study: Calibration) -> int:
    """Scales a cell's samples, of which the study usually has 32, to the paper's number."""
    return of_study.samples * PAPER_CALIBRATION.samples // Calibration().samples


@dataclass(frozen=True)
class Draws:
    """The draws of calibration windows that are measured.

    Attributes:
        some: Draws of the cells that the short study has.
        more: Draws of the cells that only the full study has: none, or all.
    """

    some: range
    more: range

    def pick(self, *, short: bool) -> range:
        """Returns the draws of a cell, depending on whether it is in the short study."""
        return self.some if short else self.more


ORIGINAL: Final = Setting(None)


def options(method: str, bits: int, group_size: int = 128, **changes: Any) -> QuantizeOptions:
    """Makes options with a method and a scheme."""
    return QuantizeOptions.model_validate({"method": method, "bits": bits, "group_size": group_size, **changes})


def rtn_cell(bits: int, group_size: int = 128, **changes: Any) -> Cell:
    """A cell for rounding to nearest, which uses no text."""
    return Cell((Setting(options("rtn", bits, group_size, **changes)),))


def drawn_cell(draws: range, chosen: QuantizeOptions, samples: int = 32) -> Cell:
    """A cell for a method, on several draws of calibration windows."""
    return Cell(tuple(Setting(chosen, Calibration(samples=samples, draw=draw)) for draw in draws))


def _methods(draws: Draws) -> Table:
    schemes = ((4, 128), (3, 128), (4, 64), (3, 64))

    def line(name: str, short: tuple[bool, ...], method: str, **changes: Any) -> Line:
        return (name,), tuple(
            drawn_cell(draws.pick(short=is_short), options(method, bits, group, **changes))
            for is_short, (bits, group) in zip(short, schemes, strict=True)
        )

    return Table(
        "methods",
        "Methods (paper, Table 4), INT4 and INT3 with zero points",
        ("method", *(f"INT{bits} g{group}" for bits, group in schemes)),
        (
            (("original",), tuple(Cell((ORIGINAL,)) for _ in schemes)),
            (("RTN",), tuple(rtn_cell(bits, group) for bits, group in schemes)),
            line("GPTQ", (False, False, False, False), "gptq", act_order=False),
            line("GPTQ-R (act-order)", (True, True, False, False), "gptq"),
            line("AWQ, the paper's search (`--effort fast`)", (False, True, False, False), "awq", effort="fast"),
            line("AWQ (default)", (True, True, True, False), "awq"),
            line("AWQ, `--effort best`", (True, False, False, False), "awq", effort="best"),
            line("AWQ, `--effort max`", (False, False, False, False), "awq", effort="max"),
            line("AWQ + GPTQ-R", (False, False, False, False), "awq+gptq"),
        ),
        "Llama-2-7B (original 5.47): INT3 g128 RTN 6.66, GPTQ 6.43, GPTQ-R 6.42, AWQ 6.24; INT4 g128 RTN 5.73, GPTQ "
        "5.69, GPTQ-R 5.63, AWQ 5.60. AWQ is best, then GPTQ-R, GPTQ, RTN. GPTQ is its authors' code.",
    )


def _kept(draws: Draws) -> Table:
    scheme = options("rtn", 3)

    def cell(by: str, share: float) -> Cell:
        drawn = draws.pick(short=by == "activation" or share == 0.01)
        drawn = drawn[:1] if by == "weight" else drawn  # which does not depend on a text
        return Cell(tuple(Setting(scheme, Calibration(draw=draw), Keep(by, share)) for draw in drawn))

    return Table(
        "kept-in-fp16",
        "A share of input channels kept in FP16 (paper, Table 1), INT3 g128",
        ("kept by", "none", "0.1 %", "1 %", "3 %"),
        tuple(
            ((name,), (rtn_cell(3), *(cell(by, share) for share in (0.001, 0.01, 0.03))))
            for name, by in (("activation", "activation"), ("weight norm", "weight"), ("random", "random"))
        ),
        "OPT-6.7B (original 10.86, RTN 23.54): by activation 11.58, 11.39, 11.36; by weight norm 23.41, 22.37, 22.45; "
        "at random 23.54, 24.23, 24.22. 1 % chosen by activation is enough, weight norm is no better than chance.",
    )


def _multiplied(draws: Draws) -> Table:
    scheme = options("rtn", 3)

    def line(scale: float) -> Line:
        one = (Setting(scheme, Calibration(), Multiply(scale)),)
        return (f"s = {scale:g}",), (Cell(one, "changed_steps"), Cell(one, "step_ratio"), Cell(one))

    no_steps = (Cell(()), Cell(()))
    kept = tuple(Setting(scheme, Calibration(draw=draw), Keep("activation", 0.01)) for draw in draws.some)
    return Table(
        "multiplied",
        "The salient 1 % multiplied by s (paper, Tables 2 and 3), INT3 g128",
        ("1 % of channels", "groups with another step", "mean new/old step", "perplexity"),
        (
            *(line(scale) for scale in (1.0, 1.25, 1.5, 2.0, 4.0)),
            (("kept in FP16",), (*no_steps, Cell(kept))),
            (
                ("all by AWQ, the paper's search",),
                (*no_steps, drawn_cell(draws.some, options("awq", 3, effort="fast"))),
            ),
        ),
        "OPT-6.7B: s = 1, 1.25, 1.5, 2, 4 change 0, 2.8, 4.4, 8.2, 21.2 % of steps by 1, 1.005, 1.013, 1.038, 1.213 on "
        "average and give 23.54, 12.87, 12.48, 11.92, 12.36: best near 2, since larger s coarsens the rest of a group. "
        "1 % in FP16 11.39, AWQ 11.39.",
    )


def _group_sizes(draws: Draws) -> Table:
    sizes = (-1, 128, 64, 32)

    def lines() -> Iterator[Line]:
        for bits, symmetric in ((4, False), (3, False), (4, True), (3, True)):
            if symmetric and not draws.more:
                continue
            name = f"INT{bits}, {'symmetric' if symmetric else 'zero points'}"
            yield (name, "RTN"), tuple(rtn_cell(bits, size, symmetric=symmetric) for size in sizes)
            drawn = tuple(
                drawn_cell(
                    draws.pick(short=(bits, size) in ((4, 128), (4, 64), (3, 128), (3, -1))),
                    options("awq", bits, size, symmetric=symmetric),
                )
                for size in sizes
            )
            yield (name, "AWQ (default)"), drawn

    return Table(
        "group-sizes",
        "Group sizes, and symmetric grids" if draws.more else "Group sizes",
        ("scheme", "method", "whole row", "g128", "g64", "g32"),
        tuple(lines()),
        "Whole rows are worse than groups of 128 for every method and model; the paper uses g128 throughout.",
    )


def _two_bits(draws: Draws) -> Table:
    sizes = (64, 32) if draws.more else (64,)
    methods = (
        ("GPTQ-R", "gptq", "default"),
        ("AWQ (default)", "awq", "default"),
        ("AWQ, `--effort best`", "awq", "best"),
        ("AWQ, `--effort max`", "awq", "max"),
        ("AWQ + GPTQ-R", "awq+gptq", "default"),
    )

    def drawn(method: str, effort: str, size: int) -> Cell:
        short = effort == "default" and not METHODS[method].rounds_columns
        return drawn_cell(draws.pick(short=short), options(method, 2, size, effort=effort))

    return Table(
        "int2",
        "INT2 with zero points",
        ("method", *(f"g{size}" for size in sizes)),
        (
            (("RTN",), tuple(rtn_cell(2, size) for size in sizes)),
            *(((name,), tuple(drawn(method, effort, size) for size in sizes)) for name, method, effort in methods),
        ),
        "INT2 g64, OPT-1.3B to 30B: RTN fails, GPTQ works, and GPTQ on AWQ's scales is better than GPTQ alone.",
    )


def _windows(draws: Draws) -> Table:
    methods = (options("awq", 3), options("gptq", 3))

    def line(samples: int) -> Line:
        drawn = draws.pick(short=samples in (8, 32))
        return (str(samples),), tuple(drawn_cell(drawn, method, samples) for method in methods)

    return Table(
        "windows",
        "How much calibration text (paper, Figure 6), INT3 g128, windows of 512 tokens",
        ("windows", "AWQ (default)", "GPTQ-R"),
        tuple(line(samples) for samples in (8, 16, 32, 64)),
        "AWQ needs a tenth of the text: good with 16 sequences of 2,048 tokens, where GPTQ takes 192.",
        curve=True,
    )


def _domains(draws: Draws) -> Table:
    tests = ("wikitext2", "pubmed")

    def cells(text: str) -> Iterator[Cell]:
        for method in ("awq", "gptq"):
            drawn = tuple(
                Setting(options(method, 3), Calibration(text, draw=draw), tests=tests)
                for draw in draws.pick(short=not METHODS[method].rounds_columns)
            )
            yield from (Cell(drawn, test=test) for test in tests)

    return Table(
        "domains",
        "Calibrated on one domain, tested on another (paper, Figure 6), INT3 g128",
        ("calibrated on", *(f"{method}, {test}" for method in ("AWQ", "GPTQ-R") for test in tests)),
        (
            (("original",), tuple(Cell((Setting(None, tests=tests),), test=test) for _ in range(2) for test in tests)),
            *(((text,), tuple(cells(text))) for text in tests),
        ),
        "PubMed abstracts and Enron mails: another domain costs AWQ 0.5 to 0.6 of perplexity, GPTQ 2.3 to 4.9.",
    )


def _texts(some: range) -> Table:
    texts = (("WikiText-2 validation", "wikitext2"), ("C4", "c4"), ("the model's own", "self"))
    return Table(
        "texts",
        "Calibrated on which text, AWQ (default), g128",
        ("text", "INT4", "INT3"),
        tuple(
            (
                (name,),
                tuple(
                    Cell(tuple(Setting(options("awq", bits), Calibration(text, draw=draw)) for draw in some))
                    for bits in (4, 3)
                ),
            )
            for name, text in texts
        ),
        "Calibrated on the Pile's validation set. Own text is what `awq2trt quantize` takes by default, of 16 windows.",
    )


def _robustness(draws: range) -> Table:
    tests = ("wikitext2", "pubmed", "c4")

    def line(effort: str, text: str, samples: int) -> Line:
        drawn = tuple(
            Setting(options("awq", 4, effort=effort), Calibration(text, samples, draw=draw), tests=tests)
            for draw in draws
        )
        return (f"`--effort {effort}`", text, str(samples)), tuple(Cell(drawn, test=test) for test in tests)

    return Table(
        "robustness",
        "Whether efforts fit the calibration text, INT4 g128, windows of 512 tokens",
        ("effort", "calibrated on", "windows", *tests),
        tuple(
            line(effort, text, samples)
            for effort in ("default", "best", "max")
            for text in ("wikitext2", "pubmed")
            for samples in (8, 32, 128)
        ),
        "INT3 of OPT-6.7B (Figure 6): another domain costs AWQ 0.5 to 0.6 of perplexity, GPTQ 2.3 to 4.9.",
    )


def _tuned(draws: range) -> Table:
    schemes = ((4, 128), (3, 128), (2, 64))
    tests = ("wikitext2", "c4")

    def line(effort: str, tune: bool | None = None) -> Line:
        settings = [
            tuple(
                Setting(options("awq", bits, group, effort=effort, tune=tune), Calibration(draw=draw), tests=tests)
                for draw in draws
            )
            for bits, group in schemes
        ]
        cells = tuple(Cell(drawn, test=test) for drawn in settings for test in tests)
        flag = {None: "", True: " --tune", False: " --no-tune"}[tune]
        return (f"`--effort {effort}{flag}`",), cells

    return Table(
        "tuned",
        "Gradients: `--effort max`, and step sizes tuned at the end",
        ("method", *(f"INT{bits} g{group}, {test}" for bits, group in schemes for test in tests)),
        (line("default"), line("default", True), line("best"), line("best", True), line("max", False), line("max")),
        "nothing of this kind.",
    )


def _which_linears() -> Table:
    kinds = (("q_proj", "k_proj"), ("v_proj",), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
    methods = (
        ("RTN", options("rtn", 3), None),
        ("GPTQ", options("gptq", 3, act_order=False), Calibration()),
        ("GPTQ-R", options("gptq", 3), Calibration()),
    )
    return Table(
        "which-linears",
        "Only some linears quantized, INT3 g128, on 4 windows: where a method gains and where it loses",
        ("quantized", *(name for name, _, _ in methods)),
        (
            (("none",), tuple(Cell((Setting(None, windows=4),)) for _ in methods)),
            *(
                (
                    (", ".join(kind),),
                    tuple(Cell((Setting(chosen, text, only=kind, windows=4),)) for _, chosen, text in methods),
                )
                for kind in kinds
            ),
        ),
        "nothing of this kind.",
    )
