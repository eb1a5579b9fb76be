"""Every function and type that `import awq2trt` gives has an example, and every example runs, on a tiny model."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
from pictures import picture
from PIL import Image
from tiny_llava import save_llava
from tiny_models import save_llama

import awq2trt

MODEL = "smollm2-135m-instruct"
ERRORS = tuple(name for name in awq2trt.__all__ if name.endswith("Error"))
WITHOUT = {"__version__", "Message", *ERRORS}
"""Names that need no example: a version, a dictionary's type, and exceptions."""

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"

EXAMPLES = tuple(name for name in awq2trt.__all__ if name not in WITHOUT)
NEEDS_TENSORRT = {"build"}


def example_of(name: str) -> str:
    """The indented lines of a docstring before its first section."""
    text = inspect.getdoc(getattr(awq2trt, name)) or ""
    before = re.split(r"^(?:Args|Attributes|Returns|Raises):$", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in before.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines)).strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: models, a text, a task, photos, and in `out` a checkpoint and an ONNX model."""
    pytest.importorskip("polygraphy")
    folder = tmp_path_factory.mktemp("examples")
    save_llama(folder / MODEL, max_position_embeddings=2048)
    config = json.loads((folder / MODEL / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (folder / MODEL / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "novel.txt").write_text(
        "It was a bright cold day in April, and the clocks were striking thirteen. " * 200
    )
    row = {"goal": "To open a jar", "sol1": "twist the lid", "sol2": "eat the lid", "label": 0}
    (folder / "piqa-valid.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    save_llava(folder / "llava-1.5-7b-hf")
    (folder / "photos").mkdir()
    Image.fromarray(picture(24, 30)).save(folder / "photos" / "cat.png")
    (folder / "photos" / "cat.txt").write_text("A cat.")
    (folder / "recipe.yaml").write_text("quantize:\n  bits: 3\n")
    with contextlib.chdir(folder):
        options = awq2trt.QuantizeOptions(calib="novel.txt", samples=2, seqlen=64)
        awq2trt.quantize(MODEL, "out/checkpoint", options)
        awq2trt.export("out/checkpoint", "out/onnx", awq2trt.ExportOptions(max_seq_len=1024))
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = example_of(name)
    assert example, f"{name} has no example"
    if name in NEEDS_TENSORRT and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs TensorRT-RTX: pip install 'awq2trt[rtx]'")
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    if '"out/checkpoint", options' in example or '"out", target' in example:
        shutil.rmtree(tmp_path / "out")
    elif '"out/onnx", awq2trt.ExportOptions' in example:
        shutil.rmtree(tmp_path / "out" / "onnx")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example, {"awq2trt": awq2trt, "Path": Path})  # noqa: S102  # from our own docstrings
    assert printed.getvalue().strip() or not re.search(r"^print\(", example, re.MULTILINE)
