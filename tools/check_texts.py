"""Does a sound build ever fail? Runs `awq2trt check` on twenty texts, and shows how close each comes to limits.

    python tools/check_texts.py build/demo [--tokens 192] [--json FILE]

The texts are four spans each of WikiText-2 and C4, three of PubMed, two of each of two novels, three chat prompts in
the model's own template, and two of Python source. It needs the data that the tests use (`AWQ2TRT_DATA`, or
`../shared/data`). The build is opened and its weights compared once. Exits with 1 if a text fails. SmolLM2-135M takes
about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from awq2trt.checking.chain import run_chain
from awq2trt.checking.results import CheckResult
from awq2trt.checking.stored_weights import check_weights
from awq2trt.checking.subject import find_subject
from awq2trt.progress import terminal_progress
from awq2trt.runtime import ChatTokenizer, user_message

CHARACTERS_PER_TOKEN = 16
"""More characters per token than any of these texts has, so that a span is never too short."""


@dataclass(frozen=True)
class Text:
    """A span of a text.

    Attributes:
        name: Where it comes from.
        content: The text, or a user's message to the model.
        chat: Whether it goes through the chat template.
    """

    name: str
    content: str
    chat: bool = False


@dataclass(frozen=True)
class Row:
    """The result for one text.

    Attributes:
        text: Its name.
        tokens: Number of its tokens.
        shares: For each stage, the largest share of a tolerance in any block, and in the logits.
        failure: What failed; None if nothing failed.
        seconds: Wall time.
    """

    text: str
    tokens: int
    shares: dict[str, float]
    failure: str | None
    seconds: float


def main() -> None:
    """Checks the build on every text and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="a directory that `awq2trt build ... -o DIR` wrote")
    parser.add_argument("--tokens", type=int, default=192, help="most tokens of each text")
    parser.add_argument("--json", type=Path, help="all numbers, written after every text")
    arguments = parser.parse_args()
    data = Path(os.environ.get("AWQ2TRT_DATA", "../shared/data"))
    if not (data / "wikitext2").is_dir():
        raise SystemExit(
            f"there are no texts in {data}; set AWQ2TRT_DATA to a directory with wikitext2, c4, pubmed and others"
        )
    rows = []
    for row in check_texts(arguments.directory, list(texts(data, arguments.tokens)), arguments.tokens):
        rows.append(row)
        print(f"{row.text:36} {row.failure or 'passed'}, {row.seconds:.0f} s", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([vars(row) for row in rows], indent=1), encoding="utf-8")
    show(Console(width=160), rows)
    if any(row.failure for row in rows):
        raise SystemExit(1)


def check_texts(directory: Path, spans: Sequence[Text], tokens: int) -> Iterator[Row]:
    """Checks a build on each text, and yields each result when it is ready.

    Args:
        directory: The build.
        spans: The texts.
        tokens: Most tokens of each.
    """
    progress = terminal_progress()
    subject = find_subject(directory)
    tokenizer = ChatTokenizer.load(subject.checkpoint.directory)
    weights = check_weights(subject, progress)
    for text in spans:
        started = time.monotonic()
        ids = _tokens(tokenizer, text)[:tokens]
        result = run_chain(subject, ids, progress, weights=weights)
        failure = result.first_failure()
        problem = f"FAILED at {failure.stage}, {failure.place}: {failure.message}" if failure else None
        yield Row(text.name, len(ids), largest_shares(result), problem, time.monotonic() - started)


def _tokens(tokenizer: ChatTokenizer, text: Text) -> list[int]:
    if text.chat:
        return tokenizer.encode_messages([user_message(text.content)])
    return tokenizer.encode(text.content)


def largest_shares(result: CheckResult) -> dict[str, float]:
    """For each stage, the largest share of a tolerance in its blocks, and in its logits."""
    shares: dict[str, float] = {}
    for stage in result.stages:
        blocks = [place.share for place in stage.places[:-1]]
        if blocks:
            shares[f"{stage.stage}, blocks"] = max(blocks)
        if stage.places:
            shares[f"{stage.stage}, logits"] = stage.places[-1].share
    return shares


def show(console: Console, rows: Sequence[Row]) -> None:
    """Formats a line for every text, then the largest and the median of each column."""
    columns = list(rows[0].shares)
    table = Table(title="Largest share of each tolerance that a text uses; 1 is all of it")
    table.add_column("text")
    for header in ("tokens", *columns):
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(row.text, str(row.tokens), *(f"{row.shares[column]:.2f}" for column in columns))
    for name, pick in (("worst", max), ("median", statistics.median)):
        table.add_row(name, "", *(f"{pick([row.shares[column] for row in rows]):.3f}" for column in columns))
    console.print(table)


def texts(data: Path, tokens: int) -> Iterator[Text]:
    """Cuts twenty spans, each of `tokens` tokens or more if the text has them."""
    length = tokens * CHARACTERS_PER_TOKEN
    for path, count in (
        (data / "wikitext2" / "wiki.test.raw", 4),
        (data / "gutenberg" / "pride_and_prejudice_1342.txt", 2),
        (data / "gutenberg" / "sherlock_holmes_1661.txt", 2),
    ):
        yield from _spans(path, count, length)
    for path, count in (
        (data / "c4" / "c4_en_first1000.jsonl", 4),
        (data / "pubmed" / "pubmedqa_pqal_abstracts.jsonl", 3),
    ):
        for number, record in _records(path, count):
            yield Text(f"{path.parent.name}, document {number}", str(record["text"])[:length])
    for number, record in _records(data / "chat" / "mt_bench_question.jsonl", 3):
        yield Text(f"chat, {record['category']}, prompt {number}", record["turns"][0], chat=True)
    for module in (argparse, difflib):
        yield from _spans(Path(str(module.__file__)), 1, length)


def _spans(path: Path, count: int, length: int) -> Iterator[Text]:
    """Cuts spans at even distances, each from the start of a line."""
    whole = path.read_text(encoding="utf-8")
    for index in range(count):
        start = whole.index("\n", len(whole) * (index + 1) // (count + 1)) + 1
        yield Text(f"{path.name}, {(index + 1) / (count + 1):.0%}", whole[start : start + length].lstrip())


def _records(path: Path, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines(), since documents contain characters that it would treat as line ends.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for index in range(count):
        number = len(lines) * (2 * index + 1) // (2 * count)
        yield number, json.loads(lines[number])


if __name__ == "__main__":
    main()
