"""How hard the AWQ search tries: what each value of `--effort` means.

What was tried on the way, on SmolLM2-135M: the first 8 x 1,024 tokens of WikiText-2 test, calibrated on 32 x 512 of its
validation text. This is one draw of windows, so small differences may be noise:

    perplexity, groups of 128 with zero points                        INT4    INT3
    original                                                         29.22
    rounded to nearest                                               40.58   162.5
    scales alone                                                              92.9
    + ends of ranges cut apart, 49 pairs of shares, except q and k    34.7    69.5
    + for q and k, too                                                        61.1
    + from coarse to fine, 18 pairs instead of 49                     35.0    61.9
    + two further looks and fitted steps: `default`                   34.0    55.2
    `default`, q and k whole                                          34.2
    `default`, weights in the scales (beta 0.5 or 1)                  33.8    58.1
    `default`, calibrated on the quantized blocks before              33.9    55.5

Then details of it changed, and on an H100:

    `default`                                                         33.8    54.2
    `default`, calibrated on the quantized blocks before              33.7    53.7
    `default`, four further looks                                     34.0    54.5
    + codes descend once, except q and k                              33.4    50.2
    + four times                                                      33.0    48.5
      the same with weights in the scales                             33.2    47.2
    + q and k, too                                                    32.7    48.1
    + calibrated on the quantized blocks before: `best`               32.5    46.8

The last line was `best` until q and k got a loss on the attention scores instead of their own outputs
(`awq2trt.quantization.scores`). On a CPU, one draw, with the other linears left as they were; the 8 windows and 24:

                                                                  INT4            INT3
    no loss on the scores                                         32.8  25.70     45.6  35.51
    + codes of q and k descend three times more on it             32.4  25.56     44.5  34.56
      the same, covariance of the keys that each query sees       32.4  25.51     44.5  34.62
      the same, keys weighed by the attention that they get       32.3  25.44     44.3  34.30

The first of these forms needs nothing but means over tokens. The other two looked at every eighth query of the text
with all keys before it, which adds half of the time of `best` and brings little more than the draws differ by. `best`
has the first, with the covariance as far as the means tell it, and four descents: of its twelve figures in the study
(two widths, two group sizes, three draws) ten fell, and their means from 32.62 to 32.46 (INT4 g128), 32.02 to 31.78
(INT4 g64), 47.2 to 45.9 (INT3 g128) and 42.9 to 42.5 (INT3 g64); those before were from an H100. Rows of a head rounded
one after another, as GPTQ rounds columns, brought `default` from 33.8 to 33.2 and from 54.2 to 51.8; descent over both
took its place.

Since then weights in `best` make up for what the quantized layers before them got wrong (`correction`), which takes
INT3 on the 8 windows from 45.3 to 39.9, and INT2 in groups of 64 from 167 to 86.

`max` takes gradients: it learns codes and grids from where a lighter search leaves them, without descents, which take
longer than learning does. What was measured for it, and for the correction, is in `docs/notes/accuracy.md`.

Weights in the scales do not pay on both widths, so no effort has them. To repeat a line, or to try another, change the
fields of `SearchOptions` for an effort below and run `tools/study.py --tables methods`; q and k left out of the descent
were a condition in `block` that is gone, as is the script that looked at queries of the text and left other linears as
they were. `tools/study_results` has the efforts themselves in several draws.
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
