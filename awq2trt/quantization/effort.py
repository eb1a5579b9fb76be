"""How hard the AWQ search tries: what each value of `--effort` means.

In `best`, weights also make up for the errors of the quantized layers before them (`correction`). `max` uses gradients:
it learns codes and grids, beginning with those of a lighter search, and without descents on codes, which would take
longer than learning; at the end, it tunes the step sizes of all blocks together. `docs/notes/effort.md` has the
measurements that led to `default` and `best`, and `docs/notes/accuracy.md` those for `max` and for the correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from awq2trt.quantization.correction import CorrectionOptions
from awq2trt.quantization.grids import GridOptions
from awq2trt.quantization.learning import LearnOptions
from awq2trt.quantization.search import ScaleOptions

CHEAP_WIDTH: Final = 4096
"""Up to so many input channels, codes that compensate take a few seconds of one CPU core for a linear; with 14,336, as
Llama-3-8B's down_proj has, they would take a minute and gigabytes more."""

ANY_WIDTH: Final = 1 << 30
"""More input channels than any linear has."""


@dataclass(frozen=True)
class SearchOptions:
    """The parts of the search.

    Attributes:
        scales: How input scales are searched.
        grids: How rounding grids are searched.
        grids_of_scores: Whether grids for q and k are searched, too. llm-awq keeps their complete range, since limiting
            |w| there changes attention scores; grids whose ends are searched separately help there as elsewhere.
        damping: Added to the diagonal of E[x x^T], as a share of each channel's own, for choosing grids and codes. What
            the calibration text shows of how channels go together is an estimate; another text agrees with less of it.
        compensated_width: Up to how many input channels a linear's codes begin as GPTQ's on the grids that were found,
            not as the nearest; 0 for never. It needs damping. The work grows with the cube of the number of channels.
        code_passes: Number of passes of coordinate descent on codes over all columns.
        score_passes: Number of later passes for q and k, on the error of attention scores instead of their own outputs.
        sequential: Whether a block's inputs come from the quantized blocks before it, not from the original ones.
        correct: How weights make up for the errors of the quantized layers before them; None if they do not.
        learn: How codes and grids of the block then learn from the original block's outputs; None if they do not.
        tunes: Whether step sizes of all blocks are tuned after the last one, unless the user says otherwise.
    """

    scales: ScaleOptions
    grids: GridOptions
    grids_of_scores: bool
    damping: float = 0.0
    compensated_width: int = 0
    code_passes: int = 0
    score_passes: int = 0
    sequential: bool = False
    correct: CorrectionOptions | None = None
    learn: LearnOptions | None = None
    tunes: bool = False

    @property
    def refines(self) -> bool:
        """Whether codes that another search found can become better ones."""
        return bool(self.code_passes or self.score_passes or self.correct or self.learn)

    @property
    def keeps_nearest(self) -> bool:
        """Whether every code stays the nearest to its weight on the grid that was found."""
        return not (self.compensated_width or self.refines)


EFFORTS: Final[dict[str, SearchOptions]] = {
    "fast": SearchOptions(
        ScaleOptions(adaptive=False, weights=None), GridOptions(ends_apart=False, passes=0), grids_of_scores=False
    ),
    "default": SearchOptions(
        ScaleOptions(), GridOptions(), grids_of_scores=True, damping=0.3, compensated_width=CHEAP_WIDTH
    ),
    "best": SearchOptions(
        ScaleOptions(),
        GridOptions(),
        grids_of_scores=True,
        damping=0.3,
        compensated_width=ANY_WIDTH,
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
        tunes=True,
    ),
}
"""The efforts by name; `fast` is the search of the paper and its released code."""
