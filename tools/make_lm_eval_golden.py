"""Writes tests/data/lm_eval_smollm2.json: lm-evaluation-harness's scores of SmolLM2-135M-Instruct for each example.

    pip install lm-eval && python tools/make_lm_eval_golden.py --data ../shared/data/zeroshot [--task NAME ...]

lm-eval runs transformers' own model here, so the file is an oracle that shares no code with us. Tasks are lm-eval's own
definitions, read from local files: the 200 examples of each with the fewest characters, which run in a minute or two.
The file refers to the texts by row and does not contain them. Tasks that are not named keep their entries in the file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Final

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, LlamaConfig

from awq2trt.models.sources.opening import open_source
from awq2trt.text.tokenizer import tokenizer_of

MODEL: Final = "smollm2-135m-instruct"
EXAMPLES: Final = 200
OUTPUT: Final = Path(__file__).parent.parent / "tests" / "data" / "lm_eval_smollm2.json"
TASKS: Final = {
    "piqa": ("piqa/piqa.yaml", "piqa_valid.jsonl"),
    "arc-easy": ("arc/arc_easy.yaml", "arc_easy_test.jsonl"),
    "winogrande": ("winogrande/default.yaml", "winogrande_xl_dev.jsonl"),
    "lambada": ("lambada/lambada_openai.yaml", "lambada_test.jsonl"),
}
"""lm-eval's definition of each of our tasks, and the file with its examples."""


def main() -> None:
    """Runs lm-eval and writes the file."""
    parser = argparse.ArgumentParser(description="Golden answers of lm-evaluation-harness.")
    parser.add_argument("--data", type=Path, required=True, help="folder with piqa_valid.jsonl and the others")
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    arguments = parser.parse_args()
    model = HFLM(pretrained=transformers_model(), tokenizer=tokenizer_of(open_source(MODEL)), batch_size=1)
    golden = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.is_file() else {}
    for task in arguments.task:
        definition, file = TASKS[task]
        golden[task] = golden_task(model, task, definition, arguments.data / file)
    OUTPUT.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


def transformers_model() -> torch.nn.Module:
    """The model in transformers' class, in fp32."""
    source = open_source(MODEL)
    spec = source.spec
    blocks = [spec.prefix(layer) + name for layer in range(spec.num_layers) for name in spec.block_shapes()]
    model = AutoModelForCausalLM.from_config(LlamaConfig(**source.config))
    state = {name: torch.from_numpy(source.tensor(name).astype("float32")) for name in (*spec.outer_shapes(), *blocks)}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"not loaded: {missing}")
    model.tie_weights()
    evaluated: torch.nn.Module = model.float().eval()
    return evaluated


def golden_task(model: HFLM, name: str, definition: str, path: Path) -> dict[str, Any]:
    """Makes lm-eval's own task with rows of a local file."""
    rows = shortest_rows(path)
    with tempfile.TemporaryDirectory() as directory:
        local = Path(directory) / "rows.jsonl"
        local.write_text("".join(json.dumps(published_form(row)) + "\n" for _, row in rows), encoding="utf-8")
        config = {
            **load_yaml(Path(lm_eval.__file__).parent / "tasks" / definition),
            "task": f"{name}_local",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(local)}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        }
        results = lm_eval.simple_evaluate(model=model, tasks=[config], log_samples=True, bootstrap_iters=0)
    samples = sorted(results["samples"][f"{name}_local"], key=lambda sample: sample["doc_id"])
    kept = [
        {
            "row": row,
            "log_probabilities": [float(answer[0][0]) for answer in sample["resps"]],
            **{metric: bool(sample[metric]) for metric in ("acc", "acc_norm") if metric in sample},
        }
        for (row, _), sample in zip(rows, samples, strict=True)
    ]
    metrics = {key: value for key, value in results["results"][f"{name}_local"].items() if key.endswith(",none")}
    return {"metrics": {key.removesuffix(",none"): value for key, value in metrics.items()}, "examples": kept}


def published_form(row: dict[str, Any]) -> dict[str, Any]:
    """Converts ARC's rows to the form of allenai/ai2_arc, which lm-eval reads; others stay as they are."""
    if not isinstance(row.get("choices"), list):
        return row
    labels = [chr(ord("A") + index) for index in range(len(row["choices"]))]
    choices = {"text": row["choices"], "label": labels}
    return {"question": row["question"], "choices": choices, "answerKey": labels[row["gold"]]}


def shortest_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Rows with the fewest characters, with their numbers from 0, in the order of the file."""
    labels = path.with_name(f"{path.stem}-labels.lst")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if labels.is_file():
        for row, label in zip(rows, labels.read_text(encoding="utf-8").split(), strict=True):
            row["label"] = int(label)
    shortest = sorted(range(len(rows)), key=lambda index: len(json.dumps(rows[index])))[:EXAMPLES]
    return [(index, rows[index]) for index in sorted(shortest)]


if __name__ == "__main__":
    main()
