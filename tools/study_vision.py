"""Table 5 of the AWQ paper on any model that sees: captions and choices after shots, by method, width and calibration.

    python tools/vlm_pictures.py build/known --pictures 512 --seed 11 --wording 1
    python tools/vlm_pictures.py build/tested --pictures 256 --seed 12 --wording 1 --unseen
    python tools/study_vision.py MODEL --known build/known --tested build/tested --text wiki.valid.raw [--device cuda]

In: a Hugging Face directory; two folders with `captions.jsonl` and `choices.jsonl`, whose rows are as `awq2trt eval
--images FILE --task caption` or `choice` reads them; and a text. Out: a table of CIDEr-D (times 100, as papers do),
accuracy and perplexity of captions, as Markdown and CSV, and a JSON file for every line, with the first captions that
were written. With `--draws`, a line is calibrated on several sets of windows, and the table has the mean, and in
brackets the lowest and the highest. What was measured before is not measured again.

The decoder is quantized, each time calibrated on windows of: the text; conversations about known pictures
(`questions.jsonl`, or else `captions.jsonl`) without the pictures; and the same with them. Shots are the first rows of
the known folder, the same ones before every tested picture, and stand in one conversation with it: models that take a
single picture are measured with `--shots 0`. The paper (arXiv:2306.00978, section 5.2 and Table 5) has OpenFlamingo-9B
on COCO with 0 to 32 shots, groups of 128: CIDEr falls least with AWQ.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch

from awq2trt.errors import Awq2trtError, UsageError
from awq2trt.evaluation.captions import CaptionedModel
from awq2trt.evaluation.image_tasks import choose, require_rows, write_captions
from awq2trt.evaluation.opening import TorchModel, open_evaluated
from awq2trt.evaluation.results import CAPTION, CHOICE
from awq2trt.images.pairs import MARKER, ImageText, read_pairs
from awq2trt.machine.device import computing_on, require_device
from awq2trt.methods import METHODS
from awq2trt.progress import SilentProgress
from awq2trt.quantization.effort import EFFORTS
from awq2trt.recipe import QuantizeOptions
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.stages.readiness import require_images

CAPTIONS: Final = "captions.jsonl"
CHOICES: Final = "choices.jsonl"
_QUESTIONS: Final = "questions.jsonl"

CALIBRATIONS: Final = {
    "text": "text",
    "words": "conversations without images",
    "images": "conversations with images",
}
"""What is calibrated on, and what tables call it."""

_FILES: Final = {"text": "text.txt", "words": "words.txt", "images": "images.jsonl"}
_PAPER: Final = 100
"""What papers multiply CIDEr by."""

_GOLDEN: Final = (5**0.5 - 1) / 2
"""Draws of a text begin at multiples of this share of it, which keeps any number of them apart."""

_SLOWEST_FIRST: Final = ("max", "best", "gptq", "default", "fast", "rtn", None)
"""Efforts and methods: what takes longest begins first."""

_SHOWN: Final = 8
"""Captions of a line that its file has."""


@dataclass(frozen=True)
class Setting:
    """A line of the table.

    Attributes:
        method: A name in `METHODS`; None for the original.
        bits: Width of the weights' codes.
        group_size: Weights that share a scale.
        calibration: A key of `CALIBRATIONS`; None for a method that uses none.
        draw: Which windows.
        effort: A key of `EFFORTS`; None for a method that searches no scales.
    """

    method: str | None = None
    bits: int = 0
    group_size: int = 0
    calibration: str | None = None
    draw: int = 0
    effort: str | None = None

    @property
    def name(self) -> str:
        """Name of the line's file, which lines are also sorted by."""
        if self.method is None:
            return "original"
        effort = "" if self.effort is None else f"-{self.effort}"
        calibrated = "" if self.calibration is None else f"-{self.calibration}-{self.draw}"
        return f"int{self.bits}-g{self.group_size}-{self.method}{effort}{calibrated}"


