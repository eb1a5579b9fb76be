"""Sessions with images on engines of the C++ library, over stand-ins: the answers of Python's runtime over its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from host_sessions import (
    CAPACITY,
    MODELS,
    NEW_TOKENS,
    PICTURES,
    HostSessions,
    require_few_writes,
    require_python_answers,
    require_rests_of_images,
    save_pictures,
)
from native_text import BUILD
from tiny_engines import GraphSession, as_engines
from tiny_exports import export_saved
from tiny_lowered import edit_manifest

from awq2trt.artifact.manifest import Artifact
from awq2trt.machine.runtime_library import find_onnxruntime_library
from awq2trt.recipe import ExportOptions
from awq2trt.runtime.backend import Backend
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.embedder import open_engine_embedder
from awq2trt.runtime.trt.engine import engine_of

PROGRAM = BUILD / "tests" / "engine_sight_on_host"
LONGEST = 12
"""Tokens of a call of the decoder: prompts need several, and so does the embedding."""


class Built(HostSessions):
    """Directories of engines with their graphs, which run in the engines' place."""

    def backend(self) -> Backend:
        artifact = Artifact.open(self.directory)
        decoder, embedder = engine_of(artifact), open_engine_embedder(artifact, GraphSession)
        assert decoder is not None
        return EngineBackend(GraphSession(decoder), decoder.contract, decoder.profiles, embedder)

    def at(self, directory: Path) -> Built:
        """The same with another directory."""
        return replace(self, directory=directory, line=(PROGRAM, directory, self.line[-1]))


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    """What the model is an example of."""
    return str(request.param)


@pytest.fixture(scope="module")
def built(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not PROGRAM.is_file():
        pytest.skip("the C++ library's tests are not built: make runtime")
    folder = tmp_path_factory.mktemp("seeing")
    MODELS[kind](folder / "model")
    as_engines(export_saved(folder, ExportOptions(max_seq_len=CAPACITY)), folder / "rtx", LONGEST)
    save_pictures(folder)
    onnxruntime = find_onnxruntime_library()
    assert onnxruntime is not None
    return Built(folder / "rtx", folder, (PROGRAM, folder / "rtx", onnxruntime))


@pytest.fixture
def changed(built: Built, tmp_path: Path) -> Built:
    """A copy, for a test to change."""
    return built.at(Path(shutil.copytree(built.directory, tmp_path / "rtx")))


@pytest.mark.parametrize("images", [[], [0], [1, 2]], ids=str)
def test_answers_are_those_of_the_python_backend(images: list[int], built: Built) -> None:
    require_python_answers(built, images)


def test_sessions_keep_their_images_apart(built: Built) -> None:
    """Sessions take turns, fork, rewind and end, and threads wait for each other."""
    one, other = (built.shown(0, [image], built.prompt("<image>b", [image])[0]) for image in (0, 2))
    alone = [built.answers("open 0", *shown, f"answer 0 {NEW_TOKENS}")[0] for shown in (one, other)]
    assert alone[0] != alone[1]
    in_second = [line.replace(" 0 ", " 1 ", 1) for line in other]
    prompt = len(one[-1].split()) - 2
    together = built.answers(
        *("open 0", "open 1", *one, *in_second, f"answer 0 {NEW_TOKENS}", f"answer 1 {NEW_TOKENS}"),
        *("fork 0 2", f"rewind 2 {prompt}", "threads 2 4 6", f"answer 2 {NEW_TOKENS}"),
        *("open 1", *in_second, f"answer 1 {NEW_TOKENS}"),
    )
    assert together == [alone[0], alone[1], [1], alone[0], alone[1]]


def test_an_image_of_a_later_turn(built: Built) -> None:
    """Text behind a second image goes on as in a prompt with both from the beginning."""
    (first, _), (second, _) = (built.prompt(text, [image]) for text, image in (("<image>b", 0), ("<image>c", 1)))
    together, _ = built.prompt("<image>b<image>c", [0, 1])
    at_once = built.answers("open 0", *built.shown(0, [0, 1], together), f"answer 0 {NEW_TOKENS}")
    # What begins a text is before the first image alone.
    added = together[len(first) :]
    assert together[: len(first)] == first
    assert len(added) <= len(second)
    in_turns = built.answers(
        *("open 0", *built.shown(0, [0], first), "answer 0 4", f"rewind 0 {len(first)}"),
        *(*built.shown(0, [1], added), f"answer 0 {NEW_TOKENS}"),
    )
    assert in_turns[-1] == at_once[0]


def test_golden_outputs_pass(built: Built) -> None:
    assert built.answers("check 0") == [[1]]


@pytest.mark.parametrize("kind", ["seeing each other"], indirect=True)
def test_what_a_rewind_leaves_of_an_image_sees_only_itself(built: Built) -> None:
    require_rests_of_images(built)


@pytest.mark.parametrize("kind", ["windows", "seeing each other", "attended"], indirect=True)
def test_tables_are_written_only_if_they_change(built: Built) -> None:
    require_few_writes(built)


@pytest.mark.parametrize("kind", ["windows", "deepstack"], indirect=True)
def test_an_image_that_no_profile_takes(kind: str, changed: Built) -> None:
    patches = {"patches": {"shortest": 4, "typical": 8, "longest": 8}}
    windows = {"windows": {"shortest": 1, "typical": 1, "longest": 9}} if kind == "windows" else {}

    def change(value: dict[str, Any]) -> None:
        value["contents"]["engine"]["profiles"]["vision"] = [{"name": "image", "axes": patches | windows}]

    edit_manifest(changed.directory, change)
    height, width = PICTURES[0].shape[:2]
    done = changed.run("open 0", f"image 0 {changed.folder / '0.rgb'} {width} {height}")
    assert done.returncode == 1
    got, expected = (" in 4 windows", " in 1 to 9 windows") if windows else ("", "")
    assert f" patches{got}, the vision engine takes 4 to 8 patches{expected}" in done.stderr
    assert "--max-image-tokens" in done.stderr
