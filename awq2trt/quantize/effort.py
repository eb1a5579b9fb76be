"""How hard the AWQ search tries: what `--effort` stands for.

Measured on SmolLM2-135M by `tools/study.py`, table of efforts: perplexity and processor time of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from awq2trt.quantize.grids import GridOptions
from awq2trt.quantize.search import ScaleOptions


@dataclass(frozen=True)
class SearchOptions:
    """The parts of the search.

    Attributes:
        scales: Of input scales.
        grids: Of rounding grids.
        grids_of_scores: Search grids for q and k, too. llm-awq leaves them at their whole range, since limiting |w|
            there moves attention scores; grids searched with both ends apart gain there as elsewhere.
        code_passes: Coordinate descent on codes, for all linears but q and k: their output error says too little about
            attention scores to choose single codes by it.
    """

    scales: ScaleOptions
    grids: GridOptions
    grids_of_scores: bool
    code_passes: int = 0


EFFORTS: Final = {
    "fast": SearchOptions(
        ScaleOptions(adaptive=False, rows=None), GridOptions(ends_apart=False, passes=0), grids_of_scores=False
    ),
    "default": SearchOptions(ScaleOptions(), GridOptions(), grids_of_scores=True),
    "best": SearchOptions(ScaleOptions(), GridOptions(), grids_of_scores=True, code_passes=4),
}
"""`fast` is the search of the paper and its released code."""
