"""Engines of a model that sees through TensorRT's functions, on stand-ins for TensorRT and for the CUDA driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from native_sessions import require_runtime_library
from native_text import BUILD
from tiny_engines import as_engines
from tiny_exports import export_saved
from tiny_lowered import edit_manifest
from tiny_qwen_vl import publish_qwen_vl

from awq2trt.machine.runtime_library import TENSORRT_VARIABLE
from awq2trt.recipe import ExportOptions

STUB = BUILD / "tests" / "libtensorrt_stub.so"
LONGEST = 12
PROGRAM = """
import sys
import numpy as np
from awq2trt.runtime.native import GenerateOptions, NativeModel
from awq2trt.runtime import user_message
from pathlib import Path
model = NativeModel.load(Path(sys.argv[1]), golden=False)
session = model.session()
session.append_image(np.zeros((24, 16, 3), np.uint8))
session.append([user_message("What is it?")])
print(session.generate(GenerateOptions(max_tokens=2, ignore_model_stops=True)).tokens)
"""
RELEASES = {"1.7.1.116": (10701, "tensorrt-rtx"), "10.16.0": (101600, "tensorrt"), "11.1.0": (110100, "tensorrt")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_runtime_library()
    if not STUB.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    folder = tmp_path_factory.mktemp("seeing")
    publish_qwen_vl(folder / "model")
    return as_engines(export_saved(folder, ExportOptions(max_seq_len=160)), folder / "rtx", LONGEST).directory


def run(
    built: Path, folder: Path, release: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The end of a program that asks about an image, and what TensorRT was called for."""
    number, flavour = RELEASES[release]
    edit_manifest(built, lambda value: value["contents"]["engine"].update(tensorrt_version=release, flavour=flavour))
    calls = folder / "calls"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(STUB.parent),
        "XDG_CACHE_HOME": str(folder / "cache"),
        TENSORRT_VARIABLE: str(STUB),
        "STUB_VERSION": str(number),
        "STUB_CALLS": str(calls),
        **variables,
    }
    line = [sys.executable, "-c", PROGRAM, str(built)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    return done, calls.read_text().splitlines()


@pytest.mark.parametrize("release", RELEASES)
def test_engines_are_loaded_called_and_given_back(release: str, built: Path, tmp_path: Path) -> None:
    done, calls = run(built, tmp_path, release)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 0]\n"  # all scores are 0
    assert not [call for call in calls if "without a context" in call]
    contexts = [f"context of {name} {profile}" for name in ("decoder", "embedding") for profile in (0, 1)]
    contexts.append("context of vision 0")
    begun = [call for call in calls if call.startswith("+ ")]
    assert begun[:4] == ["+ runtime", "+ decoder", "+ embedding", "+ vision"]
    assert [call for call in calls if call.startswith("profile of ")] == [f"profile of {each}" for each in contexts]
    ended = [call for call in calls if call.startswith("- ")]
    assert sorted(ended) == sorted(
        ["- runtime", *(f"- {name}" for name in ("decoder", "embedding", "vision", *contexts))]
    )
    assert ended[-1] == "- runtime"
    for name in ("decoder", "embedding", "vision"):
        own = [ended.index(f"- {each}") for each in contexts if f" {name} " in each]
        assert max(own) < ended.index(f"- {name}")


def test_shapes_and_addresses_reach_tensorrt(built: Path, tmp_path: Path) -> None:
    done, calls = run(built, tmp_path, "1.7.1.116")
    assert done.returncode == 0, done.stderr
    runs = [call.removeprefix("run context of ") for call in calls if call.startswith("run ")]
    vision = "image_embeddings: patch_places:24x2 patch_slots:24 pixel_values:24x96 window_patches:1x36"
    assert runs[0] == f"vision 0 {vision}"
    table = "rotary_cos:160x32 rotary_sin:160x32"
    assert runs[1] == f"embedding 0 input_ids:1x{LONGEST} inputs_embeds:"
    assert runs[2] == f"decoder 0 cache_position:1 inputs_embeds:1x{LONGEST}x128 logits: {table}"
    assert runs[-2:] == [
        "embedding 1 input_ids:1x1 inputs_embeds:",
        f"decoder 1 cache_position:1 inputs_embeds:1x1x128 logits: {table}",
    ]


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_that_tensorrt_refuses_is_named(release: str, built: Path, tmp_path: Path) -> None:
    done, calls = run(built, tmp_path, release, STUB_REFUSED="vision")
    assert done.returncode == 1
    says = f"{built / 'vision.engine'}: TensorRT refuses the engine: this engine is for another GPU"
    assert says in done.stderr
    assert sorted(calls) == ["+ decoder", "+ embedding", "+ runtime", "- decoder", "- embedding", "- runtime"]
