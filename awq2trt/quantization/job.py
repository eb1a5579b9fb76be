"""A model quantized block by block: one block in memory, each finished block on disk, resumable to the same bytes.

In: a `ModelSource` and options. Out: the checkpoint's files in one directory. What a resumed run needs is kept in
another, by `awq2trt.quantization.store`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from awq2trt.artifact.arrays import write_arrays
from awq2trt.checkpoint.checkpoint import fuse_linears
from awq2trt.checkpoint.layouts import Layout, ModelSchemes, choose_layout, pack_linear
from awq2trt.checkpoint.search_files import REPORT_FILE, SEARCH_FILE
from awq2trt.checkpoint.writer import (
    FLOAT16,
    compact,
    for_dtype,
    merge_shards,
    quantized_config,
    storage_dtype,
    write_config,
)
from awq2trt.errors import CalibrationError
from awq2trt.machine.device import CPU
from awq2trt.models.decoder import ActivationRange, BlockRunner, Ends, load_block
from awq2trt.models.families import DecoderSpec
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.progress import Progress
from awq2trt.quantization.block import (
    BlockMethod,
    LinearReport,
    QuantizedBlock,
    collect_statistics,
    dequantized,
    method_of,
    quantize_block,
    run_block,
)
from awq2trt.quantization.head import CalibratedHead, HeadReport, quantize_head
from awq2trt.quantization.store import Store, StoredBlock
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantScheme
from awq2trt.text.windows import calibration_tokens

_PROBE_TOKENS: Final = 64


@dataclass(frozen=True)
class JobResult:
    """What a finished job says about itself.

    Attributes:
        tokens: Calibration windows, int64 [samples, seqlen]; None if the method uses none.
        reports: By linear's full name.
        head: What became of a quantized head; None for one that is not.
        dtype: Of activations, and of what is not quantized: NumPy's name.
    """

    tokens: Tensor | None
    reports: dict[str, LinearReport]
    head: HeadReport | None
    dtype: str

    def tokens_sha256(self) -> str | None:
        """Hash of the calibration token ids as little-endian int64."""
        if self.tokens is None:
            return None
        return hashlib.sha256(self.tokens.numpy(force=True).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class QuantizeJob:
    """One model on its way into `files`; `prepare` makes it.

    Attributes:
        source: The model.
        options: Method, scheme, calibration.
        method: What they ask of a block.
        layout: Of the checkpoint's quantized tensors.
        files: Empty directory for the checkpoint.
        store: What is done so far.
        progress: Of calibration and blocks.
    """

    source: ModelSource
    options: QuantizeOptions
    method: BlockMethod
    layout: Layout
    files: Path
    store: Store
    progress: Progress

    @classmethod
    def prepare(
        cls, source: ModelSource, options: QuantizeOptions, *, files: Path, scratch: Path, progress: Progress
    ) -> QuantizeJob:
        """A job that goes on from what is in `scratch`, or begins there.

        Raises:
            UnsupportedError: No layout of checkpoints holds the scheme's weights of this model.
        """
        store = Store(scratch, source.spec.num_layers)
        layout = choose_layout(source.spec, _schemes(options))
        return cls(source, options, method_of(options), layout, files, store, progress)

    def run(self) -> JobResult:
        """Runs, or goes on from the first block that is not finished.

        Raises:
            UsageError: Calibration windows are longer than the model has positions.
            CheckpointError: A tensor is missing, misshapen or not finite.
            CalibrationError: The text is too short, or the model's activations are not finite on it.
        """
        if self.method.uses_text:
            require_positions(self.source.spec, self.options.seqlen, where="--seqlen")
        self.store.same_computer_()
        with self.progress.task("reading the tokenizer", total=1) as advance:
            self.source.save_tokenizer(self.files)
            advance(1)
        with torch.inference_mode():
            tokens = self._tokens() if self.method.uses_text else None
            self._quantize_blocks(self._range_probe() if tokens is None else tokens)
            if self.options.head_scheme is not None and self.store.head_report() is None:
                self._quantize_head(self.options.head_scheme, tokens)
        dtype = self._write_checkpoint()
        return JobResult(tokens, self.store.reports(), self.store.head_report(), dtype)

    def _tokens(self) -> Tensor:
        """Calibration windows: those of the interrupted run, else made now and kept."""
        kept = self.store.tokens()
        if kept is not None:
            return kept
        tokens = calibration_tokens(self.source, self.files, self.options, self.progress)
        if tokens.shape[0] < self.options.samples:
            self.progress.note(
                f"the calibration text holds {tokens.shape[0]} windows of {self.options.seqlen} tokens, "
                f"{self.options.samples} were asked for"
            )
        return self.store.keep_tokens(tokens)

    def _range_probe(self) -> Tensor:
        """Tokens that show how large activations get where no text does: BOS, then drawn ones; int64 [1, S].

        The first token of a sequence gathers the largest activations (massive activations, arXiv:2402.17762).
        """
        vocab_size, length = self.source.spec.vocab_size, min(_PROBE_TOKENS, self.source.spec.max_positions)
        generator = torch.Generator(CPU).manual_seed(self.options.seed)
        drawn = torch.randint(0, vocab_size, (1, length), generator=generator, device=CPU)
        bos = self.source.config.get("bos_token_id")
        if isinstance(bos, int) and bos < vocab_size:
            drawn[0, 0] = bos
        return drawn

    def _quantize_blocks(self, tokens: Tensor) -> None:
        layers, first = self.store.layers, self.store.finished_blocks()
        if first == layers:
            return
        runner = BlockRunner.for_positions(self.source.spec, tokens.shape[1])
        hidden = self.store.hidden(first) if first else Ends(self.source).embed(tokens)
        with self.progress.task(f"quantizing blocks ({self.options.method})", total=layers) as advance:
            advance(first)
            for layer in range(first, layers):
                hidden = self._quantize_block(layer, runner, hidden)
                advance(1)

    def _quantize_block(self, layer: int, runner: BlockRunner, hidden: Tensor) -> Tensor:
        """One block; returns the residual stream after it: the quantized model's if the method is sequential.

        AWQ's search sees the unquantized model, as in the paper.
        """
        spec, method, seen = self.source.spec, self.method, ActivationRange()
        runner = replace(runner, seen=seen)
        weights, prefix = load_block(self.source, layer), spec.prefix(layer)
        if method.uses_text:
            outputs, statistics = collect_statistics(runner, layer, weights, hidden)
        else:
            outputs, statistics = run_block(runner, layer, weights, hidden), {}
        if not torch.isfinite(outputs).all():
            raise CalibrationError(
                "the block's output is NaN or infinite on the calibration text.",
                where=prefix.rstrip("."),
                fix="check the checkpoint: its weights are finite, but they do not compute.",
            )
        block = quantize_block(spec, layer, weights, statistics, method)
        if method.sequential:
            outputs = run_block(runner, layer, dequantized(block), hidden)
        self.store.keep_hidden(layer + 1, outputs)
        self.store.keep_largest_activation(layer, seen.largest)
        self.store.keep_block(layer, self._packed(prefix, block))
        return outputs

    def _quantize_head(self, scheme: QuantScheme, tokens: Tensor | None) -> None:
        """The head, on what the last block gives: the quantized model's if the method is sequential."""
        source, name = self.source, self.source.spec.stored_head
        weight = source.checked_tensor(f"{name}.weight", source.spec.outer_shapes()[f"{name}.weight"])
        search = self.method.search
        with self.progress.task(f"quantizing the head ({self.options.head})", total=1) as advance:
            text = None
            if tokens is not None:
                hidden = Ends(source).normed(self.store.hidden(self.store.layers))
                text = CalibratedHead(hidden, tokens.to(hidden.device))
            linear, report = quantize_head(weight, scheme, text, search.grids if search else None, where=name)
            self.store.keep_head(pack_linear(name, linear, self.layout), report)
            advance(1)
        for line in _head_lines(source.spec, report):
            self.progress.note(line)

    def _packed(self, prefix: str, block: QuantizedBlock) -> StoredBlock:
        """A block as the checkpoint holds it."""
        spec = self.source.spec
        exact = spec.norm.unit_offset  # 1 + weight is near 0 where weight is near -1
        tensors = {prefix + name: compact(value.numpy(force=True), exact=exact) for name, value in block.norms.items()}
        for name, linear in fuse_linears(spec, block.linears).items():
            tensors.update(pack_linear(prefix + name, linear, self.layout))
        return StoredBlock(
            tensors,
            reports={prefix + name: report for name, report in block.reports.items()},
            search={prefix + name: value.numpy(force=True) for name, value in block.search.items()},
        )

    def _write_checkpoint(self) -> str:
        """Merges the blocks with what stands outside them; config.json comes last. Returns the type it stores in."""
        source, outer = self.source, self.source.outer()
        dtype = self._storage_dtype(outer)
        quantized = self.store.block_files()
        head = self.store.head_report()
        if head is not None:
            del outer[f"{source.spec.stored_head}.weight"]
            quantized.append(self.store.head_file)
        for name, value in outer.items():
            vector = value.ndim == 1
            outer[name] = (
                compact(value, exact=source.spec.norm.unit_offset) if vector else value.astype(np.dtype(dtype))
            )
        convert = partial(for_dtype, spec=source.spec, dtype=dtype)
        merge_shards(quantized, outer, self.files, convert=convert)
        reports = {name: asdict(report) for name, report in self.store.reports().items()}
        if head is not None:
            reports[source.spec.head] = asdict(head)
        (self.files / REPORT_FILE).write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        search = self.store.search()
        if search:
            write_arrays(self.files / SEARCH_FILE, search)
        config = quantized_config(source.config, source.spec, _schemes(self.options), self.layout, dtype)
        write_config(self.files, config)
        return dtype

    def _storage_dtype(self, outer: Mapping[str, Array]) -> str:
        """fp16, unless activations or weights come near the end of its range; then bf16, and a word about it."""
        layers, spec = range(self.store.layers), self.source.spec
        reached = {spec.prefix(layer).rstrip("."): self.store.largest_activation(layer) for layer in layers}
        reached |= {name: float(np.abs(value.astype(np.float32)).max()) for name, value in outer.items()}
        where = max(reached, key=reached.__getitem__)
        dtype = storage_dtype(reached[where])
        if dtype != FLOAT16:
            self.progress.note(
                f"values reach {reached[where]:,.0f} in {where}, beyond fp16's range of 65,504 or too near its end: "
                f"the checkpoint says {dtype}, and so will the exported model"
            )
        return dtype


def _schemes(options: QuantizeOptions) -> ModelSchemes:
    return ModelSchemes(options.scheme, options.head_scheme)


def _head_lines(spec: DecoderSpec, report: HeadReport) -> Iterator[str]:
    """What a quantized head costs, for people."""
    what = "head and embedding, one weight" if spec.tie_embeddings else "head"
    if not report.kl:
        yield f"{what}: {report.scheme}, rounded to nearest"
        return
    yield (
        f"{what}: {report.scheme}, {report.grid}; KL {report.kl[report.grid]:.2g} nats a token from the unquantized "
        f"head, perplexity {report.perplexity:.2f} -> {report.rounded_perplexity:.2f} ({report.tokens} tokens of the "
        "calibration text, head alone)"
    )
