"""Measures models that see, of published sizes with random weights, on a GPU, beside Hugging Face transformers in fp16.

    python tools/bench_vision.py llava-1.5-7b qwen2.5-vl-3b --json vision.json --markdown vision.md

For each size: the time of what the model sees with, from a prepared image to its pieces; the time to the first token
of a prompt with one image and 40 tokens of text, and of as many tokens of text alone; then the median time of a token.
An image is 576 pieces; 256 for Gemma 3, and for LLaVA 1.6 four tiles and the whole, 2,928. Image and pieces go through
the host's memory, and that is measured; transformers keeps both on the GPU.

`--target cpu` measures on the CPU, where transformers computes in fp32. `--layers N` cuts decoders to N layers.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from vision_shapes import SHAPES, Shape

from awq2trt.artifact.manifest import Artifact, Manifest
from awq2trt.artifact.records import (
    Contents,
    FileRecord,
    GraphRecord,
    LoweredRecord,
    QuantizationRecord,
    SourceRecord,
)
from awq2trt.evaluation.decode_bench import measure_token_ms
from awq2trt.evaluation.random_model import RandomModel
from awq2trt.graph.beside_decoder import write_beside
from awq2trt.graph.provider_file import Lowering, lowered_contract, write_lowered
from awq2trt.io_contract import DECODER
from awq2trt.models.spec import ModelSpec
from awq2trt.models.vision.arranging import arranged, tokens_around
from awq2trt.models.vision.description import SeeingSpec
from awq2trt.models.vision.pooled import IMAGE_BLOCKS
from awq2trt.models.vision.prepared import Grid, Pixels, PreparedImage
from awq2trt.onnx_export.graphs import export_graphs
from awq2trt.progress import Progress, terminal_progress
from awq2trt.recipe import BUILD_HEAD, ExportOptions, HeadKind
from awq2trt.runtime.ort.cuda import CudaBackend
from awq2trt.runtime.ort.loading import PROVIDERS, DeviceOptions, OpenedModel, open_backend
from awq2trt.target import CPU_TARGET, CUDA_TARGET, find_target
from awq2trt.version import __version__

HF: Final = "Hugging Face"

SEEN_INPUTS: Final = ("pixel_values", "image_grid_thw", "image_sizes")
"""What transformers' towers take."""

REPEATS: Final = 5

QUESTION_TOKENS: Final = 40


@dataclass(frozen=True)
class Times:
    """What one executor takes, in milliseconds.

    Attributes:
        executor: What ran the model.
        tower_ms: From a prepared image to its pieces.
        first_token_ms: To the first token of a prompt with an image.
        text_first_token_ms: The same for as many tokens of text.
        token_ms: A token after that: our median; for transformers, the mean of a complete answer.
        failed: Why it was not measured; None if it was.
    """

    executor: str
    tower_ms: float | None = None
    first_token_ms: float | None = None
    text_first_token_ms: float | None = None
    token_ms: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Prompt:
    """What is shown and asked.

    Attributes:
        image: The image, as the vision graph takes it.
        pixels: The same as transformers takes it.
        tokens: An image's tokens, and those of a question.
        image_token: Stands for a piece of the image among them.
    """

    image: PreparedImage
    pixels: Pixels
    tokens: tuple[int, ...]
    image_token: int


def make_prompt(vision: SeeingSpec, grid: Grid | None, size: tuple[int, int] | None = None) -> Prompt:
    """A random image, and a question about it. An image of a given size is seen as a whole beside its tiles, too."""
    parts = None if grid is None else grid.cells + (size is not None)
    shape = vision.pixels_shape if parts is None else (parts, *vision.pixels_shape)
    pixels = Pixels(np.random.default_rng(0).standard_normal(shape, np.float32), grid, size)
    record = vision.record()
    image = arranged(record, pixels)
    before, after = tokens_around(record)
    seen = [vision.image_token] * image.pieces
    return Prompt(image, pixels, (1, *before, *seen, *after, *range(2, 2 + QUESTION_TOKENS)), vision.image_token)


def build(shape: Shape, target: str, folder: Path, progress: Progress) -> Artifact:
    """Writes a model of this size for `cpu` or `cuda` below `folder`."""
    model = shape.model
    exported, lowered = folder / "exported", folder / "lowered"
    exported.mkdir()
    lowered.mkdir()
    graphs = export_graphs(model, exported, ExportOptions(max_seq_len=shape.capacity, function_bodies=False), progress)
    lowering = Lowering.CPU if target == CPU_TARGET else Lowering.CUDA_FUSED
    write_lowered(exported, lowering, lowered, progress)
    beside = {name: graph for name, graph in graphs.records.items() if name != DECODER}
    records = write_beside(exported, beside, lowered, on_cpu=lowering.is_for_cpu)
    contract = lowered_contract(graphs.decoder.contract, lowering)
    records[DECODER] = graphs.records[DECODER].model_copy(update={"io": contract})
    return Artifact(lowered, _manifest(model, records, target, lowered))


