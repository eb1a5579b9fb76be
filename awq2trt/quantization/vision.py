"""Quantizes the linears that a model sees with, those of its tower and of what is behind it.

In: the model, how a block's linears are quantized, and the pictures of the calibration windows. Out: codes of each
linear, and a report. Statistics are those of the original tower, through which every picture goes. Grids and
codes are searched as for a linear of a block, but nothing is scaled and folded into the layers before, and few pictures
may have shown little of an input (`linear_input.UNSEEN`).

A linear whose rows no kernel of codes takes stays as it is (`opset.FEATURES_MULTIPLE`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from torch import Tensor

from awq2trt.checkpoint.layouts import Layout, ModelSchemes, choose_layout
from awq2trt.machine.ranks import ALONE
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.models.vision.linears import VisionWeights, WatchedWeights
from awq2trt.models.vision.seeing import linears_by_input, pieces_seen
from awq2trt.models.vision.tower import load_vision
from awq2trt.opset import FEATURES_MULTIPLE
from awq2trt.progress import Progress
from awq2trt.quantization.block import LoneLinear, quantize_alone
from awq2trt.quantization.effort import EFFORTS
from awq2trt.quantization.image_windows import Sight
from awq2trt.quantization.method import BlockMethod
from awq2trt.quantization.statistics import InputStatistics
from awq2trt.recipe import QuantizeOptions
from awq2trt.tracing import span

_FP32_BYTES: Final = 4

MOMENTS_BYTES: Final = 1 << 30
"""Second moments that are in memory at once, unless those of one input are larger. All of CLIP-L's are 1.8 GB, so its
pictures are looked at twice."""

_UNLEARNT: Final = EFFORTS["best"]
"""What stands for a search after which a block learns, and which is light therefore: these linears do not learn."""

_TITLE: Final = "quantizing what it sees with"


@dataclass(frozen=True)
class VisionLinears:
    """The linears that a model sees with.

    Attributes:
        shapes: N and K of each that is quantized, by full name.
        by_input: Their names; those that share an input are together.
        kept: Those that stay as they are, since no kernel takes their rows: K by full name.
    """

    shapes: dict[str, tuple[int, int]]
    by_input: tuple[tuple[str, ...], ...]
    kept: dict[str, int]

    @classmethod
    def of(cls, vision: SeeingSpec) -> VisionLinears:
        """Finds them."""
        shapes, groups = vision.shapes(), linears_by_input(vision)
        sizes = {name: shapes[f"{name}.weight"] for group in groups for name in group}
        found = {name: (size[0], size[1]) for name, size in sizes.items() if size[1] % FEATURES_MULTIPLE == 0}
        by_input = tuple(group for group in groups if group[0] in found)
        return cls(found, by_input, {name: size[1] for name, size in sizes.items() if name not in found})

    @property
    def moments_bytes(self) -> int:
        """Bytes of the second moments that are in memory at once."""
        return max((sum(map(self._moments, part)) for part in self.parts()), default=0)

    def parts(self) -> Iterator[list[tuple[str, ...]]]:
        """Divides `by_input` into parts whose second moments are in memory together."""
        part, used = list[tuple[str, ...]](), 0
        for group in self.by_input:
            size = self._moments(group)
            if part and used + size > MOMENTS_BYTES:
                yield part
                part, used = [], 0
            part.append(group)
            used += size
        if part:
            yield part

    def _moments(self, group: Sequence[str]) -> int:
        return _FP32_BYTES * self.shapes[group[0]][1] ** 2


def schemes_of(source: ModelSource, options: QuantizeOptions) -> ModelSchemes:
    """How the weights of a model are to be quantized: those of its blocks, its head, and what it sees with."""
    seen_with: tuple[tuple[int, int], ...] = ()
    if options.quantize_vision and source.vision is not None:
        seen_with = tuple(VisionLinears.of(source.vision).shapes.values())
    return ModelSchemes(options.scheme, options.head_scheme, seen_with)


def layout_lines(spec: DecoderSpec, schemes: ModelSchemes, layout: Layout) -> Iterator[str]:
    """Says that a checkpoint has another layout because of what the model sees with, if it has.

    Args:
        spec: The model.
        schemes: How it is quantized, and what it sees with.
        layout: The layout that was chosen for all of that.
    """
    without = choose_layout(spec, replace(schemes, seen_with=()))
    if without != layout:
        yield (
            f"the checkpoint has the layout {layout.name}, which fewer tools read than {without.name}, since groups of "
            f"{schemes.blocks.group_size} do not divide the inputs of all linears that the model sees with; a smaller "
            "--group-size may"
        )


def quantize_vision(
    sight: Sight, pictures: Sequence[Path], method: BlockMethod, progress: Progress
) -> Iterator[LoneLinear]:
    """Quantizes every linear that a model sees with, one after the other.

    Args:
        sight: How it sees.
        pictures: What it is shown; not used by a method that uses no text.
        method: How the linears of its blocks are quantized.
        progress: Counts linears, and pictures.

    Raises:
        CheckpointError: A step size is beyond fp16.
        CalibrationError: An input of a linear is not finite.
        UsageError: A picture cannot be read.
    """
    linears, weights = VisionLinears.of(sight.vision), load_vision(sight.source)
    method = replace(method, ranks=ALONE, search=_UNLEARNT if method.learn else method.search)
    if linears.kept:
        name, width = next(iter(linears.kept.items()))
        progress.note(
            f"{len(linears.kept)} linears that the model sees with stay as they are, since codes need a multiple of "
            f"{FEATURES_MULTIPLE} inputs; the first of them, {name}, has {width}"
        )
    with progress.task(_TITLE, total=len(linears.shapes)) as advance:
        for part in linears.parts():
            statistics = dict[str, InputStatistics]()
            if method.uses_text:
                widths = {group[0]: linears.shapes[group[0]][1] for group in part}
                statistics = _collected(sight, weights, widths, pictures)
            for group in part:
                owned = {name: weights[f"{name}.weight"] for name in group}
                biases = {name: weights.get(f"{name}.bias") for name in group}
                for found in quantize_alone(owned, biases, statistics.pop(group[0], None), method):
                    yield found
                    advance(1)


def _collected(
    sight: Sight, weights: VisionWeights, widths: dict[str, int], pictures: Iterable[Path]
) -> dict[str, InputStatistics]:
    """Statistics of some inputs of linears, by the first linear that reads each, from one picture after the other."""
    statistics = {name: InputStatistics.empty(width) for name, width in widths.items()}

    def observe(name: str, x: Tensor) -> None:
        if name in statistics:
            statistics[name].add_(x.reshape(-1, x.shape[-1]))

    watched = WatchedWeights(weights, observe)
    with span("look at the pictures"):
        for path in pictures:
            pieces_seen(sight.vision, watched, sight.pixels(path))
    return statistics
