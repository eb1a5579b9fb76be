"""Artifacts of a few bytes, of every kind."""

from __future__ import annotations

from pathlib import Path

from awq2trt.artifact.manifest import Artifact, Kind
from awq2trt.artifact.publish import create_artifact
from awq2trt.artifact.records import (
    CalibrationRecord,
    Contents,
    DecoderRecord,
    EngineRecord,
    FileRecord,
    GraphRecord,
    KitRecord,
    LoweredRecord,
    ModelRecord,
    ProfileRecord,
    QuantizationRecord,
    RopeRecord,
    SourceRecord,
    TokensRecord,
)
from awq2trt.io_contract import CacheContract, IoContract, TensorContract
from awq2trt.scheme import QuantScheme

FINGERPRINT = "f" * 64
SOURCE = SourceRecord(
    model="tiny", family="llama", files={"model.safetensors": FileRecord(size_bytes=3, sha256="0" * 64)}
)
CALIBRATION = CalibrationRecord(text="self", sha256="1" * 64, samples=2, seqlen=8, seed=0)
DECODER = DecoderRecord(
    hidden_size=4,
    intermediate_size=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    vocab_size=7,
    max_positions=32,
    tie_embeddings=False,
    ropes=(RopeRecord(inv_freq=(1.0,)),),
    rope_of_layer=(0,),
    window_of_layer=(None,),
)
CHECKPOINT = Contents(
    source=SOURCE,
    quantization=QuantizationRecord(method="awq", scheme=QuantScheme(group_size=32), calibration=CALIBRATION).with_ends(
        "float16", None, tied=False
    ),
    model=ModelRecord(decoder=DECODER),
)
IO = IoContract(
    inputs=(
        TensorContract("input_ids", "int64", ("batch", "sequence"), "New tokens."),
        TensorContract("past_key_0", "float16", ("batch", 1, 16, 2), "Before."),
    ),
    outputs=(
        TensorContract("logits", "float16", ("batch", 1, 7), "Logits."),
        TensorContract("present_key_0", "float16", ("batch", 1, 16, 2), "After.", alias="past_key_0"),
    ),
    cache=CacheContract("float16", "bhcd", 16),
)
PROFILES = {"decoder": (ProfileRecord.of_tokens("prefill", 1, 8, 16), ProfileRecord.of_tokens("decode", 1, 1, 1))}
ENGINE = EngineRecord(
    target="rtx4090",
    compute_capabilities=("SM89",),
    flavour="tensorrt-rtx",
    tensorrt_version="1.7.1.116",
    plugin_version=None,
    profiles=PROFILES,
)
KIT = KitRecord(
    target="orin",
    compute_capability="8.7",
    cpu="aarch64",
    jetpack="7.2",
    minimum_tensorrt=(10, 16),
    plugin_version="0.1.0",
    plugin_cuda=(13, 0),
    profiles=PROFILES,
    build_bytes=3,
    run_bytes=2,
    disk_bytes=1,
)
LOWERED = LoweredRecord(
    target="cuda",
    provider="CUDAExecutionProvider",
    minimum_onnxruntime=(1, 27),
    minimum_compute_capability="8.0",
    minimum_cuda=(13, 0),
    cpus=("x86_64", "aarch64"),
    plugin_version="0.2.0",
    profiles=PROFILES,
)
GRAPHS = {"decoder": GraphRecord(model="model.onnx", io=IO)}
EXPORTED = CHECKPOINT.model_copy(
    update={
        "tokens": TokensRecord(bos=1, eos=2, pad=None, unk=0, stop=(2, 5)),
        "graphs": GRAPHS,
        "operators": {"W4A16Linear": "1"},
    }
)
CONTENTS: dict[Kind, Contents] = {
    "checkpoint": CHECKPOINT,
    "onnx": EXPORTED,
    "engine": EXPORTED.with_engines().model_copy(update={"engine": ENGINE}),
    "kit": EXPORTED.with_engines().model_copy(update={"kit": KIT}),
    "lowered": EXPORTED.model_copy(update={"lowered": LOWERED}),
}
FILES = {"config.json": b"{}", "model.safetensors": b"\x00" * 1000, "plots/alpha.svg": b"<svg/>"}
"""Files of a checkpoint."""

GRAPH_FILES = {**FILES, "model.onnx": b"graph", "model.engine": b"e"}
"""Files of the other kinds."""


def write(
    directory: Path, kind: Kind = "checkpoint", files: dict[str, bytes] | None = None, **options: bool
) -> Artifact:
    """Writes an artifact; `files` by name, or None for those of its kind."""
    if files is None:
        files = FILES if kind == "checkpoint" else GRAPH_FILES
    with create_artifact(directory, kind, FINGERPRINT, **options) as draft:
        for name, content in files.items():
            (draft.files / name).parent.mkdir(exist_ok=True)
            (draft.files / name).write_bytes(content)
        return draft.publish(CONTENTS[kind])


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
