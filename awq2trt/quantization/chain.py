"""Quantizes the blocks of a model one after another, in one process or in several that share the work.

In: the residual stream before the first unfinished block. Out: that block and all later ones, each handed to the first
rank when it is finished, with the stream behind it.

Where blocks depend on nothing but the original model (`BlockMethod.blocks_apart`), ranks take them in turn. Each rank
runs all windows through all blocks, which takes little time beside quantizing them; so none waits for what another
found, and any number of ranks gives the same bits.

Otherwise windows are shared among ranks, and so are the rows of every linear; statistics, losses and gradients are
summed. Rows are rounded independently of each other, so that any number of ranks gives the same codes, apart from ties
and the last bits of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import CalibrationError
from awq2trt.machine.arithmetic import narrow_type
from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.models.block_weights import READ_AHEAD, READ_FAR_AHEAD, load_blocks, with_linears_of
from awq2trt.models.cross_attention import Media, without_cross
from awq2trt.models.decoder import ActivationRange, BlockRunner, Shown
from awq2trt.models.deepstack import Deepstack
from awq2trt.models.image_blocks import ImageBlocks
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.quantization.beginning import begin_block
from awq2trt.quantization.block import Guide, collect_statistics, dequantized, quantize_block, run_block
from awq2trt.quantization.correction import Pursuit
from awq2trt.quantization.handover import Found, Handover, Outcome, Streams
from awq2trt.quantization.learning import Lesson
from awq2trt.quantization.method import BlockMethod
from awq2trt.tracing import span


@dataclass(frozen=True)
class Chain:
    """Everything that is the same for all blocks.

    Attributes:
        source: The model.
        method: How to quantize a block, and the ranks that share it.
        seed: Seed of everything that is drawn at random.
        beginning: The checkpoint to begin at; None to begin with the original weights.
        spill: Whether second moments are kept in files between calibration and search, or in the machine's memory
            instead of a GPU's.
        spill_directory: Where these files go; None for the system's temporary directory.
    """

    source: ModelSource
    method: BlockMethod
    seed: int
    beginning: QuantizedCheckpoint | None = None
    spill: bool = False
    spill_directory: Path | None = None

    @property
    def ranks(self) -> Ranks:
        """The ranks that share the work."""
        return self.method.ranks

    def run(self, first: int, streams: Streams | None, outcome: Outcome, progress: Progress, title: str) -> None:
        """Quantizes all blocks, beginning with a given one; all ranks call this together.

        Args:
            first: The first block's number, as the first rank knows it.
            streams: The streams before it, for all windows; None on other ranks.
            outcome: What becomes of finished blocks.
            progress: Receives the progress over blocks.
            title: The description that the user reads.
        """
        first, layers = self.ranks.told(first), self.source.spec.num_layers
        if first == layers:
            return
        worker, apart = self._worker(), self.method.blocks_apart
        own = self._given(streams, self.ranks.copied if apart else self.ranks.scattered)
        samples, seqlen = self.ranks.told(None if streams is None else tuple(streams.hidden.shape[:2])) or (0, 0)
        runner = BlockRunner.for_positions(self.source.spec, seqlen).placed(own.positions, own.media)
        if first:
            progress.note(f"continuing after {first} of {layers} blocks")
        passes = apart and self.ranks.count > 1
        blocks = load_blocks(self.source, first, ahead=READ_FAR_AHEAD if passes else READ_AHEAD)
        with progress.task(title, total=layers - first) as advance:
            handover = Handover(self.ranks, apart, first, layers, outcome, advance)
            with handover.under_way() as finish:
                for layer in range(first, layers):
                    with span("block", block=layer):
                        with span("read", block=layer):
                            weights = next(blocks)
                        found = None
                        if handover.is_own(layer):
                            found, own = worker._quantize_block(layer, runner, weights, own, samples)
                        else:
                            own = worker._pass_block(layer, runner, weights, own)
                        del weights
                        with span("keep", block=layer):
                            after = worker._gathered(own, samples) if self.ranks.first or not apart else None
                            finish(layer, found, after)

    def _worker(self) -> Chain:
        """The chain as one rank works on a block: alone, if ranks take blocks in turn."""
        # Only the first rank has measured the range of activations, on which the type of step sizes depends.
        method = replace(self.method, scheme=self.ranks.told(self.method.scheme))
        return replace(self, method=replace(method, ranks=ALONE) if method.blocks_apart else method)

    def _pass_block(self, layer: int, runner: BlockRunner, weights: Mapping[str, Tensor], before: Streams) -> Streams:
        """Runs a block that another rank quantizes; the streams behind it have the bits that they have there."""
        before = _behind_images(runner, layer, weights, before)
        weights = self._as_run(without_cross(self.source.spec.cross, weights))
        with span("run the original block", block=layer):
            outputs = run_block(runner, layer, weights, before.hidden)
        self._require_finite(outputs, self.source.spec.prefix(layer))
        return replace(before, hidden=outputs)

    def _as_run(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A block's tensors as the windows run through them, with factors of the type that suits the method."""
        if not self.method.uses_text:
            return weights
        # Rounded factors make a last bit of a stream a larger one. All ranks have the same bits of the original model's
        # streams; those of a quantized one differ by how sums were shared.
        return with_linears_of(self.source.spec, weights, torch.float32 if self.method.sequential else narrow_type())

    def _quantize_block(
        self, layer: int, runner: BlockRunner, weights: Mapping[str, Tensor], before: Streams, samples: int
    ) -> tuple[Found, Streams]:
        """Quantizes one block; also returns the streams behind it.

        AWQ's search sees the unquantized model, as in the paper. A method that learns, or corrects weights, needs the
        stream of the original model, too.
        """
        spec, method, seen = self.source.spec, self.method, ActivationRange()
        before = _behind_images(replace(runner, seen=seen), layer, weights, before)
        whole, weights = weights, without_cross(spec.cross, weights)
        prefix, hidden, original = spec.prefix(layer), before.hidden, None
        lesson, pursuit = None, None
        if before.original is not None:
            with span("run the original block", block=layer):
                original = run_block(runner, layer, weights, before.original)
            run = partial(runner.run, layer=layer)
            if method.learn is not None:
                lesson = Lesson(run, hidden, original, self.seed + layer, samples, method.ranks)
            if method.correct is not None:
                pursuit = Pursuit(run, hidden, before.original, method.ranks)
        runner, begun = replace(runner, seen=seen), None
        if self.beginning is not None:
            begun = begin_block(self.beginning, layer, weights, method.scheme)
            weights = without_cross(spec.cross, begun.tensors)
        if method.uses_text:
            with span("calibrate", block=layer):
                outputs, statistics = collect_statistics(runner, layer, self._as_run(weights), hidden, method.ranks)
        else:
            outputs, statistics = run_block(runner, layer, self._as_run(weights), hidden), {}
        self._require_finite(outputs, prefix)
        with TemporaryDirectory(prefix="moments-", dir=self.spill_directory) as directory:
            if self.spill:
                for number, gathered in enumerate(statistics.values()):
                    gathered.put_away_(Path(directory) / f"{number}.npy")
            block = quantize_block(spec, layer, weights, statistics, method, Guide(lesson, begun, pursuit))
        if method.sequential:
            with span("run the quantized block", block=layer):
                outputs = run_block(runner, layer, dequantized(block.linears, block.norms), hidden)
        block = replace(block, norms=block.norms | {name: whole[name] for name in spec.cross_shapes(layer)})
        found = Found(block, self.ranks.largest(seen.largest))
        return found, replace(before, hidden=outputs, original=original)

    def _require_finite(self, outputs: Tensor, prefix: str) -> None:
        """Refuses outputs of a block that are NaN or infinite on any rank."""
        if self.ranks.total(float(not torch.isfinite(outputs).all())):
            raise CalibrationError(
                "the block's output is NaN or infinite on the calibration text.",
                where=prefix.rstrip("."),
                fix="check the checkpoint: its weights are finite, but the model cannot run with them.",
            )

    def _given(self, streams: Streams | None, give: Callable[[Tensor | None], Tensor]) -> Streams:
        """Returns what this rank is given of streams that the first rank has: all windows, or its share of them."""
        learns = self.ranks.told(streams is not None and streams.original is not None)
        placed = self.ranks.told(streams is not None and streams.positions is not None)
        hidden = give(streams.hidden if streams else None)
        original = give(streams.original if streams else None) if learns else None
        # Whole numbers up to 2^24 are exact in fp32, which ranks send to each other.
        positions = streams.positions.float() if streams and streams.positions is not None else None
        own = give(positions).long() if placed else None
        return Streams(hidden, original, own, self._given_media(streams.media if streams else None, give))

    def _given_media(self, media: Shown | None, give: Callable[[Tensor | None], Tensor]) -> Shown | None:
        """Returns what this rank's windows see."""
        if not self.ranks.told(media is not None):
            return None
        if self.ranks.told(isinstance(media, Deepstack)):
            return Deepstack(give(media.features if isinstance(media, Deepstack) else None))
        if self.source.spec.image_blocks:
            ends = media.ends.float() if isinstance(media, ImageBlocks) else None
            return ImageBlocks(give(ends).long())
        attended = media if isinstance(media, Media) else None
        pieces = give(attended.pieces if attended else None)
        image_of = give(attended.image_of.float() if attended else None)
        return Media(pieces, image_of.long())

    def _gathered(self, own: Streams, samples: int) -> Streams | None:
        """Returns the windows of all ranks, on the first one."""
        hidden = self.ranks.gathered(own.hidden, samples)
        original = None if own.original is None else self.ranks.gathered(own.original, samples)
        return None if hidden is None else Streams(hidden, original)


def _behind_images(runner: BlockRunner, layer: int, weights: Mapping[str, Tensor], before: Streams) -> Streams:
    """The streams behind the cross-attention before a block, if there is any; all of its linears read only those."""
    if not runner.spec.cross_shapes(layer):
        return before

    def looked(hidden: Tensor | None) -> Tensor | None:
        if hidden is None or not len(hidden):
            return hidden
        return torch.cat(
            [
                runner.look_at_images(weights, window, windows=slice(index, index + 1))
                for index, window in enumerate(hidden.split(1))
            ]
        )

    with span("look at images", block=layer):
        hidden = looked(before.hidden)
        assert hidden is not None
        same = before.original is before.hidden
        return replace(before, hidden=hidden, original=hidden if same else looked(before.original))