def _manifest(model: RandomModel, graphs: dict[str, GraphRecord], target: str, directory: Path) -> Manifest:
    """What the runtime needs to know. Nobody hashes files that live as long as the measurement."""
    known = find_target(target)
    unhashed = "0" * 64
    files = {path.name: FileRecord(size_bytes=path.stat().st_size, sha256=unhashed) for path in directory.iterdir()}
    contents = Contents(
        source=SourceRecord(model="random weights", family=model.spec.family, files={}),
        quantization=QuantizationRecord(method="random", scheme=model.scheme),
        model=ModelSpec(model.spec, model.vision).record(),
        graphs=graphs,
        lowered=LoweredRecord(
            target=target,
            provider=PROVIDERS[target],
            minimum_onnxruntime=known.minimum_version,
            minimum_compute_capability=None,
            minimum_cuda=known.cuda,
            cpus=(),
            plugin_version=__version__ if target == CUDA_TARGET else None,
            profiles={},
        ),
    )
    return Manifest(kind="lowered", fingerprint=unhashed, tool_version=__version__, contents=contents, files=files)


def measure_ours(opened: OpenedModel, prompt: Prompt, tokens: int) -> Times:
    """Measures a model that is loaded."""
    backend = opened.backend

    def see(images: Sequence[PreparedImage]) -> None:
        backend.reset()
        backend.show(images)

    def answer(images: Sequence[PreparedImage], asked: Sequence[int]) -> int:
        see(images)
        return backend.choose(asked) if isinstance(backend, CudaBackend) else int(backend.forward(asked).argmax())

    text = [2 + index % QUESTION_TOKENS for index in range(len(prompt.tokens))]
    return Times(
        f"awq2trt, {opened.title}",
        tower_ms=median_ms(lambda: see([prompt.image])),
        first_token_ms=median_ms(lambda: answer([prompt.image], prompt.tokens)),
        text_first_token_ms=median_ms(lambda: answer([], text)),
        token_ms=measure_token_ms(backend, len(prompt.tokens), tokens),
    )


