"""The tables of the AWQ paper, measured on a small model: Markdown, CSV and plots below build/study.

    python tools/study.py [--tables NAME ...] [--full] [--model MODEL] [--jobs 2] [--device cuda] [--output DIR]
    python tools/study.py --paper --full --tables methods kept-in-fp16 multiplied int2 --model facebook/opt-6.7b ...

Perplexity is measured on the first 8 windows of 1,024 tokens of WikiText-2 raw test, without BOS, unless a table says
otherwise, after calibration on 32 windows of 512 tokens of WikiText-2 raw validation. This needs the data that the
tests use (`AWQ2TRT_DATA`, or `../shared/data`). Existing figures are not measured again: each is a file in DIR/rows,
which has to be deleted if the code that it measures has changed.

Without `--full`, the study uses one draw of calibration windows, and only the cells that two cores measure in an hour.
With it, it measures every cell, in three draws where a draw can matter. That takes about ten hours on two cores, and
minutes on a machine with GPUs, `--device cuda` and many `--jobs`, which are spread over all GPUs (each job rounds
columns of GPTQ on one core of the CPU).

`--paper` is the paper's protocol, for those who have OPT, LLaMA or Llama-2: the complete test split in windows of 2,048
tokens, calibrated on 128 x 512 tokens of the Pile's validation set, which you have to put at pile/val.jsonl beside the
other texts (each line is a JSON object with `text`).

The paper is arXiv:2306.00978; the figures quoted from it are those of its Tables 1 to 4.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from study_report import Results, plot, write_csv, write_markdown
from study_tables import Table, all_tables, as_in_paper
from study_walk import Calibration, Measured, Setting, walk

from awq2trt.errors import Awq2trtError
from awq2trt.evaluation.perplexity import first_windows
from awq2trt.machine.device import require_device
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.text.read import read_text
from awq2trt.text.self_written import self_written
from awq2trt.text.tokenizer import encode, load_tokenizer, ordinary_tokens
from awq2trt.text.windows import SELF

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL: Final = "smollm2-135m-instruct"

LANES: Final = 6
"""Most settings in one walk: this is what a kill can lose, and each takes 60 MB of residual streams."""

DRAWS: Final = 3


def main() -> None:
    """Measures missing figures, then writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", help="names of tables; all by default")
    parser.add_argument("--full", action="store_true", help="every cell, three draws")
    parser.add_argument("--paper", action="store_true", help="the complete split, windows of 2,048 tokens, the Pile")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute; cuda: on all GPUs")
    parser.add_argument("--output", type=Path, default=Path("build/study"))
    parser.add_argument("--report-only", action="store_true", help="only write the tables, from existing figures")
    arguments = parser.parse_args()
    data = Path(os.environ.get("AWQ2TRT_DATA", "../shared/data"))
    tables = [table for table in all_tables(full=arguments.full) if table.name in (arguments.tables or (table.name,))]
    if not tables:
        raise SystemExit(f"no such table; the tables are: {', '.join(table.name for table in all_tables(full=True))}")
    if arguments.paper:
        tables = [as_in_paper(table) for table in tables]
    output = arguments.output / Path(arguments.model).name
    rows = output / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    if not arguments.report_only:
        try:
            measure_missing(arguments.model, tables, data, rows, arguments.jobs, arguments.device)
        except Awq2trtError as error:
            raise SystemExit(str(error)) from error
    report(arguments.model, tables, rows, output)


