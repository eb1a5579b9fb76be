"""A tiny model that was built for ONNX Runtime, with a chat template, and ways to spoil it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_models import save_llama

import awq2trt
from awq2trt.artifact.manifest import Artifact
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.kit import model_spec
from awq2trt.stages.lowered import LowerRequest, lower_stage
from awq2trt.target import find_target

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}>"
)

CAPACITY = 64


def build_lowered(directory: Path, *targets: str) -> Path:
    """Builds a checkpoint, an ONNX model and models for targets, each below `directory` under its name."""
    save_llama(directory / "model")
    config = directory / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    awq2trt.quantize(directory / "model", directory / "checkpoint", QuantizeOptions(method="rtn", group_size=32))
    awq2trt.export(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=CAPACITY))
    onnx = Artifact.open(directory / "onnx")
    spec = model_spec(str(directory / "checkpoint"))
    for target in targets:
        request = LowerRequest(find_target(target), directory / target, fusion=False)
        lower_stage(onnx, spec, request, SilentProgress())
    return directory


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes manifest.json, but none of the files that it describes."""
    path = directory / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def replace_file(directory: Path, name: str, data: bytes) -> None:
    """Replaces a file, and its size and hash in the manifest."""
    (directory / name).write_bytes(data)
    record = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(directory, lambda value: value["files"].update({name: record}))
