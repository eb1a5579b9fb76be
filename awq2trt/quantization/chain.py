"""Quantizes the blocks of a model one after another, in one process or in several that share the work.

In: the residual stream before the first unfinished block. Out: that block and all later ones, each handed to the first
rank when it is finished, with the stream behind it. Windows are shared among ranks, and so are the rows of every
linear; statistics, losses and gradients are summed. Rows are rounded independently of each other, so that any number of
ranks gives the same codes, apart from ties and the last bits of sums.
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
from awq2trt.machine.behind import one_behind
from awq2trt.machine.ranks import Ranks
from awq2trt.models.block_weights import load_blocks, with_linears_of
from awq2trt.models.cross_attention import Media, without_cross
from awq2trt.models.decoder import ActivationRange, BlockRunner, Shown
from awq2trt.models.deepstack import Deepstack
from awq2trt.models.image_blocks import ImageBlocks
from awq2trt.models.sources.base import ModelSource
from awq2trt.progress import Progress
from awq2trt.quantization.beginning import begin_block
from awq2trt.quantization.block import Guide, QuantizedBlock, collect_statistics, dequantized, quantize_block, run_block
from awq2trt.quantization.correction import Pursuit
from awq2trt.quantization.learning import Lesson
from awq2trt.quantization.method import BlockMethod
from awq2trt.tracing import span


@dataclass(frozen=True)
class Streams:
    """The state of the chain: residual streams before a block.

    Attributes:
        hidden: fp32 [samples, seqlen, hidden_size]: the quantized model's if the method is sequential.
        original: The original model's, for a method that compares blocks with it.
        positions: Positions of the tokens, as `BlockRunner.placed` takes them: int64 [samples, 3, seqlen]; None where
            tokens are counted one by one.
        media: What blocks see of the windows' images, as `BlockRunner.placed` takes it; None for text alone.
    """

    hidden: Tensor
    original: Tensor | None
    positions: Tensor | None = None
    media: Shown | None = None


@dataclass(frozen=True)
class Link:
    """A finished block.

    Attributes:
        block: The quantized block.
        after: The streams behind it, for all windows.
        largest: Largest magnitude among its activations.
    """

    block: QuantizedBlock
    after: Streams
    largest: float


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

    def run(
        self, first: int, streams: Streams | None, keep: Callable[[int, Link], None], progress: Progress, title: str
    ) -> None:
        """Quantizes all blocks, beginning with a given one; all ranks call this together.

        Args:
            first: The first block's number, as the first rank knows it.
            streams: The streams before it, for all windows; None on other ranks.
            keep: Called with every finished block, only on the first rank; in another thread while a GPU computes the
                next one.
            progress: Receives the progress over blocks.
            title: The description that the user reads.
        """
        first, layers = self.ranks.told(first), self.source.spec.num_layers
        if first == layers:
            return
        # Only the first rank has measured the range of activations, on which the type of step sizes depends.
        same = replace(self, method=replace(self.method, scheme=self.ranks.told(self.method.scheme)))
        own = self._scattered(streams)
        samples, seqlen = self.ranks.told(None if streams is None else tuple(streams.hidden.shape[:2])) or (0, 0)
        runner = BlockRunner.for_positions(self.source.spec, seqlen).placed(own.positions, own.media)
        if first:
            progress.note(f"continuing after {first} of {layers} blocks")
        blocks = load_blocks(self.source, first)
        with progress.task(title, total=layers - first) as advance, one_behind() as behind:
            for layer in range(first, layers):
                with span("block", block=layer):
                    with span("read", block=layer):
                        weights = next(blocks)
                    block, own, largest = same._quantize_block(layer, runner, weights, own, samples)
                    del weights
                    with span("keep", block=layer):
                        after = self._gathered(own, samples)
                        if after is not None:
                            behind(partial(keep, layer, Link(block, after, largest)))
                advance(1)

    def _quantize_block(
        self, layer: int, runner: BlockRunner, weights: Mapping[str, Tensor], before: Streams, samples: int
    ) -> tuple[QuantizedBlock, Streams, float]:
        """Quantizes one block; also returns the streams behind it and the largest activation in it.

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
        # Rounded factors make a last bit of a stream a larger one. All ranks have the same bits of the original model's
        # streams; those of a quantized one differ by how sums were shared.
        factors = torch.float32 if method.sequential else narrow_type()
        runner, begun = replace(runner, seen=seen), None
        if self.beginning is not None:
            begun = begin_block(self.beginning, layer, weights, method.scheme)
            weights = without_cross(spec.cross, begun.tensors)
        if method.uses_text:
            with span("calibrate", block=layer):
                factored = with_linears_of(spec, weights, factors)
                outputs, statistics = collect_statistics(runner, layer, factored, hidden, method.ranks)
                del factored
        else:
            outputs, statistics = run_block(runner, layer, weights, hidden), {}
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
        return block, replace(before, hidden=outputs, original=original), self.ranks.largest(seen.largest)

    def _require_finite(self, outputs: Tensor, prefix: str) -> None:
        """Refuses outputs of a block that are NaN or infinite on any rank."""
        if self.ranks.total(float(not torch.isfinite(outputs).all())):
            raise CalibrationError(
                "the block's output is NaN or infinite on the calibration text.",
                where=prefix.rstrip("."),
                fix="check the checkpoint: its weights are finite, but the model cannot run with them.",
            )

    def _scattered(self, streams: Streams | None) -> Streams:
        """Returns this rank's windows of a tensor that the first rank has."""
        learns = self.ranks.told(streams is not None and streams.original is not None)
        placed = self.ranks.told(streams is not None and streams.positions is not None)
        hidden = self.ranks.scattered(streams.hidden if streams else None)
        original = self.ranks.scattered(streams.original if streams else None) if learns else None
        # Whole numbers up to 2^24 are exact in fp32, which ranks send to each other.
        positions = streams.positions.float() if streams and streams.positions is not None else None
        own = self.ranks.scattered(positions).long() if placed else None
        return Streams(hidden, original, own, self._scattered_media(streams.media if streams else None))

    def _scattered_media(self, media: Shown | None) -> Shown | None:
        """Returns what this rank's windows see."""
        if not self.ranks.told(media is not None):
            return None
        if self.ranks.told(isinstance(media, Deepstack)):
            return Deepstack(self.ranks.scattered(media.features if isinstance(media, Deepstack) else None))
        if self.source.spec.image_blocks:
            ends = media.ends.float() if isinstance(media, ImageBlocks) else None
            return ImageBlocks(self.ranks.scattered(ends).long())
        attended = media if isinstance(media, Media) else None
        pieces = self.ranks.scattered(attended.pieces if attended else None)
        image_of = self.ranks.scattered(attended.image_of.float() if attended else None)
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
