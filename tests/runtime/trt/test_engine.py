"""Which engine a directory holds, and why a machine cannot run it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stand_in_engine
from stand_in_engine import (
    PROFILES,
    RTX_CARD,
    engine_in,
)
from tiny_kits import export_tiny, make_tiny_kit

from awq2trt.artifact.manifest import Artifact, record_file
from awq2trt.runtime.trt.engine import POLYGRAPHY_SWITCH, Machine, choose_flavour, engine_of, why_not_here
from awq2trt.target import Flavour


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("build")
    return stand_in_engine.make_build(stand_in_engine.save_model(directory / "model"), directory)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({}, None),
        (
            {"gpu": None},
            "there is no NVIDIA GPU here, but the engine needs compute capability 8.6 or 8.9 or 12.0, TensorRT-RTX",
        ),
        ({"cpu": "aarch64"}, "this machine is aarch64, but the engine is for x86_64 and"),
        (
            {"gpu": "NVIDIA H100", "capability": "9.0"},
            "the GPU here is NVIDIA H100, compute capability 9.0, but the engine needs compute capability 8.6 or",
        ),
        ({"tensorrt": {}}, "TensorRT-RTX's Python module is not installed here, but the engine needs 1.7.1.116: pip"),
        (
            {"tensorrt": {Flavour.TENSORRT: "10.16.0"}},
            "TensorRT-RTX's Python module is not installed here, but the engine needs 1.7.1.116: pip install",
        ),
        (
            {"tensorrt": {Flavour.TENSORRT_RTX: "1.8.0.5"}},
            "TensorRT-RTX here is 1.8.0.5, but the engine needs 1.7.1.116",
        ),
        (
            {"tensorrt": {Flavour.TENSORRT_RTX: "broken (libcudart.so.13: no such file)"}},
            "TensorRT-RTX here is broken (libcudart.so.13: no such file), but the engine",
        ),
        ({"tensorrt": {Flavour.TENSORRT_RTX: "1.7.1.200"}}, None),
    ],
)
def test_why_an_engine_is_not_run(build: Path, machine: dict[str, Any], reason: str | None) -> None:
    found = why_not_here(engine_in(build), replace(RTX_CARD, **machine))
    assert found is None if reason is None else str(found).startswith(reason), found


def test_an_engine_for_the_gpu_that_built_it_is_tried_on_any(build: Path) -> None:
    assert why_not_here(engine_in(build, capabilities=()), replace(RTX_CARD, capability="9.9")) is None
    own = engine_in(build, capabilities=(), gpu=RTX_CARD.gpu)
    assert why_not_here(own, RTX_CARD) is None
    found = str(why_not_here(own, replace(RTX_CARD, gpu="another card")))
    assert found.startswith(f"the GPU here is another card, but the engine needs {RTX_CARD.gpu}, TensorRT-RTX")


def test_the_manifest_says_what_an_engine_needs(build: Path) -> None:
    engine = engine_in(build)
    assert engine.capabilities == ("8.6", "8.9", "12.0")
    assert (engine.flavour, engine.cpu, engine.has_plugin) == (Flavour.TENSORRT_RTX, "x86_64", True)
    assert engine.profiles == PROFILES
    assert engine_of(Artifact.open(build / "onnx")) is None
    assert engine_of(Artifact.open(build / "checkpoint")) is None


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported")
    export_tiny(directory)
    return directory


def _finish(directory: Path, **changes: str) -> None:
    """Writes what `finish.sh` leaves in a kit; `changes` go into its state file."""
    (directory / "model.engine").write_bytes(b"built on the Jetson")
    state = {
        "kit": record_file(directory / "SHA256SUMS").sha256,
        "tensorrt": "101600",
        "sha256": record_file(directory / "model.engine").sha256,
        **changes,
    }
    (directory / "model.engine.state").write_text("".join(f"{key}={value}\n" for key, value in state.items()))


def test_a_finished_kit_has_an_engine(exported: Path, tmp_path: Path) -> None:
    kit = make_tiny_kit(exported, tmp_path / "orin", "7.2", cuda=13020)
    assert engine_of(kit) is None
    _finish(kit.directory)
    engine = engine_of(kit)
    assert engine is not None
    assert (engine.flavour, engine.tensorrt_version, engine.capabilities) == (Flavour.TENSORRT, "10.16.0", ("8.7",))
    orin = Machine("aarch64", "Orin", "8.7", {Flavour.TENSORRT: "10.16.0.72"})
    assert why_not_here(engine, orin) is None
    assert str(why_not_here(engine, replace(orin, tensorrt={}))).startswith("TensorRT's Python module is not installed")
    assert str(why_not_here(engine, replace(orin, tensorrt={Flavour.TENSORRT: "10.3.0.30"}))).startswith(
        "TensorRT here is 10.3.0.30, but the engine needs 10.16.0"
    )
    _finish(kit.directory, kit="0" * 64)
    assert "built from an earlier kit" in str(why_not_here(engine_of(kit) or engine, orin))
    _finish(kit.directory, sha256="0" * 64)
    assert "not what finish.sh built" in str(why_not_here(engine_of(kit) or engine, orin))


def test_polygraphy_is_pointed_at_the_engines_tensorrt(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLYGRAPHY_SWITCH, raising=False)
    choose_flavour(build / "onnx")
    assert POLYGRAPHY_SWITCH not in os.environ
    choose_flavour(build)
    assert os.environ[POLYGRAPHY_SWITCH] == "1"
    monkeypatch.setenv(POLYGRAPHY_SWITCH, "0")  # the user's own word
    choose_flavour(build / "rtx")
    assert os.environ[POLYGRAPHY_SWITCH] == "0"