def measure_missing(
    model: str, tables: Sequence[Table], data: Path, rows: Path, jobs: int, device: str = "cpu"
) -> None:
    """Walks for all settings that have no figure yet, with `jobs` walks at a time."""
    wanted = dict.fromkeys(setting for table in tables for setting in table.settings())
    missing = [setting for setting in wanted if read_row(rows, setting) is None]
    require_texts(data, missing)
    batches = list(in_batches(missing, lanes=min(LANES, max(1, len(missing) // (4 * jobs)))))
    found = require_device(device)
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if found.type == "cuda" else [device]
    print(f"{len(wanted)} figures, {len(missing)} to measure in {len(batches)} walks", flush=True)
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        walks = [
            pool.submit(measure, model, batch, data, rows, devices[index % len(devices)])
            for index, batch in enumerate(batches)
        ]
        for done, finished in enumerate(as_completed(walks), start=1):
            print(f"{time.monotonic() - started:6.0f} s: {done} of {len(walks)} walks; {finished.result()}", flush=True)


def in_batches(settings: Iterable[Setting], lanes: int = LANES) -> Iterator[list[Setting]]:
    """Groups settings that can walk together: those with the same calibration, at most `lanes`."""
    by_calibration: dict[Calibration | None, list[Setting]] = {}
    for setting in settings:
        by_calibration.setdefault(setting.calibration, []).append(setting)
    for together in by_calibration.values():
        left = iter(together)
        while batch := list(islice(left, lanes)):
            yield batch


def measure(model: str, settings: Sequence[Setting], data: Path, rows: Path, device: str) -> str:
    """Walks once, writes a row for every setting, and reports what it measured."""
    torch.set_default_device(device)
    source = open_source(model)
    texts = Texts.open(source, data, rows.parent)
    calibration = settings[0].calibration
    windows = None if calibration is None else texts.calibration(calibration)
    tests = {
        name: texts.test(name, max(s.windows for s in settings), max(s.seqlen for s in settings))
        for name in {name for setting in settings for name in setting.tests}
    }
    started = time.process_time()
    measured = walk(source, settings, windows, tests, SilentProgress())
    own = sum(result.quantize_seconds + result.evaluate_seconds for result in measured)
    shared = (time.process_time() - started - own) / len(settings)
    for setting, result in zip(settings, measured, strict=True):
        content = {"setting": repr(setting), **asdict(result), "shared_seconds": shared}
        row_path(rows, setting).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return ", ".join(row_path(rows, setting).stem for setting in settings)


class Texts:
    """Windows of the texts for calibration and test; `open` finds their tokenizer."""

    def __init__(self, source: ModelSource, data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source = source
        self._data = data
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, source: ModelSource, data: Path, cache: Path) -> Texts:
        """Opens the texts in `data` for a model, whose tokenizer is put into `cache`."""
        directory = cache / "tokenizer"
        directory.mkdir(exist_ok=True)
        source.save_tokenizer(directory)
        return cls(source, data, load_tokenizer(directory))

    def calibration(self, wanted: Calibration) -> torch.Tensor:
        """Returns windows spread evenly over the text; draws begin at thirds of the distance between two windows."""
        if wanted.text == SELF:
            ordinary = ordinary_tokens(self._tokenizer)
            with torch.inference_mode():
                return self_written(
                    self._source, ordinary, wanted.samples, wanted.seqlen, wanted.draw, SilentProgress()
                )
        ids = encode(self._tokenizer, self._text(wanted.text, test=False))
        last = len(ids) - wanted.seqlen
        step = last // max(wanted.samples - 1, 1)
        starts = [(index * step + wanted.draw * step // DRAWS) % (last + 1) for index in range(wanted.samples)]
        return torch.tensor([ids[start : start + wanted.seqlen] for start in starts])

    def test(self, name: str, windows: int, seqlen: int) -> torch.Tensor:
        """Returns the first windows of a text."""
        return first_windows(encode(self._tokenizer, self._text(name, test=True)), windows, seqlen, where=name)

    def _text(self, name: str, *, test: bool) -> str:
        """Reads WikiText-2 (validation, test), PubMed abstracts (first, second half), or all of C4 or the Pile."""
        path = text_path(self._data, name, test=test)
        if name == "wikitext2":
            return path.read_text(encoding="utf-8")
        if name in ("c4", "pile"):
            return read_text(str(path), characters=0)
        # Not splitlines(), since abstracts contain characters that it would treat as line ends.
        lines = path.read_text(encoding="utf-8").split("\n")
        texts = [json.loads(line)["text"] for line in lines if line.strip()]
        half = len(texts) // 2
        return "\n\n".join(texts[half:] if test else texts[:half])


def text_path(data: Path, name: str, *, test: bool) -> Path:
    """Returns the file of a text."""
    files = {
        "wikitext2": f"wikitext2/wiki.{'test' if test else 'valid'}.raw",
        "c4": "c4/c4_en_first1000.jsonl",
        "pile": "pile/val.jsonl",
        "pubmed": "pubmed/pubmedqa_pqal_abstracts.jsonl",
    }
    return data / files[name]


def require_texts(data: Path, settings: Iterable[Setting]) -> None:
    """Reports missing texts before hours are spent on the others."""
    needed: set[Path] = set()
    for setting in settings:
        needed |= {text_path(data, name, test=True) for name in setting.tests}
        if setting.calibration is not None and setting.calibration.text != SELF:
            needed.add(text_path(data, setting.calibration.text, test=False))
    if missing := sorted(str(path) for path in needed if not path.is_file()):
        raise SystemExit(f"there is no {', no '.join(missing)}; set AWQ2TRT_DATA to the directory with the tests' data")


def row_path(rows: Path, setting: Setting) -> Path:
    """Returns the file of a setting's figure."""
    return rows / f"{setting.name()}.json"


def read_row(rows: Path, setting: Setting) -> Measured | None:
    """Reads a setting's figure; None if it was not measured yet."""
    path = row_path(rows, setting)
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return Measured(**{key: value for key, value in content.items() if key in Measured.__dataclass_fields__})


def report(model: str, tables: Sequence[Table], rows: Path, output: Path) -> None:
    """Writes Markdown, CSV and plots of the existing figures."""
    wanted = {setting for table in tables for setting in table.settings()}
    found: Mapping[Setting, Measured | None] = {setting: read_row(rows, setting) for setting in wanted}
    results = Results(
        {setting: measured for setting, measured in found.items() if measured is not None},
        vocab_size=open_source(model).spec.vocab_size,
    )
    for table in tables:
        write_csv(output / f"{table.name}.csv", table, results)
        plot(output / f"{table.name}.png", table, results)
    write_markdown(output / "study.md", model, tables, results)
    print((output / "study.md").read_text(encoding="utf-8"))
    print(f"written to {output}")


if __name__ == "__main__":
    main()
