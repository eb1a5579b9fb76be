"""Which orderings the AWQ paper (arXiv:2306.00978) claims, compared with the study's figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from study_tables import Cell, drawn_cell, options, rtn_cell
from study_walk import Calibration, Keep, Multiply, Setting

DRAWS: Final = range(3)


@dataclass(frozen=True)
class Claim:
    """One claimed ordering.

    Attributes:
        where: Table or figure of the paper, or what it is about.
        text: What is better than what.
        better: The setting whose figure should be lower.
        worse: The setting that it is compared with.
        better_base: Figures to subtract first, if losses are compared; None for nothing.
        worse_base: The same for `worse`.
        why: What is known about it, if it differs here.
    """

    where: str
    text: str
    better: Cell
    worse: Cell
    better_base: Cell | None = None
    worse_base: Cell | None = None
    why: str = ""


PAPERS_SEARCH: Final = (
    "the paper's search keeps the complete range of q and k, and narrows both ends of a range alike, which hurts most "
    "at 3 bits; the default search does neither (`docs/notes/effort.md` has the steps between the two)"
)


def all_claims() -> Iterator[Claim]:
    """Returns every ordering, in the order of the study's tables."""
    for bits, group in ((4, 128), (3, 128), (4, 64), (3, 64)):
        yield from _methods(bits, group)
    yield from _salient()
    for bits in (4, 3):
        scheme = f"INT{bits}"
        yield Claim("groups", f"{scheme}: RTN in groups of 128 < whole rows", rtn_cell(bits), rtn_cell(bits, -1))
        yield Claim("groups", f"{scheme}: AWQ in groups of 128 < whole rows", _awq(bits), _awq(bits, -1))
    yield Claim("INT2", "INT2 g64: GPTQ-R < RTN", _drawn("gptq", 2, 64), rtn_cell(2, 64))
    yield Claim("INT2", "INT2 g64: AWQ + GPTQ-R < GPTQ-R", _drawn("awq+gptq", 2, 64), _drawn("gptq", 2, 64))
    yield Claim(
        "Figure 6",
        "AWQ with 8 windows < GPTQ-R with 64",
        drawn_cell(DRAWS, options("awq", 3), 8),
        drawn_cell(DRAWS, options("gptq", 3), 64),
    )
    for tested, other in (("wikitext2", "pubmed"), ("pubmed", "wikitext2")):
        yield Claim(
            "Figure 6",
            f"{tested}: what calibrating on {other} costs AWQ < what it costs GPTQ-R",
            _domain("awq", other, tested),
            _domain("gptq", other, tested),
            _domain("awq", tested, tested),
            _domain("gptq", tested, tested),
        )


def _methods(bits: int, group: int) -> Iterator[Claim]:
    ranking = (
        ("AWQ, the paper's search", drawn_cell(DRAWS, options("awq", bits, group, effort="fast"))),
        ("GPTQ-R", _drawn("gptq", bits, group)),
        ("GPTQ", drawn_cell(DRAWS, options("gptq", bits, group, act_order=False))),
        ("RTN", rtn_cell(bits, group)),
    )
    scheme = f"INT{bits} g{group}"
    yield Claim("Table 4", f"{scheme}: AWQ (default) < GPTQ-R", _awq(bits, group), ranking[1][1])
    for (better, low), (worse, high) in pairwise(ranking):
        why = PAPERS_SEARCH if better.startswith("AWQ") else ""
        yield Claim("Table 4", f"{scheme}: {better} < {worse}", low, high, why=why)
    yield Claim("INT2", f"{scheme}: AWQ + GPTQ-R < GPTQ-R", _drawn("awq+gptq", bits, group), ranking[1][1])


def _salient() -> Iterator[Claim]:
    by_activation = _kept("activation")
    yield Claim("Table 1", "1 % in FP16 by activation < by weight norm", by_activation, _kept("weight"))
    yield Claim("Table 1", "1 % in FP16 by activation < at random", by_activation, _kept("random"))
    for scale in (1.0, 1.25, 1.5, 4.0):
        text = f"salient 1 % multiplied by 2 < by {scale:g}"
        yield Claim("Table 2", text, _multiplied(2.0), _multiplied(scale))
    fast = drawn_cell(DRAWS, options("awq", 3, effort="fast"))
    yield Claim("Table 3", "AWQ, the paper's search < 1 % in FP16", fast, by_activation)


def _drawn(method: str, bits: int, group: int) -> Cell:
    return drawn_cell(DRAWS, options(method, bits, group))


def _awq(bits: int, group: int = 128) -> Cell:
    return _drawn("awq", bits, group)


def _kept(by: str) -> Cell:
    drawn = range(1) if by == "weight" else DRAWS
    return Cell(tuple(Setting(options("rtn", 3), Calibration(draw=draw), Keep(by, 0.01)) for draw in drawn))


def _multiplied(scale: float) -> Cell:
    return Cell((Setting(options("rtn", 3), Calibration(), Multiply(scale)),))


def _domain(method: str, calibrated: str, tested: str) -> Cell:
    tests = ("wikitext2", "pubmed")
    settings = (Setting(options(method, 3), Calibration(calibrated, draw=draw), tests=tests) for draw in DRAWS)
    return Cell(tuple(settings), test=tested)
