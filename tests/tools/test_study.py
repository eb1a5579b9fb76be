"""The study: its walk gives the same results as the product's own stages, and its tables show what was measured."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import study
import torch
from study_claims import Claim, all_claims
from study_report import Results, markdown_claims, plot, write_csv, write_markdown
from study_tables import ORIGINAL, WHOLE_SPLIT, Cell, Table, all_tables, as_in_paper, options
from study_walk import (
    Calibration,
    Keep,
    Measured,
    Setting,
    Steps,
    keep_channels,
    multiply_channels,
    salient_channels,
    walk,
)
from tiny_models import save_llama, tokens

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import UsageError
from awq2trt.evaluation.perplexity import perplexity, torch_logits
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.scheme import QuantScheme
from awq2trt.text.tokenizer import load_tokenizer
from awq2trt.text.windows import text_windows

PROGRESS = SilentProgress()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


def _perplexity(source: ModelSource, windows: torch.Tensor) -> float:
    return perplexity(windows, torch_logits(source, windows, PROGRESS, ""), PROGRESS, "").value


def _setting(method: str, **changes: Any) -> Setting:
    text = None if method == "rtn" else Calibration("wikitext2", 4, 64)
    return Setting(options(method, 4, 32, **changes), text, windows=3, seqlen=48)


def _effort(name: str) -> dict[str, Any]:
    effort, _, tune = name.partition("+")
    return {"effort": effort, "tune": bool(tune)}


def test_the_walk_measures_what_a_checkpoint_gives(model: Path, tmp_path: Path) -> None:
    source, windows = SafetensorsSource.open(model), tokens(3, 48, seed=1)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    methods = (
        ("rtn", "default"),
        ("awq", "default"),
        ("awq", "best"),
        ("awq", "max"),
        ("awq", "default+tune"),
        ("gptq", "default"),
        ("awq+gptq", "default"),
    )
    expected, calibration = [], torch.empty(0)
    for method, effort in methods:
        files, scratch = tmp_path / method / effort / "files", tmp_path / method / effort / "scratch"
        files.mkdir(parents=True)
        scratch.mkdir()
        text = {"calib": str(tmp_path / "text.txt"), "samples": 4, "seqlen": 64}
        chosen = options(method, 4, 32, **_effort(effort), **text)
        result = QuantizeJob.prepare(source, chosen, files=files, scratch=scratch, progress=PROGRESS).run()
        calibration = calibration if result.tokens is None else result.tokens
        expected.append(_perplexity(QuantizedCheckpoint.open(files), windows))
    settings = [
        replace(ORIGINAL, windows=3, seqlen=48),
        *(_setting(method, **_effort(effort)) for method, effort in methods),
    ]
    measured = walk(source, settings, calibration, {"wikitext2": windows}, PROGRESS)
    got = [result.perplexity["wikitext2"] for result in measured]
    # The checkpoint's norms and embedding are fp16, and codes chosen one after another change at ties.
    assert got == pytest.approx([_perplexity(source, windows), *expected], rel=5e-3)
    assert len({round(value, 3) for value in got}) == 8
    assert all(result.evaluate_seconds > 0 for result in measured)


def test_only_the_linears_that_are_named_are_quantized(model: Path) -> None:
    source, windows = SafetensorsSource.open(model), tokens(2, 32, seed=1)
    base = Setting(options("rtn", 2, 32), windows=2, seqlen=32)
    everything = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    settings = [
        base,
        replace(base, only=everything),
        replace(base, only=("none_such",)),
        replace(base, only=("v_proj",)),
    ]
    got = [m.perplexity["wikitext2"] for m in walk(source, settings, None, {"wikitext2": windows}, PROGRESS)]
    assert got[0] == got[1]
    assert got[2] == pytest.approx(_perplexity(source, windows), rel=1e-6)
    assert got[3] not in (got[0], got[2])


def test_channels_are_chosen_by_activation_weight_or_at_random() -> None:
    weight, magnitude = torch.ones(4, 200), torch.ones(200)
    weight[:, 7], weight[2, 9], magnitude[[3, 150]] = 3.0, 5.0, torch.tensor([9.0, 8.0])
    assert salient_channels(weight, magnitude, Keep("activation", 0.01), 0).tolist() == [3, 150]
    assert salient_channels(weight, magnitude, Keep("weight", 0.01), 0).tolist() == [7, 9]
    assert len(salient_channels(weight, None, Keep("random", 0.03), 0).unique()) == 6
    assert len(salient_channels(weight, magnitude, Keep("activation", 0.001), 0)) == 1
    first, second = (salient_channels(weight, None, Keep("random", 0.1), seed).tolist() for seed in (0, 1))
    assert first != second
    with pytest.raises(ValueError, match="no statistics"):
        salient_channels(weight, None, Keep("activation", 0.01), 0)


def test_kept_channels_are_fp16_and_the_rest_is_rounded() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    kept = keep_channels(weight, QuantScheme(bits=3, group_size=32), torch.tensor([5, 40]))
    assert torch.equal(kept[:, [5, 40]], weight[:, [5, 40]].half().float())
    rest = [k for k in range(64) if k not in (5, 40)]
    assert len(kept[0, rest[:31]].unique()) <= 8
    assert not torch.equal(kept[:, rest], weight[:, rest])


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_multiplied_channels_are_rounded_on_a_finer_grid(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, salient = torch.randn(3, 64, generator=generator), torch.tensor([5, 40])
    steps = Steps()
    got = multiply_channels(weight, QuantScheme(bits=3, group_size=32), salient, scale, steps).numpy()
    changed, ratios = [], []
    for row in range(3):
        for group in range(2):
            own = weight[row, 32 * group : 32 * group + 32].double().numpy()
            s = np.where(np.isin(np.arange(32 * group, 32 * group + 32), salient.numpy()), scale, 1.0)
            before = float(np.float16((max(own.max(), 0) - min(own.min(), 0)) / 7))
            after = float(np.float16((max((own * s).max(), 0) - min((own * s).min(), 0)) / 7))
            zero = np.round(-min((own * s).min(), 0) / after)
            expected = (np.clip(np.round(own * s / after) + zero, 0, 7) - zero) * after / s
            np.testing.assert_allclose(got[row, 32 * group : 32 * group + 32], expected, rtol=1e-5, atol=1e-6)
            changed.append(before != after)
            ratios.append(after / before)
    assert steps.changed_share == pytest.approx(np.mean(changed))
    assert steps.mean_ratio == pytest.approx(np.mean(ratios))


def test_tables_name_every_setting_differently() -> None:
    settings = {setting for table in all_tables(full=True) for setting in table.settings()}
    assert settings > {setting for table in all_tables(full=False) for setting in table.settings()}
    assert len({setting.name() for setting in settings}) == len(settings) > 100
    for setting in settings:
        uses_text = setting.options is not None and setting.options.method != "rtn"
        assert not uses_text or setting.calibration is not None, setting


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "wikitext2").mkdir(parents=True)
    (directory / "pubmed").mkdir()
    (directory / "c4").mkdir()
    pages = list(topics.values())
    (directory / "wikitext2" / "wiki.valid.raw").write_text("".join(pages[:5])[:20_000])
    (directory / "wikitext2" / "wiki.test.raw").write_text("".join(pages[5:10])[:10_000])
    lines = [json.dumps({"text": page[:2000]}) for page in pages[10:20]]
    (directory / "pubmed" / "pubmedqa_pqal_abstracts.jsonl").write_text("\n".join(lines))
    (directory / "c4" / "c4_en_first1000.jsonl").write_text("\n".join(lines[:5]))
    return directory


def test_the_first_draw_is_the_products_and_draws_differ(model: Path, data: Path, tmp_path: Path) -> None:
    texts = study.Texts.open(SafetensorsSource.open(model), data, tmp_path)
    drawn = [texts.calibration(Calibration(samples=6, seqlen=100, draw=draw)) for draw in range(3)]
    text = (data / "wikitext2" / "wiki.valid.raw").read_text()
    assert torch.equal(drawn[0], text_windows(load_tokenizer(model), text, 6, 100, where="text"))
    assert len({tuple(window) for windows in drawn for window in windows.tolist()}) == 18
    calibration, test = texts.calibration(Calibration("pubmed", 2, 50)), texts.test("pubmed", 2, 50)
    assert not torch.equal(calibration, test)


def test_every_text_of_the_tables_can_be_calibrated_on(model: Path, data: Path, tmp_path: Path) -> None:
    texts = study.Texts.open(SafetensorsSource.open(model), data, tmp_path)
    measured = {setting.calibration for table in all_tables(full=True) for setting in table.settings()}
    names = {calibration.text for calibration in measured if calibration is not None}
    assert names == {"wikitext2", "pubmed", "c4", "self"}
    for name in names:
        first, second = (texts.calibration(Calibration(name, 2, 50, draw)) for draw in (0, 1))
        assert first.shape == second.shape == (2, 50)
        assert not torch.equal(first, second)


def test_the_papers_protocol_is_the_whole_split_in_its_windows(model: Path, data: Path, tmp_path: Path) -> None:
    tables = [as_in_paper(table) for table in all_tables(full=True)]
    settings = {setting for table in tables for setting in table.settings()}
    assert {(setting.windows, setting.seqlen) for setting in settings} == {(WHOLE_SPLIT, 2048)}
    texts = {setting.calibration for setting in settings if setting.calibration}
    assert {(text.text, text.draw) for text in texts} == {("pile", 0)}
    assert {text.samples for text in texts} == {32, 64, 128, 256, 512}
    (data / "pile").mkdir(exist_ok=True)
    (data / "pile" / "val.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{n} bottles of beer. " * 9}) for n in range(99))
    )
    study_texts = study.Texts.open(SafetensorsSource.open(model), data, tmp_path)
    assert study_texts.calibration(Calibration("pile", 4, 100)).shape == (4, 100)
    whole, some = study_texts.test("wikitext2", WHOLE_SPLIT, 20), study_texts.test("wikitext2", 2, 20)
    assert len(whole) > 2
    assert torch.equal(whole[:2], some)


def test_a_figure_is_measured_once(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = ("wikitext2", "pubmed")
    original = replace(ORIGINAL, tests=tests, windows=2, seqlen=64)
    kept = Setting(options("rtn", 3, 32), Calibration(samples=2, seqlen=64), Keep("activation", 0.1), (), tests, 2, 64)
    line = (("a", "b"), (Cell((original,)), Cell((kept,), test="pubmed")))
    table = Table("tiny", "A tiny table", ("x", "y", "first", "second"), (line,), "nothing")
    rows = tmp_path / "out" / "rows"
    rows.mkdir(parents=True)
    study.measure_missing(str(model), [table], data, rows, 1)
    study.report(str(model), [table], rows, rows.parent)
    found = study.read_row(rows, kept)
    assert found is not None
    assert set(found.perplexity) == set(tests)
    with (rows.parent / "tiny.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [entry["column"] for entry in written] == ["first", "second"]
    assert float(written[1]["value"]) == found.perplexity["pubmed"]
    assert not (rows.parent / "tiny.png").exists()  # a model of random weights is worse than a guess
    monkeypatch.setattr(study, "walk", None)  # nothing is left to walk for
    study.measure_missing(str(model), [table], data, rows, 1)


def test_tables_show_means_and_what_is_worse_than_a_guess(tmp_path: Path) -> None:
    def drawn(bits: int) -> tuple[Setting, ...]:
        return tuple(Setting(options("awq", bits), Calibration(draw=draw)) for draw in range(3))

    cells = tuple(Cell(drawn(bits)) for bits in (4, 3, 2))
    table = Table("t", "T", ("method", "INT4", "INT3", "INT2"), ((("AWQ",), cells),), "as here", curve=False)
    values = {4: (30.0, 31.0, 32.0), 2: (1e5, 2e5, 3e5)}
    rows = {
        setting: Measured({"wikitext2": value})
        for bits, three in values.items()
        for setting, value in zip(drawn(bits), three, strict=True)
    }
    results = Results(rows, vocab_size=49_152)
    write_markdown(tmp_path / "t.md", "m", [table], results)
    text = (tmp_path / "t.md").read_text()
    assert "| AWQ | 31.00 (30.00 to 32.00, 3 draws) | not measured | worse than a guess |" in text
    assert "python tools/study.py --tables t --model m" in text
    assert "49,152" in text
    write_csv(tmp_path / "t.csv", table, results)
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 6
    plot(tmp_path / "t.png", table, results)
    assert (tmp_path / "t.png").stat().st_size > 1000


def test_claims_are_compared_by_their_means(tmp_path: Path) -> None:
    def cell(bits: int, *, draws: int = 1) -> Cell:
        return Cell(tuple(Setting(options("awq", bits), Calibration(draw=draw)) for draw in range(draws)))

    values = {4: (30.0, 32.0), 3: (40.0,), 2: (1e6,)}
    rows = {
        setting: Measured({"wikitext2": value}, device="a machine")
        for bits, drawn in values.items()
        for setting, value in zip(cell(bits, draws=len(drawn)).settings, drawn, strict=True)
    }
    low, high, destroyed = cell(4, draws=2), cell(3), cell(2)
    unknown = Cell((Setting(options("gptq", 4), Calibration()),))
    claims = (
        Claim("T", "first", low, high),
        Claim("T", "second", high, low, why="of this"),
        Claim("T", "third", low, unknown),
        Claim("T", "fourth", high, high, better_base=low, worse_base=high),
        Claim("T", "fifth", destroyed, destroyed),
    )
    lines = list(markdown_claims(claims, Results(rows, vocab_size=49_152)))[4:]
    assert lines == [
        "| T | first | 31.00 < 40.00 | holds |",
        "| T | second | 40.00 < 31.00 | **differs**: of this |",
        "| T | fourth | 9.00 < 0.00 | **differs** |",
        "| T | fifth | 1,000,000 < 1,000,000 | means nothing |",
    ]


def test_claims_are_about_figures_of_the_full_study() -> None:
    measured = {setting for table in all_tables(full=True) for setting in table.settings()}
    for claim in all_claims():
        for cell in (claim.better, claim.worse, claim.better_base, claim.worse_base):
            assert cell is None or set(cell.settings) <= measured, claim


def test_settings_of_one_calibration_walk_together() -> None:
    settings = [Setting(options("awq", bits), Calibration(draw=draw)) for bits in (4, 3, 2) for draw in (0, 1)]
    batches = list(study.in_batches(settings, lanes=2))
    assert [len(batch) for batch in batches] == [2, 1, 2, 1]
    assert all(len({setting.calibration for setting in batch}) == 1 for batch in batches)


def test_without_a_gpu_cuda_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "rows").mkdir()
    table = all_tables(full=False)[0]
    with pytest.raises(UsageError, match="finds no GPU"):
        study.measure_missing("model", [table], data, tmp_path / "rows", 1, "cuda")


def test_a_missing_text_is_named_before_anything_is_measured(data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (data / "c4" / "c4_en_first1000.jsonl").unlink()
    (data / "pubmed" / "pubmedqa_pqal_abstracts.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"no .*c4_en_first1000\.jsonl, no .*pubmedqa.*AWQ2TRT_DATA"):
        study.measure_missing("model", all_tables(full=True), data, tmp_path / "rows", 1)
