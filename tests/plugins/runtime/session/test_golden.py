"""Golden outputs of a model in the C++ library: those that agree, those that do not, and invalid files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_sessions import require_runtime_library
from tiny_lowered import CAPACITY, build_lowered, edit_manifest, replace_file
from tiny_models import VOCAB_SIZE

from awq2trt.errors import Awq2trtError, ToolError
from awq2trt.runtime import native_library
from awq2trt.runtime.native import NativeModel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    return build_lowered(tmp_path_factory.mktemp("built"), "cpu")


@pytest.fixture
def spoilt(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "cpu", tmp_path / "cpu"))


def code_of(load: Callable[[], object]) -> int:
    with pytest.raises(Awq2trtError) as caught:
        load()
    return int(vars(caught.value)["code"])


def test_golden_outputs_are_those_of_the_exported_model(spoilt: Path) -> None:
    worst, allowed = NativeModel.load(spoilt).check()
    assert 0.0 <= worst <= allowed < 0.1


def test_golden_outputs_that_do_not_come_out(spoilt: Path) -> None:
    name = "golden.prefill.logits.bin"
    scores = np.fromfile(spoilt / name, np.float32)
    replace_file(spoilt, name, (-scores).tobytes())
    model = NativeModel.load(spoilt)
    with pytest.raises(
        ToolError, match=r"call prefill: relative error of the scores 2\.\d+, allowed are 0\.0"
    ) as caught:
        model.check()
    assert vars(caught.value)["code"] == native_library.WRONG_ANSWERS
    scores[7] = np.nan
    replace_file(spoilt, name, scores.tobytes())
    assert code_of(model.check) == native_library.WRONG_ANSWERS
    replace_file(spoilt, name, b"short")
    assert code_of(model.check) == native_library.MALFORMED


def test_golden_outputs_are_checked_at_the_first_run_on_a_gpu(spoilt: Path) -> None:
    """The CPU takes the place of the GPU: the manifest says `cuda`, and its provider is the CPU's."""
    edit_manifest(spoilt, lambda value: value["contents"]["lowered"].update(target="cuda"))
    model = NativeModel.load(spoilt, golden=False)
    assert model.check_first_run()
    assert not model.check_first_run()
    edit_manifest(spoilt, lambda value: value.update(fingerprint="f" * 64))
    replace_file(spoilt, "golden.prefill.logits.bin", np.zeros(VOCAB_SIZE, np.float32).tobytes())
    with pytest.raises(ToolError, match="relative error of the scores"):
        NativeModel.load(spoilt)
    assert NativeModel.load(spoilt, golden=False).capacity == CAPACITY


@pytest.mark.parametrize(
    "change",
    [
        {"calls": []},
        {"calls": None},
        {"format_version": 9},
        {"relative_tolerance": "much"},
        {"calls": [{"name": "a", "cache_position": 0, "tokens": [VOCAB_SIZE], "files": {"logits": "x"}}]},
        {"calls": [{"name": "a", "cache_position": 0, "tokens": [], "files": {"logits": "x"}}]},
        {"calls": [{"name": "a", "cache_position": 0, "tokens": [1] * (CAPACITY + 1), "files": {"logits": "x"}}]},
        {"calls": [{"name": "a", "cache_position": 0, "tokens": [1], "files": {"logits": "../x"}}]},
    ],
)
def test_golden_descriptions_that_are_none(spoilt: Path, change: dict[str, Any]) -> None:
    description = json.loads((spoilt / "golden.json").read_text())
    replace_file(spoilt, "golden.json", json.dumps({**description, **change}).encode())
    assert code_of(NativeModel.load(spoilt).check) == native_library.MALFORMED


def test_a_model_without_golden_outputs(spoilt: Path) -> None:
    (spoilt / "golden.json").unlink()
    edit_manifest(spoilt, lambda value: value["files"].pop("golden.json"))
    assert code_of(NativeModel.load(spoilt).check) == native_library.NOT_FOUND
