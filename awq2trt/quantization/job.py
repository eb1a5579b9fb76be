"""Quantizes a model block by block: one block in memory, each finished block on disk, resumable to the same bytes.

In: a `ModelSource` and options. Out: the checkpoint's files in one directory. `awq2trt.quantization.store` keeps in
another directory what a resumed run needs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from awq2trt.artifact.arrays import write_arrays
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.checkpoint.layouts import Layout, choose_layout, pack_linear
from awq2trt.checkpoint.search_files import REPORT_FILE, SEARCH_FILE
from awq2trt.checkpoint.writer import (
    Unread,
    compact,
    for_dtype,
    merge_shards,
    quantized_config,
    storage_dtype,
    write_config,
)
from awq2trt.images.pairs import is_image_text, read_pairs
from awq2trt.images.processor import read_processor
from awq2trt.machine.arithmetic import narrow_type
from awq2trt.machine.behind import working_behind
from awq2trt.machine.device import CPU
from awq2trt.machine.ranks import ALONE, Ranks
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import ActivationRange, BlockRunner, Ends, Shown, run_blocks, run_model
from awq2trt.models.families import SeeingSpec
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import Array, ModelSource, largest_magnitude
from awq2trt.models.sources.safetensors import SafetensorsFiles
from awq2trt.progress import Progress, SilentProgress
from awq2trt.quantization.beginning import open_beginning
from awq2trt.quantization.block import LinearReport, plain_tensors
from awq2trt.quantization.chain import Chain
from awq2trt.quantization.described import Describer
from awq2trt.quantization.handover import Link, Outcome, Streams
from awq2trt.quantization.head import CalibratedHead, HeadReport, head_lines, quantize_head
from awq2trt.quantization.image_windows import ImageWindows, Sight, WindowSizes, image_windows
from awq2trt.quantization.method import BlockMethod, method_of, require_refining
from awq2trt.quantization.packer import Packer
from awq2trt.quantization.rounding import with_steps_of
from awq2trt.quantization.store import Store
from awq2trt.quantization.tuning import FinishedBlock, Predicted, TuneOptions, tune_steps
from awq2trt.quantization.vision import layout_lines, quantize_vision, schemes_of
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import FLOAT16, QuantScheme
from awq2trt.text.tokenizer import bos_of, load_tokenizer
from awq2trt.text.windows import calibration_tokens
from awq2trt.tracing import span

_PROBE_TOKENS: Final = 64

_LOOKED_AT: Final = 8
"""Windows of the calibration text that show, before the first block, how large activations become, by their first
`_PROBE_TOKENS` tokens: of 16 windows of WikiText-2, twice, these had SmolLM2-135M's largest activation."""

_IMAGES_LOOKED_AT: Final = 4
"""The same of windows with images, which are looked at completely."""

_UNSEEN: Final = 1.2
"""How much larger activations in other windows may be: in 16 windows of WikiText-2, SmolLM2-135M's reach 21,232 to
27,181."""

_FILES_AT_ONCE: Final = 4
"""Files of a checkpoint that are written at the same time after a GPU has computed it, when its host has little to do.
On a CPU it is one: the plan of memory counts one."""


_STREAMS_EVERY_S: Final = 5.0
"""How often the streams behind a block are stored while a GPU computes: those of 128 windows are a gigabyte for
Llama-3-8B, of which a block takes half a second. A run that is killed loses so much work, and what it did on its last
block."""


class StreamsDue:
    """Says after which blocks the residual streams are stored: on a CPU after all of them.

    Args:
        layers: Number of blocks.
        every_s: How many seconds pass between two on a GPU.
    """

    def __init__(self, layers: int, every_s: float = _STREAMS_EVERY_S) -> None:
        self._layers = layers
        self._every_s = 0.0 if torch.empty(0).is_cpu else every_s
        self._last = -math.inf

    def __call__(self, layer: int) -> bool:
        """Whether those behind block `layer`, which has just been finished, are to be stored; the last always are."""
        now = time.monotonic()
        if layer + 1 < self._layers and now - self._last < self._every_s:
            return False
        self._last = now
        return True


