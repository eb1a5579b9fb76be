"""What quantizing costs of what a model sees, by the number of pictures that the search is shown.

    python tools/study_towers.py MODEL --known build/known --tested build/tested [--counts 1,4,16,48] [--bits 4]

In: a model that sees, and two folders of pictures. Out: for each count and each search, || y' - y || / || y || over
what the model sees, y, in the tested pictures, of which the search knows none; and the seconds that it took.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from awq2trt.errors import UsageError
from awq2trt.images.pairs import read_pairs
from awq2trt.images.processor import processor_of
from awq2trt.models.sources.opening import open_source
from awq2trt.models.vision.seeing import pieces_seen
from awq2trt.models.vision.tower import load_vision
from awq2trt.progress import SilentProgress
from awq2trt.quantization.image_windows import Sight
from awq2trt.quantization.method import method_of
from awq2trt.quantization.vision import quantize_vision
from awq2trt.recipe import QuantizeOptions

SEARCHES: Final[Mapping[str, Mapping[str, Any]]] = {
    "rtn": {"method": "rtn"},
    "gptq": {"method": "gptq"},
    "fast": {"effort": "fast"},
    "default": {"effort": "default"},
    "best": {"effort": "best"},
    "max": {"effort": "max"},
}
"""Methods and efforts by what the table calls them."""


def pictures_of(path: Path) -> list[Path]:
    """The pictures of a folder, or of a .jsonl file, each once: what `--calib` takes.

    Raises:
        UsageError: There is no such path, or a picture is missing.
        CalibrationError: There are none.
    """
    return list(dict.fromkeys(image for pair in read_pairs(path) for image in pair.images))


def sight_of(model: str) -> Sight:
    """How a model sees.

    Raises:
        UsageError: It is a model of text.
    """
    source = open_source(model)
    if source.vision is None:
        raise UsageError("expected a model that sees, got a model of text.", where=model, fix="name another model.")
    return Sight(source, source.vision, processor_of(source))


def measured(
    sight: Sight, known: Sequence[Path], tested: Sequence[Path], searches: Mapping[str, QuantizeOptions]
) -> Iterator[tuple[str, float, float]]:
    """For each search its name, the error of what is seen in `tested`, and seconds."""
    original = load_vision(sight.source)
    shown = [sight.pixels(path) for path in tested]
    wanted = [pieces_seen(sight.vision, original, pixels) for pixels in shown]
    for name, options in searches.items():
        started, weights = time.monotonic(), dict[str, Tensor](original)
        for found in quantize_vision(sight, known, method_of(options), SilentProgress()):
            weights[f"{found.name}.weight"] = torch.as_tensor(found.linear.dequantize())
        seconds = time.monotonic() - started
        seen = [pieces_seen(sight.vision, weights, pixels) for pixels in shown]
        error = sum(float((ours - theirs).square().sum()) for ours, theirs in zip(seen, wanted, strict=True))
        yield name, math.sqrt(error / sum(float(theirs.square().sum()) for theirs in wanted)), seconds


def main() -> None:
    """Prints a line for every count and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--known", type=Path, required=True)
    parser.add_argument("--tested", type=Path, required=True)
    parser.add_argument("--counts", default="1,4,16,48")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    given = parser.parse_args()
    known, tested = pictures_of(given.known), pictures_of(given.tested)
    searches = {
        name: QuantizeOptions(bits=given.bits, group_size=given.group_size, **changes)
        for name, changes in SEARCHES.items()
    }
    print(f"{'pictures':>8} {'search':8} {'error':>7} {'seconds':>8}   of {len(tested)} other pictures")
    with torch.no_grad():
        for count in map(int, given.counts.split(",")):
            for name, error, seconds in measured(sight_of(given.model), known[:count], tested, searches):
                print(f"{count:8} {name:8} {error:7.2%} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
