"""A build whose engine is ONNX Runtime: the exported model, checked against an engine's contract and profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from numpy.typing import NDArray

from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import EngineRecord, ProfileRecord
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, IoContract, TensorContract
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.runtime.ort.session import open_session
from awq2trt.runtime.trt.engine import EngineBuild, Machine, engine_of
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage
from awq2trt.target import Flavour

LAYERS = 3

CAPACITY = 64

TOKENS = [7, 200, 31, 42, 5, 99, 180, 3, 64, 77, 12, 250, 8, 33, 91, 17, 140, 6, 28, 55]

PROFILES = (
    ProfileRecord.of_tokens("prefill", 1, 16, CAPACITY),
    ProfileRecord.of_tokens("decode", 1, 1, 1),
)

RTX_CARD = Machine("x86_64", "NVIDIA GeForce RTX 4090", "8.9", {Flavour.TENSORRT_RTX: "1.7.1.116"})


class OnnxSession:
    """Stands in for an engine: the exported model in ONNX Runtime, with checks of its contract and profiles.

    Args:
        onnx: Directory of the model that it runs.
        in_place: Whether a cache is returned in its input's memory, as by an engine with cache layers.
        spoil: Changes logits before they are read.
    """

    def __init__(
        self, onnx: Path, *, in_place: bool = True, spoil: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    ) -> None:
        self._session = open_session(open_decoder(onnx)[0], onnx)
        self._contract = contract_of(onnx)
        self._in_place = in_place
        self._spoil = spoil
        self.calls: list[tuple[int, int, int]] = []  # profile, position, tokens
        self.closed = False

    def zeros(self, tensor: TensorContract, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.zeros(shape, tensor.dtype)

    def infer(self, inputs: Mapping[str, NDArray[Any]], profile: int) -> Mapping[str, NDArray[Any]]:
        count, position = inputs[INPUT_IDS].shape[1], int(inputs[CACHE_POSITION][0])
        assert PROFILES[profile].tokens.shortest <= count <= PROFILES[profile].tokens.longest
        for tensor in self._contract.inputs:
            assert str(inputs[tensor.name].dtype) == tensor.dtype
            for axis, wanted in zip(inputs[tensor.name].shape, tensor.shape, strict=True):
                assert axis == wanted or isinstance(wanted, str)
        assert len(inputs) == len(self._contract.inputs)
        self.calls.append((profile, position, count))
        names = [tensor.name for tensor in self._contract.outputs]
        outputs = dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        if self._in_place:
            for past, present in self._contract.cache_pairs:
                inputs[past][...] = outputs[present]
                outputs[present] = inputs[past]
        return outputs

    def carry(self, present: NDArray[Any], past: NDArray[Any]) -> None:
        if present is not past:
            past[...] = present

    def read(self, buffer: NDArray[Any]) -> NDArray[np.float32]:
        logits = buffer.astype(np.float32)
        return self._spoil(logits) if self._spoil else logits

    def close(self) -> None:
        self.closed = True


class ForgetfulSession(OnnxSession):
    """A session that returns caches in new memory, which nobody carries to the next call."""

    def carry(self, present: NDArray[Any], past: NDArray[Any]) -> None:
        pass


def contract_of(onnx: Path) -> IoContract:
    """Inputs and outputs of an exported model."""
    contract = Artifact.open(onnx, verify="size").manifest.contents.decoder
    assert contract is not None
    return contract


def with_a_nan(logits: NDArray[Any]) -> NDArray[Any]:
    """Replaces one of the logits by NaN."""
    logits[0, 0, 5] = np.nan
    return logits


def save_model(directory: Path) -> Path:
    """A random Llama of three blocks."""
    return tiny_models.save_llama(directory, num_hidden_layers=LAYERS)


def make_build(model: Path, directory: Path) -> Path:
    """Makes what `awq2trt build --target rtx` would leave in a directory; its engine is a few bytes."""
    rtn = QuantizeOptions(group_size=32, method="rtn")
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", rtn), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=CAPACITY))
    onnx = export_stage(export, SilentProgress())
    record = EngineRecord(
        target="rtx",
        compute_capabilities=("SM86", "SM89", "SM120"),
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1.116",
        plugin_version="0.1.0",
        profiles={"decoder": PROFILES},
    )
    with create_artifact(directory / "rtx", "engine", "fingerprint") as draft:
        (draft.files / "model.engine").write_bytes(b"an engine")
        for name in onnx.manifest.files:
            draft.adopt(onnx.path(name))
        draft.publish(onnx.manifest.contents.with_engines().model_copy(update={"engine": record}))
    return directory


def engine_in(build: Path, **changes: Any) -> EngineBuild:
    """The engine of a build; `changes` replace entries of its manifest."""
    engine = engine_of(Artifact.open(build / "rtx"))
    assert engine is not None
    return replace(engine, **changes)