@dataclass(frozen=True)
class JobResult:
    """What a finished job reports.

    Attributes:
        tokens: Calibration windows, int64 [samples, seqlen]; None if the method uses none.
        reports: Reports by the linear's full name.
        head: Report of a quantized head; None if it is not quantized.
        dtype: Type of activations and of unquantized weights, by NumPy's name.
        vision_linears: Full names of the linears that it sees with and that were quantized.
    """

    tokens: Tensor | None
    reports: dict[str, LinearReport]
    head: HeadReport | None
    dtype: str
    vision_linears: tuple[str, ...] = ()

    def tokens_sha256(self) -> str | None:
        """Hash of the calibration token ids as little-endian int64."""
        if self.tokens is None:
            return None
        return hashlib.sha256(self.tokens.numpy(force=True).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class QuantizeJob:
    """A model on its way into `files`; `prepare` makes a job.

    Attributes:
        source: The model.
        options: Method, scheme, calibration.
        method: How the options say to quantize a block.
        layout: Layout of the checkpoint's quantized tensors.
        files: Empty directory for the checkpoint.
        store: The work that is done so far.
        progress: Receives the progress of calibration and blocks.
        beginning: The checkpoint to begin at; None to begin with the original weights.
        spill: Whether second moments are kept in files, see `memory_plan`.
    """

    source: ModelSource
    options: QuantizeOptions
    method: BlockMethod
    layout: Layout
    files: Path
    store: Store
    progress: Progress
    beginning: QuantizedCheckpoint | None = None
    spill: bool = False

    @classmethod
    def prepare(
        cls,
        source: ModelSource,
        options: QuantizeOptions,
        *,
        files: Path,
        scratch: Path,
        progress: Progress,
        ranks: Ranks = ALONE,
    ) -> QuantizeJob:
        """Makes a job that continues from what is in `scratch`, or begins there; it is for the first of several ranks.

        Raises:
            UnsupportedError: No layout of checkpoints can hold this model with this scheme.
            UsageError: The checkpoint to begin at belongs to another model, or the method cannot begin at one.
        """
        store = Store(scratch, source.spec.num_layers)
        schemes, (method, beginning) = schemes_of(source, options), _asked(source, options, ranks)
        layout = choose_layout(source.spec, schemes)
        for line in layout_lines(source.spec, schemes, layout) if schemes.seen_with else ():
            progress.note(line)
        return cls(source, options, method, layout, files, store, progress, beginning)

    def run(self) -> JobResult:
        """Runs the job, or continues it at the first unfinished block.

        Raises:
            UsageError: Calibration windows are longer than the model has positions.
            CheckpointError: A tensor is missing, has a wrong shape, or is not finite.
            CalibrationError: The text is too short, or the model's activations are not finite on it.
        """
        if self.method.uses_text:
            require_positions(self.source.spec, self.options.seqlen, where="--seqlen")
        self.store.same_computer_(self.method.ranks, shared=not self.method.blocks_apart)
        with self.progress.task("reading the tokenizer", total=1) as advance:
            self.source.save_tokenizer(self.files)
            advance(1)
        with torch.no_grad():  # not inference_mode(), through whose tensors no gradient can be taken
            images = self._image_windows() if self.method.uses_text else None
            tokens = None
            if self.method.uses_text:
                tokens = self._tokens() if images is None else self.store.keep_tokens(images.tokens)
            windows = self._range_probe() if tokens is None else tokens
            step_dtype = self._step_dtype(windows, images)
            self._with_steps_of(step_dtype)._quantize_blocks(windows, images)
            self.method.ranks.leave()
            if self.options.head_scheme is not None and self.store.head_report() is None:
                self._quantize_head(with_steps_of(self.options.head_scheme, step_dtype), tokens)
            if self.options.quantize_vision and self.source.vision is not None:
                self._quantize_vision(self.source.vision, step_dtype, images)
            dtype = self._write_checkpoint()
            if tokens is not None and self.method.tune is not None:
                self._tune(tokens, self.method.tune, dtype)
                self._write_checkpoint()
        return JobResult(
            tokens, self.store.reports(), self.store.head_report(), dtype, tuple(self.store.vision_reports())
        )

    def _tokens(self) -> Tensor:
        """Returns calibration windows: those of the interrupted run, or new ones, which are then stored."""
        kept = self.store.tokens()
        if kept is not None:
            return kept
        with span("make the windows"):
            tokens = calibration_tokens(self.source, self.files, self.options, self.progress)
        if tokens.shape[0] < self.options.samples:
            self.progress.note(
                f"the calibration text has only {tokens.shape[0]} windows of {self.options.seqlen} tokens; "
                f"{self.options.samples} were wanted"
            )
        return self.store.keep_tokens(tokens)

    def _image_windows(self) -> ImageWindows | None:
        """Returns windows of pictures and text for a model with images; None if the calibration text is only text."""
        vision, path = self.source.vision, Path(self.options.calib).expanduser()
        if vision is None:
            return None
        if not is_image_text(path):
            self.progress.note(
                "calibrating only on text, although the decoder will also read images: with --calib, name a folder of "
                "images, with or without captions, or a .jsonl file"
            )
            return None
        tokenizer = load_tokenizer(self.files)
        options, bos = self.options, bos_of(tokenizer, self.source.spec.family)
        pairs, where = read_pairs(path), self.options.calib
        sizes, sight = WindowSizes(options.samples, options.seqlen, bos), self._sight(vision)
        if pairs[0].bare:
            describer, folder = Describer(tokenizer, sight, sizes, options.seed), self.store.directory / "described"
            pairs = describer.describe([pair.images[0] for pair in pairs], folder, self.progress)
            self.progress.note(
                f"the pictures have no captions; of the first, the model says: {pairs[0].captions[0][:80]!r}"
            )
        windows = image_windows(tokenizer, sight, pairs, sizes, where=where)
        if len(windows.images) < options.samples:
            self.progress.note(
                f"the images and captions fill only {len(windows.images)} windows of {options.seqlen} tokens; "
                f"{options.samples} were wanted"
            )
        return windows

    def _sight(self, vision: SeeingSpec) -> Sight:
        return Sight(self.source, vision, read_processor(self.files, name=self.source.name))

    def _first_hidden(self, tokens: Tensor, seen: ImageWindows | None) -> Tensor:
        """The residual stream before the first block, with the features of images in their places."""
        if seen is None or self.source.vision is None:
            return Ends(self.source).embed(tokens)
        return seen.embed(self._sight(self.source.vision), self.progress)

    def _placed(self, seen: ImageWindows | None) -> tuple[Tensor | None, Shown | None]:
        """Positions of tokens, where images have places in rows and columns, and what blocks see of images."""
        if seen is None or self.source.vision is None:
            return None, None
        sight = self._sight(self.source.vision)
        return seen.positions(sight), seen.media(sight, self.progress)

    def _range_probe(self) -> Tensor:
        """Tokens that show how large activations become if there is no text: BOS, then random ones; int64 [1, S].

        The first token of a sequence has the largest activations (massive activations, arXiv:2402.17762).
        """
        vocab_size, length = self.source.spec.vocab_size, min(_PROBE_TOKENS, self.source.spec.max_positions)
        generator = torch.Generator(CPU).manual_seed(self.options.seed)
        drawn = torch.randint(0, vocab_size, (1, length), generator=generator, device=CPU)
        bos = self.source.text_config.get("bos_token_id")
        if isinstance(bos, int) and bos < vocab_size:
            drawn[0, 0] = bos
        return drawn

    def _step_dtype(self, tokens: Tensor, images: ImageWindows | None) -> str:
        """Chooses the type of step sizes: the type in which the checkpoint will be stored, judging from some windows.

        Codes are chosen for step sizes as they will be stored, but how large activations become is only known after the
        last block.
        """
        kept = self.store.step_dtype()
        if kept is not None:
            return kept
        seen = ActivationRange()
        first = images.first(_IMAGES_LOOKED_AT) if images else None
        hidden = self._first_hidden(tokens[:_LOOKED_AT, :_PROBE_TOKENS], first)
        runner = BlockRunner.for_positions(self.source.spec, hidden.shape[1], seen=seen).placed(*self._placed(first))
        magnitudes = dict[str, float]()
        with (
            span("look at the range"),
            self.progress.task("looking at the range of activations", total=self.store.layers) as advance,
            working_behind(0 if torch.empty(0).is_cpu else 1) as behind,
        ):
            behind(lambda: magnitudes.update(self._outer_magnitudes))
            run_blocks(self.source, hidden, runner=runner, progress=advance, factors=narrow_type())
        largest = max(seen.largest, *magnitudes.values())
        return self.store.keep_step_dtype(storage_dtype(largest * _UNSEEN))

    def _with_steps_of(self, dtype: str) -> QuantizeJob:
        """Returns the same job, with step sizes that a type can hold."""
        return replace(self, method=replace(self.method, scheme=with_steps_of(self.method.scheme, dtype)))

    def _quantize_blocks(self, tokens: Tensor, seen: ImageWindows | None) -> None:
        first, streams = self.store.finished_blocks(), None
        if first < self.store.layers:
            hidden = self.store.hidden(first) if first else self._first_hidden(tokens, seen)
            original = None
            if self.method.needs_original:
                original = self.store.original(first) if first else hidden
            streams = Streams(hidden, original, *self._placed(seen))
        title = f"quantizing blocks ({self.options.method})"
        outcome = Outcome(self._packer.block, partial(self._keep, due=StreamsDue(self.store.layers)))
        self._chain().run(first, streams, outcome, self.progress, title)

    @property
    def _packer(self) -> Packer:
        return Packer(self.source.spec, self.layout)

    def _chain(self) -> Chain:
        scratch = self.store.directory
        return Chain(self.source, self.method, self.options.seed, self.beginning, self.spill, scratch)

    def _keep(self, layer: int, link: Link, due: StreamsDue) -> None:
        """Stores a finished block, but first the streams behind it if they are due."""
        if due(layer):
            if link.after.original is not None:
                self.store.keep_original(layer + 1, link.after.original)
            self.store.keep_hidden(layer + 1, link.after.hidden)
        self.store.keep_largest_activation(layer, link.largest)
        self.store.keep_block(layer, link.block)

    def _tune(self, tokens: Tensor, options: TuneOptions, dtype: str) -> None:
        """Tunes the step sizes of the checkpoint that was written, unless an interrupted run has already done so."""
        if self.store.tuned():
            return
        spec, written = self.source.spec, QuantizedCheckpoint.open(self.files)
        blocks = [self._finished(written, layer, dtype) for layer in range(spec.num_layers)]
        runner = BlockRunner.for_positions(spec, tokens.shape[1])
        with self.progress.task("running the original model", total=spec.num_layers) as advance:
            final = run_model(self.source, tokens, progress=advance)
        predicted = Predicted(Ends(self.source), runner, tokens, final, self.options.seed)
        with self.progress.task("tuning step sizes", total=options.steps) as advance:
            tuned = tune_steps(blocks, predicted, options, advance)
        for layer, linears in enumerate(tuned):
            tensors = SafetensorsFiles.of_file(self.store.block_files()[layer])
            kept = {name: tensors.tensor(name) for name in tensors}
            self.store.keep_tuned(layer, kept | self._packer.linears(layer, linears))

    def _finished(self, written: QuantizedCheckpoint, layer: int, dtype: str) -> FinishedBlock:
        """Reads a block of the checkpoint that was written, whose steps will have the type `dtype`."""
        spec, prefix = written.spec, written.spec.prefix(layer)
        scheme = with_steps_of(written.scheme, dtype)
        linears = {name: replace(written.linear(prefix + name), scheme=scheme) for name in spec.block.linears}
        return FinishedBlock(linears, plain_tensors(spec, load_block(written, layer)))

    def _quantize_head(self, scheme: QuantScheme, tokens: Tensor | None) -> None:
        """Quantizes the head on the last block's outputs: the quantized model's if the method is sequential."""
        source, name = self.source, self.source.spec.stored_head
        weight = source.checked_tensor(f"{name}.weight", source.spec.outer_shapes()[f"{name}.weight"])
        search = self.method.search
        with self.progress.task(f"quantizing the head ({self.options.head})", total=1) as advance:
            text = None
            if tokens is not None:
                hidden = Ends(source).normed(self.store.hidden(self.store.layers))
                text = CalibratedHead(hidden, tokens.to(hidden.device))
            with span("quantize the head"):
                linear, report = quantize_head(weight, scheme, text, search.grids if search else None, where=name)
            self.store.keep_head(pack_linear(name, linear, self.layout), report)
            advance(1)
        for line in head_lines(source.spec, report):
            self.progress.note(line)

    def _quantize_vision(self, vision: SeeingSpec, dtype: str, seen: ImageWindows | None) -> None:
        """Quantizes what the model sees with, by the first rank alone, unless an interrupted run has done so."""
        if self.store.vision_reports():
            return
        method, pictures = self._with_steps_of(dtype).method, () if seen is None else seen.pictures
        found = quantize_vision(self._sight(vision), pictures, method, self.progress)
        self.store.keep_vision(self._packer.alone(found))

    def _write_checkpoint(self) -> str:
        """Merges blocks and the tensors outside them; writes config.json last. Returns the checkpoint's type."""
        source, dtype = self.source, self._storage_dtype()
        quantized = self.store.final_files()
        head, seen_with = self.store.head_report(), self.store.vision_reports()
        quantized += [self.store.head_file] if head is not None else []
        quantized += [self.store.vision_file] if seen_with else []
        coded = {f"{name}.{kind}" for name in seen_with for kind in ("weight", "bias")}
        coded |= set() if head is None else {f"{source.spec.stored_head}.weight"}
        outer = {name: self._outer(name, dtype) for name in source.unquantized_shapes() if name not in coded}
        convert = partial(for_dtype, spec=source.spec, dtype=dtype)
        at_once = 1 if torch.empty(0).is_cpu else _FILES_AT_ONCE
        with span("merge the checkpoint"):
            merge_shards(quantized, outer, self.files, convert=convert, at_once=at_once)
        reports = {name: asdict(report) for name, report in (self.store.reports() | seen_with).items()}
        if head is not None:
            reports[source.spec.head] = asdict(head)
        (self.files / REPORT_FILE).write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        search = self.store.search()
        if search:
            write_arrays(self.files / SEARCH_FILE, search)
        schemes = schemes_of(source, self.options)
        config = quantized_config(source.config, source.model_spec, schemes, self.layout, dtype, seen_with)
        write_config(self.files, config)
        return dtype

    def _outer(self, name: str, dtype: str) -> Unread:
        """A tensor outside the blocks as a checkpoint of `dtype` stores it; a matrix is read when it is written."""
        shape = self.source.unquantized_shapes()[name]
        if len(shape) == 1:
            exact = self.source.spec.norm.unit_offset
            return Unread.of(compact(self.source.checked_tensor(name, shape), exact=exact))
        stored = np.dtype(dtype)

        def read() -> Array:
            return self.source.checked_tensor(name, shape).astype(stored, copy=False)

        return Unread(math.prod(shape) * stored.itemsize, read)

    @cached_property
    def _outer_magnitudes(self) -> dict[str, float]:
        """The largest magnitude of every tensor outside the blocks, by full name; they are read for it once."""
        source, shapes = self.source, self.source.unquantized_shapes()
        return {name: largest_magnitude(source.checked_tensor(name, shape)) for name, shape in shapes.items()}

    def _storage_dtype(self) -> str:
        """Returns fp16, or bf16 if activations or weights come near the end of fp16's range, which is then reported."""
        layers, spec = range(self.store.layers), self.source.spec
        reached = {spec.prefix(layer).rstrip("."): self.store.largest_activation(layer) for layer in layers}
        reached |= self._outer_magnitudes
        where = max(reached, key=reached.__getitem__)
        dtype = storage_dtype(reached[where])
        if dtype != FLOAT16:
            self.progress.note(
                f"values reach {reached[where]:,.0f} in {where}, beyond fp16's range of 65,504 or too near its end, so "
                f"the checkpoint and the exported model use {dtype}"
            )
        return dtype


def assist(source: ModelSource, options: QuantizeOptions, ranks: Ranks, *, spill: bool = False) -> None:
    """Does the work of the ranks other than the first while that runs its job: blocks, or a share of every block.

    Args:
        source: The model.
        options: The options of all ranks.
        ranks: All ranks.
        spill: Whether second moments are kept in files, see `memory_plan`.

    Raises:
        RankLostError: Another rank is gone.
        CheckpointError: A tensor is missing, has a wrong shape, or is not finite.
        CalibrationError: The model's activations are not finite on the calibration text.
    """
    torch.set_num_threads(ranks.told(0))
    method, beginning = _asked(source, options, ranks)
    outcome = Outcome(Packer(source.spec, choose_layout(source.spec, schemes_of(source, options))).block, _keep_nothing)
    with torch.no_grad():
        Chain(source, method, options.seed, beginning, spill).run(0, None, outcome, SilentProgress(), "")
    ranks.leave()


def _keep_nothing(layer: int, link: Link) -> None:
    del layer, link


def _asked(
    source: ModelSource, options: QuantizeOptions, ranks: Ranks
) -> tuple[BlockMethod, QuantizedCheckpoint | None]:
    """How to quantize a block, and where to begin, according to the options."""
    method, beginning = replace(method_of(options), ranks=ranks), None
    if options.init_from is not None:
        require_refining(method, options)
        beginning = open_beginning(Path(options.init_from).expanduser(), source, options.scheme)
    return method, beginning