@dataclass(frozen=True)
class Asked:
    """What a study was asked for.

    Attributes:
        model: The model that is quantized.
        known: Folder of pictures for shots and calibration.
        tested: Folder of pictures to measure on.
        shots: How many, each.
        limit: Pictures to measure on; None for all.
        samples: Calibration windows.
        device: Where to compute.
        output: Folder of results.
    """

    model: str
    known: Path
    tested: Path
    shots: tuple[int, ...]
    limit: int | None
    samples: int
    device: str
    output: Path

    def draw(self, number: int) -> Path:
        """Folder of a draw's calibration files."""
        return self.output / f"draw-{number}"

    def row(self, setting: Setting) -> Path:
        """File of a line."""
        return self.output / "rows" / f"{setting.name}.json"


def main() -> None:
    """Measures what is missing, then writes the table."""
    arguments = _arguments()
    asked = Asked(
        arguments.model, arguments.known, arguments.tested, tuple(arguments.shots), arguments.limit,
        arguments.samples, arguments.device, arguments.output / Path(arguments.model).name,
    )  # fmt: skip
    try:
        require_device(asked.device)
        (asked.output / "rows").mkdir(parents=True, exist_ok=True)
        require_measurable(asked)
        for draw in range(arguments.draws):
            write_calibration(asked, arguments.text, draw)
        wanted = list(settings(arguments))
        measure_missing(asked, wanted, arguments.jobs)
    except Awq2trtError as error:
        raise SystemExit(str(error)) from error
    print(write_tables(asked, wanted))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a model that sees")
    parser.add_argument("--known", type=Path, required=True, help="folder of pictures for shots and calibration")
    parser.add_argument("--tested", type=Path, required=True, help="folder of pictures to measure on")
    parser.add_argument("--text", type=Path, required=True, help="a text file to calibrate on")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 4, 8], help="examples before each question")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--groups", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--calibrations", nargs="+", choices=tuple(CALIBRATIONS), default=list(CALIBRATIONS))
    parser.add_argument(
        "--draws", type=int, default=1, help="sets of calibration windows, whose mean and range are shown"
    )
    parser.add_argument("--samples", type=int, default=32, help="calibration windows of 512 tokens")
    parser.add_argument("--efforts", nargs="+", choices=tuple(EFFORTS), default=["default"], help="of AWQ's search")
    parser.add_argument("--limit", type=int, help="pictures to measure on; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("build/study-vision"))
    arguments = parser.parse_args()
    if min(arguments.shots) < 0 or min(arguments.draws, arguments.samples, arguments.jobs, arguments.limit or 1) < 1:
        parser.error("expected numbers of 1 or more, and of 0 or more shots")
    for folder in (arguments.known, arguments.tested):
        if not (folder / CAPTIONS).is_file():
            parser.error(f"{folder}: expected {CAPTIONS} in it, got no such file")
    if not arguments.text.is_file():
        parser.error(f"--text: {arguments.text}: no such file")
    return arguments


def settings(arguments: argparse.Namespace) -> Iterator[Setting]:
    """All lines of the table: of every width, group size, method, effort, calibration and draw."""
    yield Setting()
    for bits, group_size, name in product(arguments.bits, arguments.groups, ("rtn", "gptq", "awq")):
        method = METHODS[name]
        efforts = arguments.efforts if method.searches_scales else [None]
        calibrated = product(arguments.calibrations, range(arguments.draws)) if method.uses_text else [(None, 0)]
        for effort, (calibration, draw) in product(efforts, calibrated):
            yield Setting(name, bits, group_size, calibration, draw, effort)


def require_measurable(asked: Asked) -> None:
    """Refuses what cannot be measured, before anything is quantized.

    Raises:
        UsageError: It is not a model that sees, or there are too few known rows; a row makes no sense, or its picture
            is not there.
    """
    open_seeing(asked.model)
    files = [(CAPTIONS, CAPTION), (CHOICES, CHOICE)] if (asked.tested / CHOICES).is_file() else [(CAPTIONS, CAPTION)]
    for file, task in files:
        pairs = after_shots(asked, file, max(asked.shots))
        require_rows(task, pairs)
        require_images(pairs)


def write_calibration(asked: Asked, text: Path, draw: int) -> None:
    """Writes what one draw is calibrated on: a part of the text, and shuffled conversations without and with pictures.

    Raises:
        UsageError: A file is missing, or makes no sense.
    """
    folder = asked.draw(draw)
    folder.mkdir(exist_ok=True)
    words = text.read_text(encoding="utf-8")
    start = int(len(words) * (draw * _GOLDEN % 1))
    (folder / _FILES["text"]).write_text(words[start:] + words[:start], encoding="utf-8")
    questions = asked.known / _QUESTIONS
    pairs = list(read_pairs(questions if questions.is_file() else asked.known / CAPTIONS))
    random.Random(draw).shuffle(pairs)
    without = "\n".join(pair.text.replace(f"{MARKER}\n", "").replace(MARKER, "") for pair in pairs)
    (folder / _FILES["words"]).write_text(without, encoding="utf-8")
    with (folder / _FILES["images"]).open("w", encoding="utf-8") as file:
        for pair in pairs:
            messages = [{"role": role, "content": said} for role, said in pair.messages]
            file.write(
                json.dumps({"image": [str(image.resolve()) for image in pair.images], "messages": messages}) + "\n"
            )


def measure_missing(asked: Asked, wanted: Sequence[Setting], jobs: int) -> None:
    """Quantizes and measures every line that has no file yet, `jobs` at a time."""
    missing = [setting for setting in wanted if not set(map(str, asked.shots)) <= read_row(asked, setting).keys()]
    print(f"{len(wanted)} lines, {len(missing)} to measure", flush=True)
    missing.sort(key=lambda setting: _SLOWEST_FIRST.index(setting.effort or setting.method))
    started, context = time.monotonic(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = [pool.submit(measure, asked, setting) for setting in missing]
        for done, finished in enumerate(as_completed(running), start=1):
            print(f"{time.monotonic() - started:6.0f} s: {done} of {len(running)}; {finished.result()}", flush=True)


def read_row(asked: Asked, setting: Setting) -> Mapping[str, Mapping[str, Any]]:
    """What was measured of a line, by shots; nothing if it was not."""
    path = asked.row(setting)
    found: Mapping[str, Mapping[str, Any]] = (
        json.loads(path.read_text(encoding="utf-8"))["shots"] if path.is_file() else {}
    )
    return found


def measure(asked: Asked, setting: Setting) -> str:
    """Quantizes and measures one line, and says how long it took.

    Raises:
        Awq2trtError: The model cannot be quantized or measured.
    """
    started, progress = time.monotonic(), SilentProgress()
    with tempfile.TemporaryDirectory(prefix="awq2trt-study-") as scratch:
        model = asked.model
        if setting.method is not None:
            model = str(Path(scratch) / "checkpoint")
            quantize_stage(
                QuantizeRequest(asked.model, Path(model), _options(asked, setting), device=asked.device), progress
            )
        quantized = time.monotonic() - started
        with computing_on(asked.device):
            seeing = open_seeing(model)
            found = {str(shots): measure_after(asked, seeing, shots) for shots in asked.shots}
    seconds = {"quantize_seconds": round(quantized, 1), "seconds": round(time.monotonic() - started, 1)}
    asked.row(setting).write_text(json.dumps({**seconds, "shots": found}, indent=1) + "\n", encoding="utf-8")
    return f"{setting.name}: {seconds['quantize_seconds']} of {seconds['seconds']} s to quantize"


def _options(asked: Asked, setting: Setting) -> QuantizeOptions:
    chosen: dict[str, Any] = {"method": setting.method, "bits": setting.bits, "group_size": setting.group_size}
    if setting.effort is not None:
        chosen["effort"] = setting.effort
    if setting.calibration is not None:
        chosen |= {"calib": str(asked.draw(setting.draw) / _FILES[setting.calibration]), "samples": asked.samples}
    return QuantizeOptions(**chosen)


def open_seeing(model: str) -> CaptionedModel:
    """A model that sees.

    Raises:
        UsageError: It is a model of text, or an exported one.
    """
    opened = open_evaluated(model)
    vision = opened.source.vision if isinstance(opened, TorchModel) else None
    if not isinstance(opened, TorchModel) or vision is None:
        raise UsageError("expected a checkpoint of a model that sees.", where=model, fix="name another one.")
    return CaptionedModel.of(opened.source, vision, opened.opened.tokenizer, opened.opened.bos)


def measure_after(asked: Asked, model: CaptionedModel, shots: int) -> dict[str, Any]:
    """Everything that is measured after so many shots."""
    progress = SilentProgress()
    captions = after_shots(asked, CAPTIONS, shots)
    written = write_captions(model, captions, progress, "")
    found: dict[str, Any] = {
        "cider": written.cider,
        "perplexity": model.perplexity(captions, progress, "").value,
        "captions": dict(zip((pair.where for pair in captions[:_SHOWN]), written.captions, strict=False)),
    }
    if (asked.tested / CHOICES).is_file():
        found["accuracy"] = choose(model, after_shots(asked, CHOICES, shots), progress, "").accuracy
    return found


def after_shots(asked: Asked, file: str, shots: int) -> list[ImageText]:
    """Tested rows, each behind the first rows of the known ones.

    Raises:
        UsageError: There are not so many known rows.
    """
    tested = read_pairs(asked.tested / file)[: asked.limit]
    known = read_pairs(asked.known / file) if shots else ()
    if len(known) < shots:
        raise UsageError(
            f"expected {shots} rows for shots, got {len(known)}.", where=str(asked.known / file), fix="add some."
        )
    return [pair.behind(known[:shots]) for pair in tested]


def write_tables(asked: Asked, wanted: Sequence[Setting]) -> str:
    """Writes table.md and table.csv, and returns the former; all draws of a line stand in one."""
    lines: dict[Setting, list[Mapping[str, Any]]] = {}
    for setting in wanted:
        lines.setdefault(replace(setting, draw=0), []).append(read_row(asked, setting))
    kinds = [("cider", "CIDEr"), ("accuracy", "accuracy"), ("perplexity", "perplexity")]
    columns = [(shots, kind, f"{title}, {shots} shots") for kind, title in kinds for shots in asked.shots]
    header = ["weights", "method", "calibrated on", *(title for _, _, title in columns)]
    table = []
    for setting, rows in lines.items():
        cells = [[row[str(shots)].get(kind) for row in rows] for shots, kind, _ in columns]
        figures = [_shown(kind, values) for (_, kind, _), values in zip(columns, cells, strict=True)]
        weights = "fp" if setting.method is None else f"INT{setting.bits} g{setting.group_size}"
        calibrated = "" if setting.calibration is None else CALIBRATIONS[setting.calibration]
        method = " ".join(filter(None, ((setting.method or "").upper(), setting.effort)))
        table.append([weights, method, calibrated, *figures])
    with (asked.output / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *table])
    markdown = "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *table]) + "\n"
    (asked.output / "table.md").write_text(markdown, encoding="utf-8")
    return markdown


def _shown(kind: str, values: Sequence[float | None]) -> str:
    """The mean of draws, with the lowest and the highest if there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = _written(kind, sum(known) / len(known))
    if len(known) == 1:
        return mean
    return f"{mean} ({_written(kind, min(known))} to {_written(kind, max(known))})"


def _written(kind: str, value: float) -> str:
    if kind == "accuracy":
        return f"{value:.1%}"
    return f"{value * _PAPER:.1f}" if kind == "cider" else f"{value:.3f}"


if __name__ == "__main__":
    main()
