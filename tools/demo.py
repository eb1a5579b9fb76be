"""Shows the results of `make demo` after `awq2trt build`: perplexities, sizes, text, a report and a check.

    python tools/demo.py build/demo

It reads what `awq2trt build smollm2-135m-instruct -o build/demo` made (checkpoint, ONNX model, engine, and any kit),
quantizes the model again by plain rounding, for comparison, and measures perplexity on a text that comes with every
Python: its reference manual (`pydoc_data.topics`), the first windows of 512 tokens. It writes them to
`perplexity.json`, and the report of `awq2trt inspect --html` to `report.html`. It exits with 1 if `awq2trt check`
fails, on fewer tokens than the default.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

import awq2trt
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.opening import CHECK_DIRECTORY
from awq2trt.checking.outcome import CheckOutcome
from awq2trt.evaluation.perplexity import Perplexity
from awq2trt.evaluation.results import EvalRequest, TextWindows
from awq2trt.models.families import DecoderSpec
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import Progress, terminal_progress
from awq2trt.recipe import load_recipe
from awq2trt.report.lines import check_lines, results_json
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.inspect import report_stage

MODEL = "smollm2-135m-instruct"
RECIPE = Path("recipes/smollm2-135m_w4g128.yaml")
PROMPTS = ("What is the capital of France?", "Write two sentences about the sea.", "Why is the sky blue?")
WINDOWS, SEQLEN = 4, 512
CHECK_TOKENS = 32
"""Tokens for `check`, whose default of 192 would take half a minute longer."""
RESULTS_FILE, REPORT_FILE = "perplexity.json", "report.html"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    model: str
    executor: str
    perplexity: float
    seconds: float
    size_bytes: int


def main() -> None:
    """Prints the table, the text and the check, and where the files are."""
    parser = argparse.ArgumentParser(description="Table, text, report and check of `make demo`.")
    parser.add_argument("directory", type=Path, help="a directory that `awq2trt build ... -o DIR` wrote")
    directory = parser.parse_args().directory
    console = Console()
    show(console, measure(directory, terminal_progress()), directory)
    model = awq2trt.load(directory / "rtx")
    for prompt in PROMPTS:
        answer = model.generate_text(prompt, max_new_tokens=60).strip()
        console.print(f"\n[bold]> {prompt}[/bold]\n{answer}", highlight=False)
    print(f"\nawq2trt check {directory} --tokens {CHECK_TOKENS}")
    outcome = awq2trt.check(directory, tokens=CHECK_TOKENS, progress=terminal_progress())
    print("\n".join(check_lines(CheckOutcome(outcome.result, ()))))
    from awq2trt.checking.polygraphy_files import README_FILE  # after check has chosen polygraphy's TensorRT

    report = report_stage(directory, directory / REPORT_FILE, directory / RESULTS_FILE)
    print(f"\n{report}: every layer, with plots; open it in a browser")
    print(f"{directory / CHECK_DIRECTORY / README_FILE}: how to repeat the check by hand, with polygraphy")
    if not outcome.result.passed:
        raise SystemExit(1)


def measure(directory: Path, progress: Progress) -> list[Row]:
    """Measures perplexity and size of the original, plain rounding, AWQ, and AWQ's ONNX file; also writes a file."""
    rtn = directory / "rtn"
    options = load_recipe(RECIPE).quantize.model_copy(update={"method": "rtn"})
    awq2trt.quantize(MODEL, rtn, options, progress=progress)
    models = {
        MODEL: ("original, fp16", fp16_bytes(open_source(MODEL).spec)),
        str(rtn): ("rounded (RTN)", weight_bytes(rtn)),
        str(directory / "checkpoint"): ("AWQ", weight_bytes(directory / "checkpoint")),
        str(directory / "onnx"): ("AWQ, exported", weight_bytes(directory / "onnx")),
    }
    with tempfile.TemporaryDirectory(prefix="awq2trt-demo-") as scratch:
        text = Path(scratch) / "python-topics.txt"
        text.write_text("\n\n".join(topics.values()), encoding="utf-8")
        request = EvalRequest(tuple(models), TextWindows(str(text), WINDOWS, SEQLEN))
        results = list(eval_stage(request, progress))
    (directory / RESULTS_FILE).write_text(results_json(request, results), encoding="utf-8")
    return [
        Row(models[done.model][0], done.executor, done.measured.value, done.seconds, models[done.model][1])
        for done in results
        if isinstance(done.measured, Perplexity)
    ]


def show(console: Console, rows: list[Row], directory: Path) -> None:
    """Prints the table; for the engine and the kit, which cannot run here, only the size."""
    table = Table(title=f"{MODEL}: {WINDOWS} windows of {SEQLEN} tokens of Python's reference manual")
    for header in ("model", "run by", "perplexity", "seconds", "MB"):
        table.add_column(header, justify="left" if header in ("model", "run by") else "right")
    for row in rows:
        table.add_row(
            row.model, row.executor, f"{row.perplexity:.2f}", f"{row.seconds:.0f}", f"{row.size_bytes / 1e6:.0f}"
        )
    engine = Artifact.open(directory / "rtx", kind="engine").manifest.files["model.engine"].size_bytes
    table.add_row("AWQ, engine", "not run: needs an RTX card", "", "", f"{engine / 1e6:.0f}")
    if (directory / "orin").is_dir():
        kit = sum(record.size_bytes for record in Artifact.open(directory / "orin", kind="kit").manifest.files.values())
        table.add_row("AWQ, kit", "not run: needs a Jetson Orin", "", "", f"{kit / 1e6:.0f}")
    console.print(table)


def fp16_bytes(spec: DecoderSpec) -> int:
    """Size of the unquantized model in fp16."""
    block = sum(_elements(shape) for shape in spec.block_shapes().values())
    return 2 * (spec.num_layers * block + sum(_elements(shape) for shape in spec.outer_shapes().values()))


def weight_bytes(directory: Path) -> int:
    """Size of the files that hold a stage's weights."""
    files = Artifact.open(directory, verify="size").manifest.files
    return sum(record.size_bytes for name, record in files.items() if name.startswith("model"))


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


if __name__ == "__main__":
    main()
