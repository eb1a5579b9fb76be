"""Perplexity of SmolLM2-135M-Instruct: original, RTN, AWQ by calibration text, in PyTorch and in ONNX Runtime.

    python tools/study_smollm2.py [--output build/study-smollm2]

WikiText-2 raw test, the first 8 windows of 1,024 tokens without BOS; INT4, groups of 128, zero points; calibrated on
32 windows of 512 tokens. Needs the data that the tests use (`AWQ2TRT_DATA`, or `../shared/data`). Every AWQ row
is a whole `awq2trt quantize` and `awq2trt export`; a finished row is not computed again. Some 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from awq2trt.calibrate import encode, load_tokenizer
from awq2trt.checkpoint import QuantizedCheckpoint
from awq2trt.evaluate import agreement, first_windows, perplexity, torch_logits
from awq2trt.progress import Progress, terminal_progress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.run import OrtBackend
from awq2trt.source import ModelSource, open_source
from awq2trt.stages import ExportRequest, QuantizeRequest, export_stage, quantize_stage

MODEL = "smollm2-135m-instruct"
WINDOWS, SEQLEN = 8, 1024
AGREEMENT_WINDOWS = 2
"""2 x 1,024 positions: enough for the 2,000 tokens over which ONNX and PyTorch are compared."""


@dataclass(frozen=True)
class Row:
    """A line of the study; None is what the row does not have."""

    model: str
    calibration: str
    perplexity: float
    onnx_perplexity: float | None = None
    top1: float | None = None
    mean_kl: float | None = None
    quantize_seconds: float | None = None


def main() -> None:
    """Computes what is not there yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/study-smollm2"))
    output = parser.parse_args().output
    data = Path(os.environ.get("AWQ2TRT_DATA", "../shared/data"))
    if not (data / "wikitext2" / "wiki.test.raw").is_file():
        raise SystemExit(f"no WikiText-2 in {data}; set AWQ2TRT_DATA to a directory with wikitext2/wiki.test.raw")
    calibrations = {
        "WikiText-2 valid": str(data / "wikitext2" / "wiki.valid.raw"),
        "C4": str(data / "c4" / "c4_en_first1000.jsonl"),
        "self": "self",
    }
    study = Study(output, data / "wikitext2" / "wiki.test.raw", terminal_progress())
    rows = [study.row("original", "", None), study.row("RTN", "", QuantizeOptions(method="rtn"))]
    for name, calib in calibrations.items():
        rows.append(study.row("AWQ", name, QuantizeOptions(calib=calib, samples=32, seqlen=512)))
    show(rows)


class Study:
    """Measures rows, and keeps them in `output`."""

    def __init__(self, output: Path, text: Path, progress: Progress) -> None:
        self._output = output
        self._progress = progress
        self._source = open_source(MODEL)
        tokenizer = output / "tokenizer"
        tokenizer.mkdir(parents=True, exist_ok=True)
        self._source.save_tokenizer(tokenizer)
        ids = encode(load_tokenizer(tokenizer), text.read_text(encoding="utf-8"))
        self._windows = first_windows(ids, WINDOWS, SEQLEN, where=str(text))

    def row(self, model: str, calibration: str, options: QuantizeOptions | None) -> Row:
        """One row: computed, or read if an earlier run finished it."""
        name = f"{model} {calibration}".strip().replace(" ", "-").lower()
        kept = self._output / f"{name}.json"
        if kept.is_file():
            return Row(**json.loads(kept.read_text(encoding="utf-8")))
        if options is None:
            row = Row(model, calibration, self._perplexity(self._source))
        else:
            row = self._quantized_row(model, calibration, options, self._output / name)
        kept.write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")
        return row

    def _quantized_row(self, model: str, calibration: str, options: QuantizeOptions, directory: Path) -> Row:
        started = time.monotonic()
        quantize_stage(QuantizeRequest(MODEL, directory / "checkpoint", options), self._progress)
        seconds = time.monotonic() - started
        export_stage(
            ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=SEQLEN)),
            self._progress,
        )
        checkpoint = QuantizedCheckpoint(directory / "checkpoint")
        backend = OrtBackend.load(directory / "onnx", all_logits=True)

        def onnx_logits(window: torch.Tensor) -> Iterator[torch.Tensor]:
            return (torch.from_numpy(rows) for rows in backend.logits(window.tolist()))

        onnx = perplexity(self._windows, onnx_logits, self._progress, "ONNX Runtime").value
        compared = self._windows[:AGREEMENT_WINDOWS]
        reference = torch_logits(checkpoint, compared, self._progress, "comparing")
        close = agreement(compared, reference, onnx_logits)
        return Row(model, calibration, self._perplexity(checkpoint), onnx, close.top1, close.mean_kl, seconds)

    def _perplexity(self, source: ModelSource) -> float:
        logits = torch_logits(source, self._windows, self._progress, "PyTorch")
        return perplexity(self._windows, logits, self._progress, "perplexity").value


def show(rows: list[Row]) -> None:
    """Prints the table."""
    table = Table(
        title=f"SmolLM2-135M-Instruct, INT4 g128 with zero points; WikiText-2 test, {WINDOWS} x {SEQLEN} tokens"
    )
    for header in ("model", "calibrated on", "PyTorch", "ONNX Runtime", "top-1 equal", "mean KL", "quantize"):
        table.add_column(header, justify="left" if header in ("model", "calibrated on") else "right")
    for row in rows:
        table.add_row(
            row.model,
            row.calibration,
            f"{row.perplexity:.2f}",
            "" if row.onnx_perplexity is None else f"{row.onnx_perplexity:.2f}",
            "" if row.top1 is None else f"{row.top1:.2%}",
            "" if row.mean_kl is None else f"{row.mean_kl:.1e}",
            "" if row.quantize_seconds is None else f"{row.quantize_seconds:.0f} s",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
