"""Directories of engines that are none, and what runs them in their place: the graphs, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import EngineRecord, ProfileRecord
from awq2trt.engine.profiles import profiles_beside
from awq2trt.graph.read import load_model
from awq2trt.io_contract import DECODER, IoContract, TensorContract
from awq2trt.runtime.ort.session import open_session
from awq2trt.runtime.trt.engine import EngineBuild


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


def as_engines(onnx: Artifact, directory: Path, longest: int) -> Artifact:
    """What `build --target rtx` would leave of a model; its engines are a few words, and its graphs lie beside them.

    Args:
        onnx: The exported model.
        directory: Where to put it.
        longest: New tokens that a call of the decoder may have, and of the embedding.
    """
    contents = onnx.manifest.contents.with_engines()
    vision = contents.model.vision if contents.model else None
    decoding = (ProfileRecord.of_tokens("prefill", 1, 8, longest), ProfileRecord.of_tokens("decode", 1, 1, 1))
    record = EngineRecord(
        target="rtx",
        compute_capabilities=("SM89",),
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        plugin_version=None,
        profiles={DECODER: decoding} | {name: profiles_beside(name, longest, vision) for name in contents.beside},
    )
    with create_artifact(directory, "engine", "fingerprint") as draft:
        for name, graph in contents.graphs.items():
            (draft.files / str(graph.engine)).write_text(f"an engine of the {name}")
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        return draft.publish(contents.model_copy(update={"engine": record}))
