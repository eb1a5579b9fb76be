"""How hard the AWQ search tries: what each value of `--effort` means.

In `best`, weights also make up for the errors of the quantized layers before them (`correction`). `max` uses gradients:
it learns codes and grids, beginning with those of a lighter search, and without descents on codes, which would take
longer than learning. `docs/notes/effort.md` has the measurements that led to `default` and `best`, and
`docs/notes/accuracy.md` those for `max` and for the correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from awq2trt.quantization.correction import CorrectionOptions
from awq2trt.quantization.grids import GridOptions
from awq2trt.quantization.learning import LearnOptions
from awq2trt.quantization.search import ScaleOptions


@dataclass(frozen=True)
class SearchOptions:
    """The parts of the search.

    Attributes:
        scales: Search input scales.
        grids: Search rounding grids.
        grids_of_scores: Search grids for q and k, too. llm-awq leaves them at their whole range, since limiting |w|
            there moves attention scores; grids searched with both ends apart gain there as elsewhere.
        code_passes: Coordinate descent on codes, so many times over all columns.
        score_passes: The same after it for q and k, on the error of attention scores instead of their own outputs.
        sequential: A block's inputs are what the quantized blocks before it give, not what the original ones do.
        correct: Then weights make up for what the quantized layers before them got wrong; None for not.
        learn: Then codes and grids of the whole block learn from the original block's outputs; None for not.
    """

    scales: ScaleOptions
    grids: GridOptions
    grids_of_scores: bool
    code_passes: int = 0
    score_passes: int = 0
    sequential: bool = False
    correct: CorrectionOptions | None = None
    learn: LearnOptions | None = None

    @property
    def keeps_nearest(self) -> bool:
        """Whether every code stays the nearest to its weight on the grid that was found."""
        return not (self.code_passes or self.score_passes or self.correct or self.learn)


EFFORTS: Final[dict[str, SearchOptions]] = {
    "fast": SearchOptions(
        ScaleOptions(adaptive=False, weights=None), GridOptions(ends_apart=False, passes=0), grids_of_scores=False
    ),
    "default": SearchOptions(ScaleOptions(), GridOptions(), grids_of_scores=True),
    "best": SearchOptions(
        ScaleOptions(),
        GridOptions(),
        grids_of_scores=True,
        code_passes=4,
        score_passes=3,
        sequential=True,
        correct=CorrectionOptions(),
    ),
    "max": SearchOptions(
        ScaleOptions(),
        GridOptions(passes=0),
        grids_of_scores=True,
        sequential=True,
        learn=LearnOptions(),
    ),
}
"""The efforts by name; `fast` is the search of the paper and its released code."""
