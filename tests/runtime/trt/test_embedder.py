"""The engines beside a decoder's, over ONNX Runtime: those of a model that sees reproduce its golden image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import picture
from tiny_llava import IMAGE_TOKEN, export_llava, shown
from tiny_llava_next import export_llava_next
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import EngineRecord, ProfileRecord
from awq2trt.engine.profiles import profiles_beside
from awq2trt.errors import ToolError
from awq2trt.graph.read import load_model
from awq2trt.io_contract import IoContract, TensorContract
from awq2trt.models.vision.arranging import arranged
from awq2trt.runtime.golden import compare_golden
from awq2trt.runtime.ort.embedder import open_embedder
from awq2trt.runtime.ort.session import open_session
from awq2trt.runtime.sight import Sight
from awq2trt.runtime.trt.backend import EngineBackend
from awq2trt.runtime.trt.embedder import open_engine_embedder
from awq2trt.runtime.trt.engine import EngineBuild, engine_of

LONGEST = 12


class GraphSession:
    """An engine that is none: its graph in ONNX Runtime, its contract and profiles held to."""

    def __init__(self, build: EngineBuild) -> None:
        path = build.path.with_suffix(".onnx")
        self._session = open_session(load_model(path), path)
        self._contract: IoContract = build.contract
        self._profiles = build.profiles
        self.closed = False

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.zeros(shape, tensor.dtype)

    def infer(self, inputs: Mapping[str, NDArray[Any]], profile: int) -> Mapping[str, NDArray[Any]]:
        axes = self._profiles[profile].axes
        for tensor in self._contract.inputs:
            assert str(inputs[tensor.name].dtype) == tensor.dtype
            for size, axis in zip(inputs[tensor.name].shape, tensor.shape, strict=True):
                longest = axes[axis].longest if axis in axes else 1
                assert size == axis if isinstance(axis, int) else size <= longest
        names = [tensor.name for tensor in self._contract.outputs]
        return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))

    def carry(self, present: NDArray[Any], past: NDArray[Any]) -> None:
        past[...] = present

    def read(self, buffer: NDArray[Any]) -> NDArray[np.float32]:
        return buffer.astype(np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What `build --target rtx` would leave of a model that sees; its engines are a few bytes."""
    folder = tmp_path_factory.mktemp("seeing")
    return _built(export_llava(folder), folder)


def _built(onnx: Artifact, folder: Path) -> Artifact:
    contents = onnx.manifest.contents.with_engines()
    vision = contents.model.vision if contents.model else None
    decoding = (ProfileRecord.of_tokens("prefill", 1, 8, LONGEST), ProfileRecord.of_tokens("decode", 1, 1, 1))
    record = EngineRecord(
        target="rtx",
        compute_capabilities=("SM89",),
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        plugin_version=None,
        profiles={"decoder": decoding} | {name: profiles_beside(name, LONGEST, vision) for name in contents.beside},
    )
    with create_artifact(folder / "rtx", "engine", "fingerprint") as draft:
        for graph in contents.graphs.values():
            (draft.files / str(graph.engine)).write_bytes(b"an engine")
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        return draft.publish(contents.model_copy(update={"engine": record}))


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
