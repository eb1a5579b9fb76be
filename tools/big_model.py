"""Time and peak memory of a stage on a model of Llama-3-8B's shape, with random weights.

    python tools/big_model.py quantize|export [--output build/big-model] [--layers 32] [OPTIONS OF THE STAGE]

Writes a checkpoint (of 32 layers: 16 GB to quantize, 5.7 GB to export), runs the stage in a process of its own, prints
that process's time, its peak resident memory and the size of what it wrote, and removes both. The calibration text
consists of random words; --layers 1 is enough to see what one block and both ends need.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from awq2trt.checkpoint.layouts import ModelSchemes, awq_gemm
from awq2trt.checkpoint.writer import quantized_config, write_config, write_tensors
from awq2trt.models.families import DecoderSpec, describe_model
from awq2trt.models.sources.base import Array
from awq2trt.models.sources.safetensors import INDEX_FILE, SafetensorsFiles
from awq2trt.models.spec import ModelSpec
from awq2trt.scheme import QuantScheme

SCHEME = QuantScheme(group_size=128)
TEXT = "text.txt"
WORDS = 10_000
MOST_AT_ONCE = 8
"""Files that are written at the same time; each takes up to 2 GB of memory."""
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


def main() -> None:
    """Writes, runs the stage, prints, removes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("quantize", "export"))
    parser.add_argument("--output", type=Path, default=Path("build/big-model"))
    parser.add_argument("--layers", type=int, default=32)
    arguments, options = parser.parse_known_args()
    model, made = arguments.output / "model", arguments.output / "made"
    shutil.rmtree(arguments.output, ignore_errors=True)
    try:
        # In a process of its own, since a child inherits the peak memory of the process from which it was forked.
        config = {**LLAMA_3_8B, "num_hidden_layers": arguments.layers}
        write = write_original if arguments.stage == "quantize" else write_quantized
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(model, config))
        writer.start()
        writer.join()
        command = [sys.executable, "-m", "awq2trt", arguments.stage, str(model), "-o", str(made), *options]
        if arguments.stage == "quantize" and "--calib" not in options:
            command += ["--calib", str(model / TEXT)]
        started = time.monotonic()
        _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
        if status:
            raise SystemExit(f"{arguments.stage} failed")
        size_bytes = sum(path.stat().st_size for path in made.iterdir())
        print(
            f"{arguments.layers} layers: {size_bytes / 1e9:.2f} GB written in {time.monotonic() - started:.0f} s, "
            f"peak resident memory {usage.ru_maxrss / 1e6:.2f} GB"
        )
    finally:
        shutil.rmtree(arguments.output, ignore_errors=True)


def write_original(directory: Path, config: dict[str, object]) -> None:
    """Writes an fp16 checkpoint with random weights, a tokenizer of invented words, and a text of such words."""
    directory.mkdir(parents=True)
    spec, random = describe_model(config), np.random.default_rng(0)

    def write_block(layer: int) -> None:
        own = np.random.default_rng([1, layer])
        shapes = spec.block_shapes().items()
        block = {f"{spec.prefix(layer)}{name}": random_half(shape, own, 0.1) for name, shape in shapes}
        write_tensors(directory / f"block-{layer:05}.safetensors", block)

    def write_outer(number: int, name: str, shape: tuple[int, ...]) -> None:
        own = np.random.default_rng([2, number])
        write_tensors(directory / f"outer-{number}.safetensors", {name: random_half(shape, own)})

    with ThreadPoolExecutor(max_workers=min(MOST_AT_ONCE, os.cpu_count() or 1)) as writers:
        outer = enumerate(spec.outer_shapes().items())
        written = [writers.submit(write_outer, number, *entry) for number, entry in outer]
        written += [writers.submit(write_block, layer) for layer in range(spec.num_layers)]
        for one in track(written, description="writing a random model"):
            one.result()
    write_index(directory)
    write_config(directory, config)
    words = [f"w{index}" for index in range(WORDS)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / TEXT).write_text(" ".join(random.choice(words, 20 * WORDS)), encoding="utf-8")


def write_quantized(directory: Path, config: dict[str, object]) -> None:
    """Writes a checkpoint in AutoAWQ's layout with random codes, scales and plain tensors."""
    directory.mkdir(parents=True)
    spec, random = describe_model(config), np.random.default_rng(0)
    for layer in track(range(spec.num_layers), description="writing a random checkpoint"):
        write_tensors(directory / f"block-{layer:05}.safetensors", random_block(spec, layer, random))
    outer = {name: random_half(shape, random) for name, shape in spec.outer_shapes().items()}
    write_tensors(directory / "outer.safetensors", outer)
    write_index(directory)
    write_config(directory, quantized_config(config, ModelSpec(spec), ModelSchemes(SCHEME), awq_gemm.LAYOUT))
    Tokenizer(WordLevel({"word": 0}, unk_token="word")).save(str(directory / "tokenizer.json"))


def write_index(directory: Path) -> None:
    """Names the file of every tensor; without an index, these files would not be found."""
    weight_map = {
        name: path.name for path in sorted(directory.glob("*.safetensors")) for name in SafetensorsFiles.of_file(path)
    }
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def random_block(spec: DecoderSpec, layer: int, random: np.random.Generator) -> dict[str, Array]:
    """Makes a block's tensors, by full name."""
    prefix, tensors = spec.prefix(layer), {}
    for name in spec.block.linears:
        rows, columns = spec.linear_shape(name)
        words, groups = rows // awq_gemm.COLUMNS_PER_WORD, SCHEME.groups(columns)
        for kind, height in (("qweight", columns), ("qzeros", groups)):
            tensors[f"{prefix}{name}.{kind}"] = random.integers(-(2**31), 2**31, (height, words), dtype=np.int32)
        tensors[f"{prefix}{name}.scales"] = random_half((groups, rows), random)
    for name in spec.block.hidden_norms:
        tensors[f"{prefix}{name}.weight"] = random_half((spec.hidden_size,), random)
    return tensors


def random_half(shape: tuple[int, ...], random: np.random.Generator, width: float = 1.0) -> Array:
    """Makes fp16 values around zero, in a range of a width."""
    values = random.random(shape, dtype=np.float32)
    values -= np.float32(0.5)
    values *= np.float32(width)
    return values.astype(np.float16)


if __name__ == "__main__":
    main()
