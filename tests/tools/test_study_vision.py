"""The study of models that see: lines and files of a tiny one, shots, calibration without and with pictures."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import study_vision
from study_vision import CALIBRATIONS, Asked, Setting
from tiny_llava import save_llava
from tiny_models import save_llama
from vlm_pictures import UNSEEN, drawings, write_pictures

from awq2trt.errors import UsageError
from awq2trt.images.pairs import MARKER, read_pairs


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = tmp_path_factory.mktemp("study")
    write_pictures(folder / "known", list(drawings(40, seed=1)), wording=1)
    write_pictures(folder / "tested", list(drawings(3, seed=2, pairs=UNSEEN)), wording=1)
    model = save_llava(folder / "model", text={"max_position_embeddings": 2048})
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    (folder / "out" / "rows").mkdir(parents=True)
    asked = Asked(str(model), folder / "known", folder / "tested", (0, 2), None, 2, "cpu", folder / "out")
    study_vision.write_calibration(asked, folder / "text.txt", 0)
    return asked


def test_lines() -> None:
    asked = Namespace(
        bits=[4, 3], groups=[128, 64], calibrations=list(CALIBRATIONS), draws=2, efforts=["default", "best"]
    )
    lines = list(study_vision.settings(asked))
    assert lines[0] == Setting()
    assert len(lines) == len(set(lines)) == 1 + 2 * 2 * (1 + 3 * 2 + 2 * 3 * 2)
    assert len({line.name for line in lines}) == len(lines)
    assert {line.calibration for line in lines if line.method == "awq"} == {"text", "words", "images"}
    assert {line.calibration for line in lines if line.method == "rtn"} == {None}
    assert {line.effort for line in lines if line.method == "awq"} == {"default", "best"}
    assert {line.effort for line in lines if line.method != "awq"} == {None}


def test_conversations_without_and_with_their_pictures(asked: Asked) -> None:
    pairs = read_pairs(asked.draw(0) / "images.jsonl")
    known = read_pairs(asked.known / "questions.jsonl")
    assert sorted(pair.text for pair in pairs) == sorted(pair.text for pair in known)
    assert [pair.text for pair in pairs] != [pair.text for pair in known]
    assert all(image.is_file() for pair in pairs for image in pair.images)
    words = (asked.draw(0) / "words.txt").read_text()
    assert MARKER not in words
    assert words == "\n".join(pair.text.replace(f"{MARKER}\n", "") for pair in pairs)


def test_shots_are_known_and_stand_before(asked: Asked) -> None:
    known, tested = (read_pairs(folder / "captions.jsonl") for folder in (asked.known, asked.tested))
    behind = study_vision.after_shots(asked, "captions.jsonl", 2)
    assert [pair.images for pair in behind] == [(*known[0].images, *known[1].images, *pair.images) for pair in tested]
    assert [pair.text for pair in behind] == ["\n".join((known[0].text, known[1].text, pair.text)) for pair in tested]
    assert study_vision.after_shots(asked, "captions.jsonl", 0) == list(tested)
    with pytest.raises(UsageError, match="expected 41 rows for shots, got 40"):
        study_vision.after_shots(asked, "captions.jsonl", 41)


def test_lines_are_measured_once_and_their_means_are_the_table(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    awq = [Setting("awq", 4, 32, "images", effort=effort) for effort in ("fast", "default")]
    lines = [Setting(), Setting("rtn", 3, 32), *awq]
    for line in lines:
        study_vision.measure(asked, line)
    rows = [json.loads(asked.row(line).read_text())["shots"] for line in lines]
    assert all(set(row) == {"0", "2"} for row in rows)
    assert len({row["2"]["perplexity"] for row in rows}) == len(rows)
    monkeypatch.setattr(study_vision, "ProcessPoolExecutor", _no_process)
    study_vision.measure_missing(asked, lines, jobs=1)
    other = replace(lines[2], draw=1)
    asked.row(other).write_text(json.dumps({"shots": {"0": _row(0.5, 2.0, 1.0), "2": _row(0.25, 1e6, 0.0)}}))
    table = study_vision.write_tables(asked, [*lines, other])
    assert (asked.output / "table.md").read_text() == table
    with (asked.output / "table.csv").open() as file:
        header, *cells = csv.reader(file)
    assert [line[:3] for line in cells] == [
        ["fp", "", ""],
        ["INT3 g32", "RTN", ""],
        ["INT4 g32", "AWQ fast", "conversations with images"],
        ["INT4 g32", "AWQ default", "conversations with images"],
    ]
    column, low = header.index("perplexity, 2 shots"), rows[2]["2"]["perplexity"]
    assert cells[2][column] == f"{(low + 1e6) / 2:.3f} ({low:.3f} to 1000000.000)"
    assert cells[3][column] == f"{rows[3]['2']['perplexity']:.3f}"
    assert len(table.splitlines()) == 2 + len(cells)


def test_other_shots_are_measured_anew(asked: Asked, tmp_path: Path) -> None:
    one = replace(asked, shots=(0,), limit=2, output=tmp_path)
    (tmp_path / "rows").mkdir()
    line = Setting()
    study_vision.measure(one, line)
    assert study_vision.read_row(one, line).keys() == {"0"}
    started: list[object] = []

    class _Counted(_NoProcess):
        def submit(self, _: object, __: object, setting: Setting) -> Future[str]:
            started.append(setting)
            future: Future[str] = Future()
            future.set_result("")
            return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_vision, "ProcessPoolExecutor", lambda *_, **__: _Counted())
        study_vision.measure_missing(one, [line], jobs=1)
        assert started == []
        study_vision.measure_missing(replace(one, shots=(0, 2)), [line], jobs=1)
        assert started == [line]


def test_what_cannot_be_measured_is_refused_first(asked: Asked, tmp_path: Path) -> None:
    study_vision.require_measurable(asked)
    with pytest.raises(UsageError, match="expected a checkpoint of a model that sees"):
        study_vision.require_measurable(replace(asked, model=str(save_llama(tmp_path / "text"))))
    with pytest.raises(UsageError, match="expected 50 rows for shots, got 40"):
        study_vision.require_measurable(replace(asked, shots=(0, 50)))
    (tmp_path / "captions.jsonl").write_text('{"image": "gone.png", "captions": ["A cat."]}')
    with pytest.raises(UsageError, match=r"gone\.png: no such image"):
        study_vision.require_measurable(replace(asked, tested=tmp_path))


def _row(cider: float, perplexity: float, accuracy: float) -> dict[str, float]:
    return {"cider": cider, "perplexity": perplexity, "accuracy": accuracy}


class _NoProcess:
    def __enter__(self) -> _NoProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _no_process(*_: object, **__: object) -> _NoProcess:
    return _NoProcess()
