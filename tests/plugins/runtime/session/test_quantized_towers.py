"""Models whose towers are quantized, too, in sessions of the C++ library: Python's prompts and answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import assert_same, require_runtime_library
from pictures import picture
from seen_answers import build_for_cpu
from tiny_llava import publish_llava
from tiny_qwen_vl import QWEN2_5_VL, publish_qwen_vl
from tiny_smolvlm import publish_smolvlm

from awq2trt.graph.read import load_model
from awq2trt.io_contract import VISION_FILE
from awq2trt.runtime import Model, user_message
from awq2trt.runtime.native import NativeModel

MODELS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "one size": (publish_llava, 160),
    "any size": (lambda directory: publish_qwen_vl(directory, QWEN2_5_VL), 320),
    "tiles": (lambda directory: publish_smolvlm(directory, "smolvlm"), 520),
}
"""Models, each with its capacity."""

PICTURES = [np.roll(picture(*shape), 5 * index, axis=1) for index, shape in enumerate([(60, 80), (31, 200), (24, 24)])]


@pytest.fixture(scope="module", params=MODELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    folder, (publish, capacity) = tmp_path_factory.mktemp("towers"), MODELS[request.param]
    publish(folder / "model")
    build_for_cpu(folder, capacity, quantize_vision=True)
    kinds = [node.op_type for node in load_model(folder / "built" / "cpu" / VISION_FILE).graph]
    assert kinds.count("MatMulNBits") > 6
    return folder


@pytest.mark.parametrize("images", [[0], [1], [2, 0, 1]], ids=str)
def test_prompts_and_answers_are_those_of_the_python_runtime(
    images: list[int], native: NativeModel, python: Model, tmp_path: Path
) -> None:
    assert_same(native, python, [user_message("What is it?")], [PICTURES[image] for image in images], tmp_path)


def test_golden_outputs_include_an_image(native: NativeModel) -> None:
    worst, allowed = native.check()
    assert 0.0 < worst <= allowed
