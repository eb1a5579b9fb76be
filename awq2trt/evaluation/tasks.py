"""Zero-shot tasks: PIQA, ARC-easy, WinoGrande, LAMBADA. Reads local files, makes texts to score, and counts results.

Prompts and scoring are those of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness, tasks
`piqa`, `arc_easy`, `winogrande`, `lambada_openai` of version 0.4): a model computes how likely each continuation of a
context is. `acc` takes the likeliest choice, `acc_norm` the likeliest per character; WinoGrande puts the choices into
the context and scores the text behind them; LAMBADA counts last words that greedy decoding would generate. It needs
only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from awq2trt.errors import UsageError
from awq2trt.foreign_files import parse_json, reading

PIQA: Final = "piqa"
ARC_EASY: Final = "arc-easy"
WINOGRANDE: Final = "winogrande"
LAMBADA: Final = "lambada"


@dataclass(frozen=True)
class Continuation:
    """A text whose end is scored.

    Attributes:
        context: The text before.
        text: The scored text.
    """

    context: str
    text: str


@dataclass(frozen=True)
class Score:
    """A model's score of a continuation.

    Attributes:
        log_probability: Log-probability of all its tokens together, given the context, in nats.
        greedy: Whether each of its tokens is the model's most probable one.
    """

    log_probability: float
    greedy: bool


@dataclass(frozen=True)
class Example:
    """A question.

    Attributes:
        continuations: One for every choice; a single one if there is nothing to choose.
        choice_lengths: Numbers of characters of the choices, by which `acc_norm` divides.
        gold: Index of the right choice; None if there is nothing to choose.
    """

    continuations: tuple[Continuation, ...]
    choice_lengths: tuple[int, ...] = ()
    gold: int | None = None


@dataclass(frozen=True)
class TaskScore:
    """A task's result.

    Attributes:
        task: Its name.
        examples: Number of examples.
        correct: For each example, whether the likeliest choice, or the greedy word, was the right one.
        correct_normalised: The same per character; None if there is nothing to normalise.
        perplexity: Perplexity of the last word, only for LAMBADA.
    """

    task: str
    examples: int
    correct: tuple[bool, ...]
    correct_normalised: tuple[bool, ...] | None = None
    perplexity: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of examples that are right."""
        return sum(self.correct) / self.examples

    @property
    def accuracy_normalised(self) -> float | None:
        """The same share, judged per character."""
        return None if self.correct_normalised is None else sum(self.correct_normalised) / self.examples


def _piqa(row: Mapping[str, Any]) -> Example:
    return _choices(f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), int(row["label"]))


def _arc_easy(row: Mapping[str, Any]) -> Example:
    """Reads a row as in allenai/ai2_arc, in its first (`stem`) or later form, or with plain choices and `gold`."""
    question, choices = row["question"], row.get("choices")
    if isinstance(question, dict):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, dict):
        texts, labels = choices["text"], choices["label"]
    elif choices and isinstance(choices[0], dict):
        texts, labels = [choice["text"] for choice in choices], [choice["label"] for choice in choices]
    else:
        texts, labels = choices, list(range(len(choices or ())))
    gold = labels.index(row["gold"] if "gold" in row else row["answerKey"])
    return _choices(f"Question: {question}\nAnswer:", texts, gold)


def _winogrande(row: Mapping[str, Any]) -> Example:
    before, blank, after = row["sentence"].partition("_")
    if not blank or not all(row[option] for option in ("option1", "option2")):
        raise ValueError(f"expected a sentence with _ and two options to put there, got {row['sentence']!r}")
    contexts = [before + row[option] for option in ("option1", "option2")]
    return Example(
        continuations=tuple(Continuation(context, f" {after.strip()}") for context in contexts),
        choice_lengths=tuple(len(context) for context in contexts),
        gold=("1", "2").index(str(row["answer"])),
    )


def _lambada(row: Mapping[str, Any]) -> Example:
    context, _, word = row["text"].rpartition(" ")
    return Example((Continuation(context, f" {word}"),))


def _choices(context: str, choices: Sequence[object], gold: int) -> Example:
    texts = [choice for choice in choices if isinstance(choice, str) and choice]
    if len(texts) != len(choices):
        raise ValueError(f"expected choices with a text, got {list(choices)}")
    if not 0 <= gold < len(texts):
        raise ValueError(f"expected the number of one of {len(texts)} choices as the label, got {gold}")
    continuations = tuple(Continuation(context, f" {text}") for text in texts)
    return Example(continuations, tuple(len(text) for text in texts), gold)


TASKS: Final[Mapping[str, Callable[[Mapping[str, Any]], Example]]] = {
    PIQA: _piqa,
    ARC_EASY: _arc_easy,
    WINOGRANDE: _winogrande,
    LAMBADA: _lambada,
}
"""Makes an example from a row of the usual JSONL, by task."""


_CHECK: Final = "check that the file belongs to the task."


def read_task(task: str, path: Path, limit: int | None = None) -> list[Example]:
    """Reads a task's examples.

    Args:
        task: One of `TASKS`.
        path: A JSONL file. PIQA's labels may be beside it, as published: `valid.jsonl` and `valid-labels.lst`.
        limit: Number of examples from the start; None for all.

    Raises:
        UsageError: There is no such task or file, or a row does not belong to the task.
    """
    if task not in TASKS:
        raise UsageError(f"got {task}, expected one of: {', '.join(TASKS)}.", where="--task")
    if not path.is_file():
        raise UsageError("no such file.", where=str(path), fix=f"name the JSONL file of {task} with --data.")
    examples: list[Example] = []
    for number, row in _rows(path):
        if len(examples) == limit:
            break
        with reading(f"a row of {task}", f"{path}, line {number}", fix=_CHECK, error=UsageError):
            examples.append(TASKS[task](row))
    if not examples:
        raise UsageError("the file has no rows.", where=str(path), fix="name another with --data.")
    return examples


def score_task(task: str, examples: Sequence[Example], scores: Sequence[Score]) -> TaskScore:
    """Counts the right answers.

    Args:
        task: Its name.
        examples: The result of `read_task`.
        scores: Scores of all continuations, one after another.
    """
    remaining = iter(scores)
    correct, normalised = [], []
    for example in examples:
        found = [next(remaining) for _ in example.continuations]
        if example.gold is None:
            correct.append(found[0].greedy)
            continue
        likelihoods = [score.log_probability for score in found]
        by_length = [value / length for value, length in zip(likelihoods, example.choice_lengths, strict=True)]
        correct.append(likelihoods.index(max(likelihoods)) == example.gold)
        normalised.append(by_length.index(max(by_length)) == example.gold)
    perplexity = None
    if task == LAMBADA:
        perplexity = math.exp(-sum(score.log_probability for score in scores) / len(scores))
    # The choices of WinoGrande are contexts, whose length is unrelated to the scored text.
    kept = tuple(normalised) if normalised and task != WINOGRANDE else None
    return TaskScore(task, len(examples), tuple(correct), kept, perplexity)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    labels_path, labels = path.with_name(f"{path.stem}-labels.lst"), None
    if labels_path.is_file():
        with reading("labels", labels_path, fix=_CHECK, error=UsageError):
            labels = labels_path.read_text(encoding="utf-8").split()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            with reading("a JSON object with a label", f"{path}, line {number}", fix=_CHECK, error=UsageError):
                row = dict(parse_json(line))
                if labels is not None:
                    row.setdefault("label", labels[number - 1])
            yield number, row
