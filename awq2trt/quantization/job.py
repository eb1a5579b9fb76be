"""A model quantized block by block: one block in memory, each finished block on disk, resumable to the same bytes.

In: a `ModelSource` and options. Out: the checkpoint's files in one directory, and in a scratch directory what a
resumed run needs: the calibration tokens, the residual stream after the last finished block, the finished blocks.
A block counts as finished once its file has its final name; the residual stream after it is written before that,
so a kill at any moment leaves either the block before or the block itself whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from awq2trt.artifact.arrays import read_arrays, write_arrays
from awq2trt.checkpoint.checkpoint import fuse_linears
from awq2trt.checkpoint.layouts import choose_layout, pack_linear
from awq2trt.checkpoint.writer import (
    FLOAT16,
    compact,
    for_dtype,
    merge_shards,
    quantized_config,
    storage_dtype,
    write_config,
    write_tensors,
)
from awq2trt.errors import CalibrationError, UsageError
from awq2trt.machine.device import CPU
from awq2trt.models.decoder import ActivationRange, BlockRunner, Ends, load_block
from awq2trt.models.positions import require_positions
from awq2trt.models.sources.base import Array, ModelSource
from awq2trt.progress import Progress
from awq2trt.quantization.block import (
    LinearReport,
    QuantizedBlock,
    collect_statistics,
    dequantized,
    method_of,
    quantize_block,
    run_block,
)
from awq2trt.recipe import QuantizeOptions
from awq2trt.text.windows import calibration_tokens

REPORT_FILE: Final = "quantization.json"
"""Per linear: alpha, share of clipped groups, relative output error before and after the search."""

SEARCH_FILE: Final = "quantization.npz"
"""Per shared input: mean |x| of its channels, and the scales s folded into it, see `QuantizedBlock.search`. An .npz
file, since others take every .safetensors file of the directory for weights."""

_TOKENS_FILE: Final = "calibration.safetensors"
_COMPUTED_FILE: Final = "computed.json"

_PROBE_TOKENS: Final = 64


@dataclass(frozen=True)
class JobResult:
    """What a finished job says about itself.

    Attributes:
        tokens: Calibration windows, int64 [samples, seqlen]; None if the method uses none.
        reports: By linear's full name.
        dtype: Of activations, and of what is not quantized: NumPy's name.
    """

    tokens: Tensor | None
    reports: dict[str, LinearReport]
    dtype: str

    def tokens_sha256(self) -> str | None:
        """Hash of the calibration token ids as little-endian int64."""
        if self.tokens is None:
            return None
        return hashlib.sha256(self.tokens.numpy(force=True).astype("<i8").tobytes()).hexdigest()


class QuantizeJob:
    """Quantizes one model into `files`, keeping its state in `scratch`.

    Args:
        source: The model.
        options: Method, scheme, calibration.
        files: Empty directory for the checkpoint.
        scratch: Directory that a resumed run gets again.
        progress: Of calibration and blocks.
    """

    def __init__(
        self, source: ModelSource, options: QuantizeOptions, *, files: Path, scratch: Path, progress: Progress
    ) -> None:
        self._source = source
        self._options = options
        self._files = files
        self._scratch = scratch
        self._progress = progress
        self._method = method_of(options)
        self._layout = choose_layout(source.spec, options.scheme)
        self._seen = ActivationRange()

    def run(self) -> JobResult:
        """Runs, or goes on from the first block that is not in `scratch`.

        Raises:
            UsageError: Calibration windows are longer than the model has positions.
            CheckpointError: A tensor is missing, misshapen or not finite.
            CalibrationError: The text is too short, or the model's activations are not finite on it.
        """
        if self._method.uses_text:
            require_positions(self._source.spec, self._options.seqlen, where="--seqlen")
        same_computer_(self._scratch)
        with self._progress.task("reading the tokenizer", total=1) as advance:
            self._source.save_tokenizer(self._files)
            advance(1)
        finished = self._finished_blocks()
        with torch.inference_mode():
            tokens = self._tokens() if self._method.uses_text else None
            self._quantize_blocks(self._range_probe() if tokens is None else tokens, first=finished)
        dtype = self._write_checkpoint()
        return JobResult(tokens, self._collect_reports(), dtype)

    def _tokens(self) -> Tensor:
        """Calibration windows: those of the interrupted run, else made now and kept."""
        path = self._scratch / _TOKENS_FILE
        if not path.is_file():
            tokens = calibration_tokens(self._source, self._files, self._options, self._progress)
            if tokens.shape[0] < self._options.samples:
                self._progress.note(
                    f"the calibration text holds {tokens.shape[0]} windows of {self._options.seqlen} tokens, "
                    f"{self._options.samples} were asked for"
                )
            _save_whole(path, tokens)
        return _load_whole(path)

    def _range_probe(self) -> Tensor:
        """Tokens that show how large activations get where no text does: BOS, then drawn ones; int64 [1, S].

        The first token of a sequence gathers the largest activations (massive activations, arXiv:2402.17762).
        """
        vocab_size, length = self._source.spec.vocab_size, min(_PROBE_TOKENS, self._source.spec.max_positions)
        generator = torch.Generator(CPU).manual_seed(self._options.seed)
        drawn = torch.randint(0, vocab_size, (1, length), generator=generator, device=CPU)
        bos = self._source.config.get("bos_token_id")
        if isinstance(bos, int) and bos < vocab_size:
            drawn[0, 0] = bos
        return drawn

    def _quantize_blocks(self, tokens: Tensor, *, first: int) -> None:
        layers = self._source.spec.num_layers
        if first == layers:
            return
        runner = BlockRunner.for_positions(self._source.spec, tokens.shape[1], seen=self._seen)
        hidden = _load_whole(self._hidden(first)) if first else Ends(self._source).embed(tokens)
        with self._progress.task(f"quantizing blocks ({self._options.method})", total=layers) as advance:
            advance(first)
            for layer in range(first, layers):
                hidden = self._quantize_block(layer, runner, hidden)
                advance(1)

    def _quantize_block(self, layer: int, runner: BlockRunner, hidden: Tensor) -> Tensor:
        """One block; returns the residual stream after it: the quantized model's if the method is sequential.

        AWQ's search sees the unquantized model, as in the paper.
        """
        spec, method = self._source.spec, self._method
        weights, prefix = load_block(self._source, layer), spec.prefix(layer)
        self._seen.largest = 0.0
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
        _save_whole(self._hidden(layer + 1), outputs)
        self._range(layer).write_text(json.dumps(self._seen.largest), encoding="utf-8")
        self._store(layer, block)
        self._hidden(layer).unlink(missing_ok=True)
        return outputs

    def _store(self, layer: int, block: QuantizedBlock) -> None:
        """Writes a block's report, then its tensors: the last makes it count as finished."""
        prefix = self._source.spec.prefix(layer)
        exact = self._source.spec.norm.unit_offset  # 1 + weight is near 0 where weight is near -1
        tensors = {prefix + name: compact(value.numpy(force=True), exact=exact) for name, value in block.norms.items()}
        for name, linear in fuse_linears(self._source.spec, block.linears).items():
            tensors.update(pack_linear(prefix + name, linear, self._layout))
        search = {prefix + name: value.numpy(force=True) for name, value in block.search.items()}
        write_arrays(self._search(layer), search)
        report = {prefix + name: asdict(entry) for name, entry in block.reports.items()}
        self._report(layer).write_text(json.dumps(report), encoding="utf-8")
        write_tensors(self._block(layer), tensors)

    def _write_checkpoint(self) -> str:
        """Merges the blocks with what stands outside them; config.json comes last. Returns the type it stores in."""
        source, outer = self._source, self._source.outer()
        dtype = self._storage_dtype(outer)
        for name, value in outer.items():
            vector = value.ndim == 1
            outer[name] = (
                compact(value, exact=source.spec.norm.unit_offset) if vector else value.astype(np.dtype(dtype))
            )
        blocks = [self._block(layer) for layer in range(source.spec.num_layers)]
        merge_shards(blocks, outer, self._files, convert=partial(for_dtype, spec=source.spec, dtype=dtype))
        reports = {name: asdict(report) for name, report in self._collect_reports().items()}
        (self._files / REPORT_FILE).write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
        search: dict[str, Array] = {}
        for layer in range(source.spec.num_layers):
            search |= read_arrays(self._search(layer), fix="quantize again without --resume.")
        if search:
            write_arrays(self._files / SEARCH_FILE, search)
        config = quantized_config(source.config, source.spec, self._options.scheme, self._layout, dtype)
        write_config(self._files, config)
        return dtype

    def _storage_dtype(self, outer: Mapping[str, Array]) -> str:
        """fp16, unless activations or weights come near the end of its range; then bf16, and a word about it."""
        prefixes = (self._source.spec.prefix(layer).rstrip(".") for layer in range(self._source.spec.num_layers))
        reached = {name: json.loads(self._range(layer).read_text()) for layer, name in enumerate(prefixes)}
        reached |= {name: float(np.abs(value.astype(np.float32)).max()) for name, value in outer.items()}
        where = max(reached, key=reached.__getitem__)
        dtype = storage_dtype(reached[where])
        if dtype != FLOAT16:
            self._progress.note(
                f"values reach {reached[where]:,.0f} in {where}, beyond fp16's range of 65,504 or too near its end: "
                f"the checkpoint says {dtype}, and so will the exported model"
            )
        return dtype

    def _collect_reports(self) -> dict[str, LinearReport]:
        reports: dict[str, LinearReport] = {}
        for layer in range(self._source.spec.num_layers):
            stored = json.loads(self._report(layer).read_text(encoding="utf-8"))
            reports.update({name: LinearReport(**entry) for name, entry in stored.items()})
        return reports

    def _finished_blocks(self) -> int:
        """Blocks done so far: blocks are finished in order."""
        layers = self._source.spec.num_layers
        return next((layer for layer in range(layers) if not self._block(layer).is_file()), layers)

    def _block(self, layer: int) -> Path:
        return self._scratch / f"block-{layer:05}.safetensors"

    def _range(self, layer: int) -> Path:
        """Largest activation in block `layer`."""
        return self._scratch / f"range-{layer:05}.json"

    def _report(self, layer: int) -> Path:
        return self._scratch / f"block-{layer:05}.json"

    def _search(self, layer: int) -> Path:
        return self._scratch / f"block-{layer:05}.npz"

    def _hidden(self, layer: int) -> Path:
        """Residual stream before block `layer`."""
        return self._scratch / f"hidden-{layer:05}.safetensors"


def same_computer_(scratch: Path) -> None:
    """Makes a resumed run compute as the first one did: a matrix product's bits depend on how it is split.

    Raises:
        UsageError: The first one computed on another kind of device.
    """
    path, device = scratch / _COMPUTED_FILE, torch.get_default_device().type
    if path.is_file():
        first = json.loads(path.read_text(encoding="utf-8"))
        if first["device"] != device:
            raise UsageError(
                f"the interrupted run computed on {first['device']}, which gives other last bits than {device}.",
                where="--device",
                fix=f"go on with --device {first['device']}, or begin anew with --overwrite.",
            )
        torch.set_num_threads(first["threads"])
    else:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"device": device, "threads": torch.get_num_threads()}), encoding="utf-8")
        partial.replace(path)


def _save_whole(path: Path, value: Tensor) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file({"value": value.contiguous()}, partial)
    partial.replace(path)


def _load_whole(path: Path) -> Tensor:
    """What `_save_whole` wrote, where PyTorch computes."""
    return load_file(path, device=str(torch.get_default_device()))["value"]
