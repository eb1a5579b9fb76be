"""Lines that commands print, and the file of `eval --json`."""

from __future__ import annotations

import json
from pathlib import Path

from awq2trt.evaluation.perplexity import Perplexity
from awq2trt.evaluation.results import (
    CAPTION,
    CHOICE,
    CaptionedImages,
    CaptionPerplexity,
    CaptionScore,
    EvalRequest,
    EvalResult,
    TaskExamples,
    TextWindows,
)
from awq2trt.evaluation.tasks import TaskScore
from awq2trt.report.html import PerplexityBar, read_perplexities
from awq2trt.report.lines import eval_row, eval_title, results_json

ON_TEXT = EvalRequest(("models/a",), TextWindows("wiki.txt", 2, 512))
ON_TASK = EvalRequest(("models/a",), TaskExamples("piqa", Path("data/piqa.jsonl"), limit=4))
PERPLEXITY = EvalResult("models/a", "PyTorch", None, Perplexity(12.5, (2.5, 2.55), 2, 512), 3.0)
ON_CAPTIONS = EvalRequest(("models/a",), CaptionedImages(Path("photos"), limit=2))
CAPTIONS = EvalResult("models/a", "PyTorch", None, CaptionPerplexity(7.25, (1.9, 2.1), 31), 3.0)
SCORE = EvalResult("models/a", "ONNX Runtime", "int4-g128", TaskScore("piqa", 4, (True, True, False, True)), 3.0)


def _columns(line: str) -> list[str]:
    return line.split()


def test_perplexities_have_their_windows_beside_them() -> None:
    title, columns = eval_title(ON_TEXT).split("\n")
    assert title.startswith("Perplexity on the first 2 windows of 512 tokens of wiki.txt")
    assert _columns(columns) == ["perplexity", "windows", "seconds", "executor", "scheme", "model"]
    assert _columns(eval_row(PERPLEXITY)) == ["12.500", "2", "x", "512", "3.0", "PyTorch", "original", "models/a"]


def test_a_tasks_row_has_what_the_task_measures() -> None:
    title, columns = eval_title(ON_TASK).split("\n")
    assert title == "piqa, zero-shot, prompts and scoring of lm-evaluation-harness, piqa.jsonl."
    assert _columns(columns)[:3] == ["acc", "acc_norm", "perplexity"]
    assert _columns(eval_row(SCORE)) == ["75.00%", "4", "3.0", "ONNX", "Runtime", "int4-g128", "models/a"]


def test_captions_have_their_number_and_tokens_beside_them() -> None:
    title, columns = eval_title(ON_CAPTIONS).split("\n")
    assert title.startswith("Perplexity of captions given their images, the first 2 of photos")
    assert _columns(columns)[:4] == ["perplexity", "captions", "tokens", "seconds"]
    assert _columns(eval_row(CAPTIONS)) == ["7.250", "2", "31", "3.0", "PyTorch", "original", "models/a"]
    found = json.loads(results_json(ON_CAPTIONS, [CAPTIONS]))
    assert (found["request"]["images"], found["request"]["limit"]) == ("photos", 2)
    assert found["results"][0]["perplexity"] == {"value": 7.25, "caption_nll": [1.9, 2.1], "tokens": 31}


def test_a_task_on_images_has_its_score() -> None:
    asked = EvalRequest(("models/a",), CaptionedImages(Path("photos"), task=CAPTION))
    written = EvalResult("models/a", "PyTorch", None, CaptionScore(1.25, (1.0, 1.5), ("A dog.", "A cat.")), 3.0)
    title, columns = eval_title(asked).split("\n")
    assert title.startswith("CIDEr-D of captions, written greedily, on photos")
    assert _columns(columns)[:3] == ["CIDEr-D", "captions", "seconds"]
    assert _columns(eval_row(written)) == ["1.250", "2", "3.0", "PyTorch", "original", "models/a"]
    found = json.loads(results_json(asked, [written]))
    assert found["request"]["task"] == "caption"
    assert found["results"][0]["score"] == {"cider": 1.25, "scores": [1.0, 1.5], "captions": ["A dog.", "A cat."]}
    chosen = EvalRequest(("models/a",), CaptionedImages(Path("rows.jsonl"), limit=4, task=CHOICE))
    title, columns = eval_title(chosen).split("\n")
    assert title.startswith(
        "Accuracy in choosing the likeliest answer to questions on images, the first 4 of rows.jsonl"
    )
    assert _columns(columns)[:2] == ["acc", "acc_norm"]


def test_the_file_names_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(results_json(ON_TEXT, [PERPLEXITY]))
    assert read_perplexities(path) == [PerplexityBar("a, PyTorch", 12.5)]
    assert json.loads(path.read_text()) == {
        "request": {"models": ["models/a"], "device": "cpu", "text": "wiki.txt", "windows": 2, "seqlen": 512},
        "results": [
            {
                "model": "models/a",
                "executor": "PyTorch",
                "scheme": None,
                "perplexity": {"value": 12.5, "window_nll": [2.5, 2.55], "windows": 2, "seqlen": 512},
                "seconds": 3.0,
            }
        ],
    }
    found = json.loads(results_json(ON_TASK, [SCORE]))
    assert found["request"]["data"] == "data/piqa.jsonl"
    assert found["results"][0]["score"]["correct"] == [True, True, False, True]
