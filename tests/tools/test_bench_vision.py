"""The benchmark of models that see, on tiny models and the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gemma3 import IMAGE_TOKEN as GEMMA_IMAGE
from tiny_gemma3 import PIECES
from tiny_gemma3 import TEXT as GEMMA_TEXT
from tiny_gemma3 import TOWER as GEMMA_TOWER
from tiny_qwen_vl import IMAGE_TOKEN, QWEN2_5_VL, QWEN3_VL, VISION_END, VISION_START

from awq2trt.evaluation.random_model import RandomModel
from awq2trt.models.vision.prepared import Grid
from awq2trt.progress import SilentProgress
from awq2trt.scheme import QuantScheme

TOOL = Path(__file__).parents[2] / "tools" / "bench_vision.py"
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "image_token_index": 250,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "image_token_id": IMAGE_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "text_config": {**QWEN2_5_VL.text, "model_type": "qwen2_5_vl_text", "max_position_embeddings": 1024},
    "vision_config": {**QWEN2_5_VL.tower, "model_type": "qwen2_5_vl"},
}
QWEN3: dict[str, Any] = {
    **QWEN,
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "text_config": {**QWEN3_VL.text, "model_type": "qwen3_vl_text", "max_position_embeddings": 1024},
    "vision_config": {**QWEN3_VL.tower, "model_type": "qwen3_vl_vision"},
}
LLAVA_NEXT: dict[str, Any] = {
    **LLAVA,
    "architectures": ["LlavaNextForConditionalGeneration"],
    "model_type": "llava_next",
    "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
}
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "image_token_index": GEMMA_IMAGE,
    "mm_tokens_per_image": PIECES,
    "text_config": {**GEMMA_TEXT, "model_type": "gemma3_text", "max_position_embeddings": 1024},
    "vision_config": {**GEMMA_TOWER, "model_type": "siglip_vision_model"},
}
SEEN: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"grid": Grid(1, 8, 6)},
    "qwen3_vl": {"grid": Grid(1, 8, 6)},
    "llava_next": {"grid": Grid(1, 2, 1), "size": (56, 28)},
}
"""What of an image they are shown, if not all images are of one size."""

PUBLISHED = {
    "llava-1.5-7b": (11008, 576),
    "llava-1.6-mistral-7b": (14336, 576 + 48 * 49),
    "qwen2.5-vl-3b": (11008, 576),
    "qwen3-vl-4b": (9728, 576),
    "gemma-3-4b": (10240, 256),
}
"""Channels within the MLPs of published decoders, and the pieces in which they see the image that is measured."""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("bench_vision", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config", [LLAVA, LLAVA_NEXT, QWEN, QWEN3, GEMMA], ids=lambda config: config["model_type"])
def test_both_executors_are_measured(tool: Any, config: dict[str, Any]) -> None:
    shape = tool.Shape(config, **SEEN.get(config["model_type"], {}))

    rows = list(tool.measure(shape, "cpu", 3, against_hf=True, progress=SilentProgress()))

    assert [row.executor for row in rows] == ["awq2trt, ONNX Runtime, CPU", "Hugging Face, fp32"]
    for row in rows:
        assert row.failed is None
        assert min(row.tower_ms, row.first_token_ms, row.text_first_token_ms) > 0
    assert rows[0].token_ms > 0


def test_published_sizes_have_as_many_pieces(tool: Any) -> None:
    for name, shape in tool.SHAPES.items():
        model = RandomModel(dict(shape.config), QuantScheme())
        prompt = tool.make_prompt(model.vision, shape.grid, shape.size)
        width, pieces = PUBLISHED[name]
        assert prompt.image.pieces == prompt.tokens.count(prompt.image_token) == pieces
        assert len(prompt.tokens) + 256 <= shape.capacity
        assert model.spec.linear_shape("mlp.up_proj") == (width, model.spec.hidden_size)


def test_prompt_has_the_image_where_the_model_wants_it(tool: Any) -> None:
    prompt = tool.make_prompt(RandomModel(QWEN, QuantScheme()).vision, Grid(1, 8, 6))

    assert prompt.tokens[:14] == (1, VISION_START, *[IMAGE_TOKEN] * 12)
    assert prompt.tokens[14:] == (VISION_END, *range(2, 42))
    assert prompt.pixels.values.shape == (48, 96)
    assert np.std(prompt.pixels.values) > 0.9


def test_files_have_the_rows(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "SHAPES", {"tiny": tool.Shape(LLAVA)})
    files = {"--json": tmp_path / "a.json", "--markdown": tmp_path / "a.md"}
    flags = [str(part) for pair in files.items() for part in pair]
    monkeypatch.setattr(sys, "argv", ["bench", "tiny", "--target", "cpu", "--tokens", "2", "--layers", "1", *flags])
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--no-hf"])

    tool.main()

    (row,) = json.loads(files["--json"].read_text())["results"]["tiny"]
    assert row["token_ms"] > 0
    assert f"| tiny | {row['executor']} | {row['tower_ms']:.1f} |" in files["--markdown"].read_text()