def measure_transformers(shape: Shape, prompt: Prompt, tokens: int, device: str) -> Times:
    """Measures transformers' model of the same size, in fp16 on a GPU and in fp32 on the CPU, with `generate`."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    dtype = torch.float32 if device == CPU_TARGET else torch.float16
    name = f"{HF}, {'fp32' if device == CPU_TARGET else 'fp16'}"
    given = {key: value for key, value in shape.config.items() if key not in ("model_type", "architectures")}
    try:
        with torch.device(device):
            config = AutoConfig.for_model(shape.config["model_type"], **given)
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
            inputs = _inputs(shape, prompt, dtype)
    except torch.OutOfMemoryError as error:
        return Times(name, failed=str(error).splitlines()[0])
    ids = inputs.pop("input_ids")
    seen = {key: value for key, value in inputs.items() if key in SEEN_INPUTS}

    def finished(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if device != CPU_TARGET:
                torch.cuda.synchronize()

        return run

    def first(ids: torch.Tensor, **inputs: torch.Tensor) -> int:
        return int(model(ids, use_cache=True, logits_to_keep=1, **inputs).logits.argmax(-1))

    def answer(count: int) -> None:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **options, **inputs)

    with torch.inference_mode():
        one, all_ms = (median_ms(finished(partial(answer, count)), 2) for count in (1, tokens + 1))
        return Times(
            name,
            tower_ms=median_ms(finished(lambda: model.get_image_features(**seen))),
            first_token_ms=median_ms(lambda: first(ids, **inputs)),
            text_first_token_ms=median_ms(lambda: first(torch.full_like(ids, 2))),
            token_ms=(all_ms - one) / tokens,
        )


def _inputs(shape: Shape, prompt: Prompt, dtype: Any) -> dict[str, Any]:
    """What transformers' models of all families take, on PyTorch's default device."""
    import torch

    ids: NDArray[np.int64] = np.asarray([prompt.tokens], np.int64)
    (grid, size), pixels = prompt.pixels[1:], torch.tensor(prompt.pixels.values, dtype=dtype)
    is_image = torch.tensor((ids == prompt.image_token).astype(np.int64))
    inputs = {"input_ids": torch.tensor(ids), "pixel_values": pixels[None]}
    if size is not None:
        inputs["image_sizes"] = torch.tensor([size])
    elif grid is not None:
        inputs |= {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid]), "mm_token_type_ids": is_image}
    elif IMAGE_BLOCKS in shape.config:
        inputs["token_type_ids"] = is_image
    return inputs


def median_ms(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of several calls, after a first one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def measure(shape: Shape, target: str, tokens: int, *, against_hf: bool, progress: Progress) -> Iterator[Times]:
    """Measures one size; yields a result when it is there. Only one model is in memory at a time."""
    with tempfile.TemporaryDirectory(prefix="awq2trt-bench-vision-") as folder:
        artifact = build(shape, target, Path(folder), progress)
        vision = shape.model.vision
        assert vision is not None  # all shapes see
        prompt = make_prompt(vision, shape.grid, shape.size)
        progress.note("measuring awq2trt")
        opened = open_backend(artifact, DeviceOptions(target))
        yield measure_ours(opened, prompt, tokens)
        if isinstance(opened.backend, CudaBackend):
            opened.backend.close()
        del opened
        gc.collect()  # frees the session and its weights
    if against_hf:
        progress.note(f"measuring {HF} transformers")
        yield measure_transformers(shape, prompt, tokens, target)


def markdown(results: Mapping[str, Sequence[Times]], heads: Sequence[str]) -> str:
    """A table for documents."""

    def cell(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    lines = [*(f"{head}  " for head in heads), ""]
    lines += [
        "| model | executor | tower, ms | first token with an image, ms | without, ms | ms a token | tokens/s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, rows in results.items():
        for row in rows:
            numbers = [cell(row.tower_ms), cell(row.first_token_ms), cell(row.text_first_token_ms)]
            speed = cell(1e3 / row.token_ms, 0) if row.token_ms else ""
            columns = [name, row.executor, *numbers, cell(row.token_ms, 2), speed]
            lines.append(f"| {' | '.join(columns)} |" if row.failed is None else f"| {name} | {row.failed} | | | | | |")
    return "\n".join(lines) + "\n"


def versions(*, against_hf: bool) -> dict[str, str]:
    """Versions of what is measured."""
    import onnxruntime

    found = {"awq2trt": __version__, "ONNX Runtime": str(onnxruntime.__version__)}
    if against_hf:
        import torch
        import transformers

        found |= {"PyTorch": str(torch.__version__), "transformers": str(transformers.__version__)}
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES, help="published sizes")
    parser.add_argument("--target", choices=(CPU_TARGET, CUDA_TARGET), default=CUDA_TARGET, help="what runs them")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--layers", type=int, help="layers of the decoder, if not all")
    parser.add_argument("--head", choices=get_args(HeadKind), default=BUILD_HEAD, help="how the head is stored")
    parser.add_argument("--no-hf", action="store_true", help=f"leave out {HF}")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    arguments = parser.parse_args()
    if not 1 <= arguments.tokens <= 256:
        parser.error(f"--tokens: expected 1 to 256, which the cache has room for, got {arguments.tokens}")
    if arguments.layers is not None and arguments.layers < 1:
        parser.error(f"--layers: expected 1 or more, got {arguments.layers}")
    against_hf = not arguments.no_hf
    known = ", ".join(f"{name} {version}" for name, version in versions(against_hf=against_hf).items())
    command = shlex.join(["python", "tools/bench_vision.py", *sys.argv[1:]])
    heads = (f"{known}, {datetime.date.today().isoformat()}", f"`{command}`")
    results: dict[str, list[Times]] = {}
    for name in arguments.shapes:
        shape = replace(SHAPES[name], head=arguments.head)
        shape = shape if arguments.layers is None else shape.with_layers(arguments.layers)
        results[name] = []
        for row in measure(
            shape, arguments.target, arguments.tokens, against_hf=against_hf, progress=terminal_progress()
        ):
            results[name].append(row)  # what is measured is kept if a later part is stopped
            if arguments.json is not None:
                rows = {name: [asdict(row) for row in rows] for name, rows in results.items()}
                arguments.json.write_text(json.dumps({"heads": heads, "results": rows}, indent=2) + "\n")
            if arguments.markdown is not None:
                arguments.markdown.write_text(markdown(results, heads))
    print(markdown(results, heads), end="")


if __name__ == "__main__":
    main()
