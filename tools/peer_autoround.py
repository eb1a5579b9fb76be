"""Measures AutoRound's perplexity on the texts of our study: the same windows to calibrate on and to test on.

    pip install auto-round==0.16.1 datasets accelerate
    python tools/peer_autoround.py [--bits 4] [--group-size 128] [--iters 200] [--draw 0] [--model DIR] [--json FILE]
    python tools/peer_autoround.py --recipe best [--samples 32 --seqlen 512]
    python tools/peer_autoround.py --text pubmed --save DIR

It needs a GPU in practice: 200 steps per block take minutes there, but most of a day on two cores. AutoRound
(arXiv:2309.05516) has no fixed order of sums, so that two runs of one command differ. Without `--recipe`, it gets the
windows of our study. `--recipe` takes one of its own recipes instead, `best` being its most accurate; flags that are
given win, so that the second line gives the steps of `best` to the windows of our study. `--save` writes the weights
that its codes stand for, for `awq2trt eval DIR --task TASK --data FILE`.

In: a directory that transformers loads, or a packaged model or .gguf file, which is first converted to one. Out: one
line of JSON, with perplexities, seconds and the settings.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from study import MODEL, Texts
from study_walk import Calibration
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from awq2trt.checkpoint.writer import write_tensors
from awq2trt.evaluation.perplexity import perplexity
from awq2trt.models.decoder import HEAD_ROWS
from awq2trt.models.sources.base import CONFIG_FILE, Array, ModelSource
from awq2trt.models.sources.opening import open_source
from awq2trt.models.sources.safetensors import SINGLE_FILE
from awq2trt.progress import SilentProgress

TESTS: Final = ("wikitext2", "pubmed", "c4")

OURS: Final[dict[str, float | None]] = {"iters": 200, "samples": 32, "seqlen": 512, "lr": None}
"""AutoRound's usual number of steps, on the windows of our study."""

RECIPES: Final[dict[str, dict[str, float | None]]] = {
    "light": {"iters": 50, "samples": 128, "seqlen": 2048, "lr": 5e-3},
    "default": {"iters": 200, "samples": 128, "seqlen": 2048, "lr": None},
    "best": {"iters": 1000, "samples": 512, "seqlen": 2048, "lr": None},
}
"""AutoRound's own recipes (auto_round/cli/main.py of 0.16.1); its README calls `best` the most accurate."""


def main() -> None:
    """Quantizes, measures, prints."""
    arguments = parsed()
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "save")}
    data = Path(os.environ.get("AWQ2TRT_DATA", "../shared/data"))
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(arguments.model)
        given = Path(arguments.model)
        directory = given if given.is_dir() else written_for_transformers(source, Path(scratch) / "model")
        texts = Texts.open(source, data, Path(scratch))
        calibration = texts.calibration(
            Calibration(arguments.text, samples=arguments.samples, seqlen=arguments.seqlen, draw=arguments.draw)
        )
        tests = {name: texts.test(name, arguments.windows, 1024) for name in TESTS}
        started = time.monotonic()
        model = rounded(directory, calibration, settings)
        seconds = time.monotonic() - started
        if arguments.save:
            written_for_transformers(source, arguments.save, model.state_dict())
        line = json.dumps({"tool": "auto-round", **settings, "seconds": round(seconds), **measured(model, tests)})
    print(line)
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with the values of a recipe where no flag is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--recipe", choices=RECIPES, help="AutoRound's own steps and windows")
    parser.add_argument("--iters", type=int, help="steps for each block [200]")
    parser.add_argument("--samples", type=int, help="calibration windows [32]")
    parser.add_argument("--seqlen", type=int, help="tokens in each [512]")
    parser.add_argument("--lr", type=float, help="AutoRound's learning rate; it chooses one by itself")
    parser.add_argument("--text", choices=("wikitext2", "pubmed"), default="wikitext2", help="to calibrate on")
    parser.add_argument("--draw", type=int, default=0, help="which calibration windows")
    parser.add_argument("--windows", type=int, default=8, help="windows of 1,024 tokens to test on")
    parser.add_argument("--save", type=Path, help="new directory for the weights, as transformers loads them")
    parser.add_argument("--json", type=Path, help="append the line to a file")
    found = parser.parse_args(arguments)
    if found.save is not None and found.save.exists():
        parser.error(f"--save: expected a directory that does not exist yet, got {found.save}")
    for name, value in (RECIPES[found.recipe] if found.recipe else OURS).items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    return found


def written_for_transformers(source: ModelSource, directory: Path, rounded: Mapping[str, Tensor] | None = None) -> Path:
    """Writes a directory that transformers loads: the model's tensors in fp32, its config.json, its tokenizer.

    Args:
        source: The model.
        directory: What is made.
        rounded: Tensors that take the place of those of blocks, by full name; None for the model as it was.
    """
    directory.mkdir(parents=True)
    blocks: dict[str, Array] = {}
    for layer in range(source.spec.num_layers):
        blocks |= {source.spec.prefix(layer) + name: value for name, value in source.block(layer).items()}
    if rounded is not None:
        blocks = {name: rounded[name].float().cpu().numpy() for name in blocks}
    write_tensors(directory / SINGLE_FILE, source.outer() | blocks)
    config = {**source.config, "torch_dtype": "float32"}
    (directory / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    source.save_tokenizer(directory)
    return directory


def rounded(directory: Path, calibration: Tensor, settings: dict[str, Any]) -> torch.nn.Module:
    """Returns the model with the weights that AutoRound's codes stand for."""
    from auto_round import AutoRound

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    quantizer = AutoRound(
        model,
        AutoTokenizer.from_pretrained(directory),
        bits=settings["bits"],
        group_size=settings["group_size"],
        sym=False,
        iters=settings["iters"],
        lr=settings.get("lr"),
        nsamples=len(calibration),
        seqlen=calibration.shape[1],
        dataset=list(calibration.cpu().split(1)),
    )
    found: torch.nn.Module = quantizer.quantize()[0]
    return found.eval()


def measured(model: torch.nn.Module, tests: dict[str, Tensor]) -> dict[str, float]:
    """Measures perplexity on each text."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def logits(window: Tensor) -> Iterator[Tensor]:
        return iter(model(window.unsqueeze(0)).logits[0].split(HEAD_ROWS))

    with torch.inference_mode():
        return {
            name: perplexity(windows.to(device), logits, SilentProgress(), name).value
            for name, windows in tests.items()
        }


if __name__ == "__main__":
    main()
