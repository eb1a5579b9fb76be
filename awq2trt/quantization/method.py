"""How a block is quantized, according to the user's options.

In: `QuantizeOptions`. Out: `BlockMethod`, or an error if options contradict each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from awq2trt.errors import UsageError
from awq2trt.images.pairs import is_image_text
from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.methods import METHODS
from awq2trt.quantization.correction import CorrectionOptions
from awq2trt.quantization.effort import ANY_WIDTH, EFFORTS, SearchOptions
from awq2trt.quantization.gptq import GptqOptions
from awq2trt.quantization.learning import LearnOptions
from awq2trt.quantization.tuning import TuneOptions
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme


@dataclass(frozen=True)
class BlockMethod:
    """How a block is quantized. Without scales and GPTQ it rounds to nearest, the paper's RTN baseline.

    Attributes:
        scheme: Bits, groups, zero points.
        search: How to search and fold scales, and then to search grids; None for neither.
        gptq: How GPTQ rounds; None to round to nearest.
        tune: How the step sizes of all blocks are tuned after the last block; None if they are not.
        ranks: The ranks that share windows and rows, or take blocks in turn.
    """

    scheme: QuantScheme
    search: SearchOptions | None = None
    gptq: GptqOptions | None = None
    tune: TuneOptions | None = None
    ranks: Ranks = ALONE

    @property
    def uses_text(self) -> bool:
        """Whether it needs input statistics."""
        return self.search is not None or self.gptq is not None

    @property
    def sequential(self) -> bool:
        """Whether a block's inputs come from the quantized blocks before it (the order of the reference GPTQ)."""
        return self.gptq is not None or (self.search is not None and self.search.sequential)

    @property
    def blocks_apart(self) -> bool:
        """Whether a block depends on nothing but the original model: then several ranks take whole blocks in turn.

        Any number of ranks gives the same bits then. Otherwise they share the work on every block.
        """
        return not (self.sequential or self.needs_original)

    @property
    def compensated_width(self) -> int:
        """Up to how many input channels a linear's codes make up for each other's errors; 0 if they never do."""
        if self.gptq is not None:
            return ANY_WIDTH
        return self.search.compensated_width if self.search is not None else 0

    @property
    def needs_original(self) -> bool:
        """Whether a block is compared with what the original one makes of the original inputs."""
        return self.learn is not None or self.correct is not None

    @property
    def correct(self) -> CorrectionOptions | None:
        """How weights make up for what the quantized layers before them got wrong; None if they do not."""
        return self.search.correct if self.search is not None and self.gptq is None else None

    @property
    def learn(self) -> LearnOptions | None:
        """How a block learns from the original one's outputs on the original inputs; None if it does not."""
        return self.search.learn if self.search is not None else None


def method_of(options: QuantizeOptions) -> BlockMethod:
    """The method that a user's options ask for.

    Raises:
        UsageError: Step sizes are to be tuned, but the method uses no text.
    """
    method = METHODS[options.method]
    if options.tune and not method.uses_text:
        raise UsageError(
            f"--method {options.method} uses no calibration text, on which step sizes could be tuned.",
            where="--tune",
            fix="use another method, or leave --tune out.",
        )
    return BlockMethod(
        options.scheme,
        search=EFFORTS[options.effort] if method.searches_scales else None,
        gptq=GptqOptions(act_order=options.act_order) if method.rounds_columns else None,
        tune=TuneOptions.for_scheme(options.scheme) if tunes(options) else None,
    )


def tunes(options: QuantizeOptions) -> bool:
    """Whether step sizes are tuned after the last block: as the user says, or else as the effort does on text."""
    if options.tune is not None:
        return options.tune
    searches = METHODS[options.method].searches_scales
    return searches and EFFORTS[options.effort].tunes and not is_image_text(Path(options.calib).expanduser())


def require_refining(method: BlockMethod, options: QuantizeOptions) -> None:
    """Refuses a method that has nothing to do if codes and grids are given.

    Raises:
        UsageError: It only searches scales and grids, or rounds by GPTQ.
    """
    if method.gptq or method.search is None or not method.search.refines:
        efforts = " or ".join(f"--effort {name}" for name, search in EFFORTS.items() if search.refines)
        effort = f" --effort {options.effort}" if method.search else ""
        raise UsageError(
            f"--method {options.method}{effort} cannot refine the codes of another checkpoint.",
            where=f"--init-from {options.init_from}",
            fix=f"use --method awq with {efforts}.",
        )
