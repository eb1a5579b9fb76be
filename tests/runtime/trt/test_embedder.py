"""The engines beside a decoder's, over ONNX Runtime: those of a model that sees reproduce its golden image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from tiny_engines import GraphSession, as_engines
from tiny_llava import IMAGE_TOKEN, export_llava, shown
from tiny_llava_next import export_llava_next
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.errors import ToolError
from awq2trt.models.vision.arranging import arranged
from awq2trt.runtime.golden import compare_golden
from awq2trt.runtime.ort.embedder import open_embedder
from awq2trt.runtime.sight import Sight
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.embedder import open_engine_embedder
from awq2trt.runtime.trt.engine import engine_of

LONGEST = 12


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What `build --target rtx` would leave of a model that sees; its engines are a few bytes."""
    folder = tmp_path_factory.mktemp("seeing")
    return _built(export_llava(folder), folder)


def _built(onnx: Artifact, folder: Path) -> Artifact:
    return as_engines(onnx, folder / "rtx", LONGEST)


@pytest.mark.parametrize("export", [export_qwen_vl, export_qwen3_vl, export_smolvlm, export_llava_next])
def test_golden_outputs_are_those_of_engines_for_images_of_any_size(
    export: Callable[[Path], Artifact], tmp_path: Path
) -> None:
    test_golden_outputs_are_those_of_the_engines(_built(export(tmp_path), tmp_path))


@pytest.mark.parametrize("export", [export_smolvlm, export_llava_next])
def test_an_engine_sees_one_tile_at_a_time(export: Callable[[Path], Artifact], tmp_path: Path) -> None:
    """A session refuses more than one, since engines are built for one."""
    engine = _built(export(tmp_path), tmp_path)
    ours, expected = open_engine_embedder(engine, GraphSession), open_embedder(engine)
    sight = Sight.of(engine)
    assert ours is not None
    assert expected is not None
    assert sight is not None
    image = arranged(sight.record, sight.processor.pixels(picture(24, 30)))
    assert len([*image.calls()]) == 5
    np.testing.assert_allclose(ours.see(image), expected.see(image), atol=2e-2)


def test_golden_outputs_are_those_of_the_engines(engine: Artifact) -> None:
    decoder = engine_of(engine)
    assert decoder is not None
    embedder = open_engine_embedder(engine, GraphSession)
    assert embedder is not None
    backend = EngineBackend(GraphSession(decoder), decoder.contract, decoder.profiles, embedder)
    results = compare_golden(backend, read_golden(engine.directory))
    assert [result.name for result in results] == ["vision", "prefill", "decode-1", "decode-2", "first"]
    assert all(result.passed for result in results)


def test_pieces_and_rows_are_those_of_onnx_runtime(engine: Artifact) -> None:
    ours, expected = open_engine_embedder(engine, GraphSession), open_embedder(engine)
    assert ours is not None
    assert expected is not None
    pixels = np.random.default_rng(0).standard_normal((2, 3, 22, 22)).astype(np.float32)
    tokens = [5, *[IMAGE_TOKEN] * 16, 9, *[IMAGE_TOKEN] * 16, 7]  # more than a call of the embedding takes
    for embedder in (ours, expected):
        embedder.show(shown(pixels))
    np.testing.assert_allclose(ours.rows(tokens), expected.rows(tokens), atol=2e-2)
    ours.close()


def test_an_engine_that_is_missing_is_named(engine: Artifact, tmp_path: Path) -> None:
    for name in engine.manifest.files:
        if name != "vision.engine":
            (tmp_path / name).write_bytes(engine.path(name).read_bytes())
    with pytest.raises(ToolError, match="there is no engine of the vision graph"):
        open_engine_embedder(Artifact(tmp_path, engine.manifest), GraphSession)
