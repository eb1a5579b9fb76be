"""Tasks: rows of published files go in; prompts and counts as in lm-evaluation-harness come out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from awq2trt.errors import UsageError
from awq2trt.evaluation.tasks import Continuation, Example, Score, read_task, score_task


def _file(directory: Path, *rows: Any) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_piqa_asks_a_question(tmp_path: Path) -> None:
    path = _file(tmp_path, {"goal": "dry a shirt", "sol1": "iron it", "sol2": "eat", "label": 1})
    (example,) = read_task("piqa", path)
    assert example.continuations == (
        Continuation("Question: dry a shirt\nAnswer:", " iron it"),
        Continuation("Question: dry a shirt\nAnswer:", " eat"),
    )
    assert (example.choice_lengths, example.gold) == ((7, 3), 1)


def test_piqa_labels_lie_beside_its_rows(tmp_path: Path) -> None:
    path = _file(tmp_path, *[{"goal": "g", "sol1": "a", "sol2": "b"}] * 3)
    (tmp_path / "rows-labels.lst").write_text("0\n1\n1\n")
    assert [example.gold for example in read_task("piqa", path)] == [0, 1, 1]
    assert len(read_task("piqa", path, limit=2)) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["x", "yy", "z"], "gold": 1},
        {"question": "q", "choices": {"text": ["x", "yy", "z"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        {"question": "q", "choices": {"text": ["x", "yy", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {
            "question": {
                "stem": "q",
                "choices": [{"text": t, "label": n} for t, n in (("x", "A"), ("yy", "B"), ("z", "C"))],
            },
            "answerKey": "B",
        },
    ],
)
def test_arc_in_every_form_it_is_published_in(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read_task("arc-easy", _file(tmp_path, row))
    context = "Question: q\nAnswer:"
    assert example.continuations == tuple(Continuation(context, text) for text in (" x", " yy", " z"))
    assert (example.choice_lengths, example.gold) == ((1, 2, 1), 1)


def test_winogrande_scores_what_follows_the_choice(tmp_path: Path) -> None:
    row = {"sentence": "Ann paid Bo because _ was owed.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    (example,) = read_task("winogrande", _file(tmp_path, row))
    assert example.continuations == (
        Continuation("Ann paid Bo because Ann", " was owed."),
        Continuation("Ann paid Bo because Bo", " was owed."),
    )
    assert example.gold == 1


def test_lambada_scores_the_last_word(tmp_path: Path) -> None:
    (example,) = read_task("lambada", _file(tmp_path, {"text": "He gave her\nthe ring"}))
    assert example == Example((Continuation("He gave her\nthe", " ring"),))


def test_choices_are_counted_by_likelihood_and_by_character() -> None:
    examples = [Example((Continuation("c", " aaaaaaaaaa"), Continuation("c", " b")), (10, 1), 0)] * 2
    scores = [Score(-5.0, False), Score(-4.0, True), Score(-3.0, False), Score(-4.0, False)]
    result = score_task("piqa", examples, scores)
    assert result.correct == (False, True)
    assert result.correct_normalised == (True, True)  # -0.5 a character against -4
    assert (result.accuracy, result.accuracy_normalised, result.perplexity) == (0.5, 1.0, None)


def test_equal_choices_go_to_the_first() -> None:
    examples = [Example((Continuation("c", " a"), Continuation("c", " b")), (1, 1), 1)]
    assert score_task("piqa", examples, [Score(-1.0, False)] * 2).correct == (False,)


def test_lambada_counts_greedy_words_and_has_a_perplexity() -> None:
    examples = [Example((Continuation("c", " a"),))] * 2
    result = score_task("lambada", examples, [Score(-1.0, True), Score(-3.0, False)])
    assert result.correct == (True, False)
    assert result.perplexity == pytest.approx(math.exp(2.0))
    assert result.accuracy_normalised is None


def test_winogrande_has_no_length_to_normalise_by() -> None:
    examples = [Example((Continuation("a", " x"), Continuation("b", " x")), (1, 1), 0)]
    assert score_task("winogrande", examples, [Score(-1.0, False), Score(-2.0, False)]).accuracy_normalised is None


@pytest.mark.parametrize("task", ["piqa", "arc-easy", "winogrande", "lambada"])
@pytest.mark.parametrize("row", [{"other": 1}, {"goal": "g", "sol1": "a", "sol2": "b", "label": "x"}, []])
def test_another_tasks_rows_are_refused_by_line(tmp_path: Path, task: str, row: Any) -> None:
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 1"):
        read_task(task, _file(tmp_path, row))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sol1": ""}, r"expected choices with a text, got \['', 'b'\]"),
        ({"sol2": None}, r"expected choices with a text, got \['a', None\]"),
        ({"label": 2}, "expected the number of one of 2 choices as the label, got 2"),
        ({"label": -1}, "of 2 choices as the label, got -1"),
        ({"goal": "\ud800"}, "has bytes that are not UTF-8"),
    ],
)
def test_choices_that_could_not_be_scored_are_refused_by_line(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    row = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0, **change}
    with pytest.raises(UsageError, match=says):
        read_task("piqa", _file(tmp_path, row))


@pytest.mark.parametrize("change", [{"sentence": "No blank."}, {"sentence": "The _ is cold.", "option1": ""}])
def test_a_sentence_without_a_blank_or_an_option_is_refused_by_line(tmp_path: Path, change: dict[str, str]) -> None:
    row = {"sentence": "The _ is cold.", "option1": "ice", "option2": "fire", "answer": "1", **change}
    with pytest.raises(UsageError, match=r"rows\.jsonl, line 1.*expected a sentence with _ and two options"):
        read_task("winogrande", _file(tmp_path, row))


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one of: piqa"):
        read_task("hellaswag", _file(tmp_path, {}))
    with pytest.raises(UsageError, match="no such file"):
        read_task("piqa", tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no rows"):
        read_task("piqa", tmp_path / "empty.jsonl")
