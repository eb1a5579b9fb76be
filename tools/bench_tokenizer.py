"""Speed and memory of the C++ library's tokenizer and of Hugging Face's, on one core.

    make runtime && python tools/bench_tokenizer.py            # SmolLM2's, styles of other models
    python tools/bench_tokenizer.py --directory DIR            # a directory with a tokenizer.json
    python tools/bench_tokenizer.py --tokens 128000            # memory of a made-up vocabulary of that size

Prints for each tokenizer the megabytes of text per second of both, and their ratio: the best of five runs each, on the
same documents of about 2 kB, after a first run that fills both caches.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before tokenizers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RUNS = 5


def _documents() -> list[str]:
    """Half a megabyte of this project's own Python, Markdown and C++, and of words in many scripts."""
    from trained_tokenizers import training_text

    root = Path(__file__).parent.parent
    files = [
        *sorted(root.glob("awq2trt/**/*.py"))[:60],
        *sorted(root.glob("*.md")),
        *sorted(root.glob("plugins/**/*.cpp")),
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)[:400_000]
    text += "\n".join(training_text())[:100_000]
    return [text[begin : begin + 2000] for begin in range(0, len(text), 2000)]


def _best_seconds(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def compare(name: str, directory: Path) -> None:
    """Prints a line about the tokenizer of a directory."""
    from native_text import NativeTokenizer
    from tokenizers import Tokenizer

    documents = _documents()
    size_mb = sum(len(text.encode()) for text in documents) / 1e6
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    native = NativeTokenizer(directory)
    theirs = size_mb / _best_seconds(
        lambda: [reference.encode(text, add_special_tokens=False).ids for text in documents]
    )
    ours = size_mb / _best_seconds(lambda: [native.encode(text, allow_special=True) for text in documents])
    print(f"{name:10} Hugging Face {theirs:6.2f} MB/s   C++ {ours:6.2f} MB/s   {ours / theirs:5.1f} times")


def _made_up(tokens: int, directory: Path) -> None:
    """Writes a byte-level tokenizer.json with this many tokens and about two merges for each, as Llama-3's has."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {character: index for index, character in enumerate(alphabet)}, []
    words = list(alphabet)
    index = 0
    while len(vocabulary) < tokens:
        left, right = words[index % len(words)], words[(index * 7919 + index // 5) % len(words)]
        index += 1
        if len(left) + len(right) > 16 or left + right in vocabulary:
            continue
        vocabulary[left + right] = len(vocabulary)
        merges.append(f"{left} {right}")
        words.append(left + right)
    for word in list(vocabulary):
        for cut in range(1, len(word)):
            if len(merges) < 2.2 * tokens and word[:cut] in vocabulary and word[cut:] in vocabulary:
                merges.append(f"{word[:cut]} {word[cut:]}")
    definition: dict[str, Any] = {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": list(dict.fromkeys(merges))},
    }
    (directory / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    print(f"{len(vocabulary)} tokens, {len(definition['model']['merges'])} merges")


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def measure_memory(tokens: int) -> None:
    """Prints what a vocabulary adds to this process: its peak, when loaded, and after half a megabyte of text."""
    from native_text import NativeTokenizer, library

    with tempfile.TemporaryDirectory() as name:
        if os.fork() == 0:  # a process of its own, with separate memory
            _made_up(tokens, Path(name))
            os._exit(0)
        os.wait()
        documents = _documents()
        library()
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, began = _resident_mb(), time.perf_counter()
        native = NativeTokenizer(Path(name))
        seconds = time.perf_counter() - began
        print(f"loaded in {seconds:.2f} s: {_resident_mb() - before:.1f} MB, peak {_peak_mb() - before:.1f} MB")
        for text in documents:
            native.encode(text)
        print(f"after encoding: {_resident_mb() - before:.1f} MB")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="directory of a tokenizer.json; by default, several are made")
    parser.add_argument("--tokens", type=int, help="measure the memory of a vocabulary of this size instead")
    arguments = parser.parse_args()
    if arguments.tokens:
        measure_memory(arguments.tokens)
    elif arguments.directory:
        compare(arguments.directory.name, arguments.directory)
    else:
        from trained_tokenizers import STYLES

        for name, style in STYLES.items():
            with tempfile.TemporaryDirectory() as directory:
                style().save(f"{directory}/tokenizer.json")
                compare(name, Path(directory))


if __name__ == "__main__":
    main()
