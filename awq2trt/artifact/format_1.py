"""Manifests of format 1, translated into format 2.

In: the JSON value of such a manifest. Out: the corresponding value of format 2. Whatever format 1 did not record stays
None (`model`, `tokens`, and how a checkpoint stores head and embedding); it has to be read from the files beside the
manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

FORMAT_1: Final = 1

_MINIMUM_RUNTIME: Final = "0.1.0"

_GRAPH: Final = "decoder"
"""The only graph that format 1 knew."""

_MODEL_FILE: Final = "model.onnx"
_ENGINE_FILE: Final = "model.engine"
_CACHE_LAYOUT: Final = "bhcd"
_OPERATORS: Final = {"W4A16Linear": "1"}
"""The operators of every graph in format 1."""


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a manifest of format 1 into format 2.

    Raises:
        KeyError: A key is missing.
        TypeError: A value has the wrong type.
    """
    contents = dict(manifest["contents"])
    io = contents.pop("io")
    for name in ("engine", "kit"):
        if contents[name] is not None:
            contents[name] = {**contents[name], "profiles": {_GRAPH: _profiles(contents[name]["profiles"])}}
    if io is not None:
        has_engine = contents["engine"] is not None or contents["kit"] is not None
        engine = _ENGINE_FILE if has_engine else None
        contents["graphs"] = {_GRAPH: {"model": _MODEL_FILE, "engine": engine, "io": _contract(io)}}
        contents["operators"] = _OPERATORS
        plain = {"dtype": _tensor(io["outputs"], "logits")["dtype"], "scheme": None}
        contents["quantization"] = {**contents["quantization"], "head": plain, "embedding": plain}
    return {**manifest, "format_version": 2, "minimum_runtime": _MINIMUM_RUNTIME, "contents": contents}


def _contract(io: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs now name the inputs whose memory they may use; sizes that tensors show are no longer stored twice."""
    outputs = [{**tensor, "alias": _alias(tensor["name"])} for tensor in io["outputs"]]
    dtype = _tensor(io["inputs"], "past_key_0")["dtype"]
    cache = {"dtype": dtype, "layout": _CACHE_LAYOUT, "capacity": io["capacity"]}
    return {"inputs": io["inputs"], "outputs": outputs, "cache": cache}


def _alias(output: str) -> str | None:
    return output.replace("present_", "past_", 1) if output.startswith("present_") else None


def _tensor(tensors: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return {tensor["name"]: tensor for tensor in tensors}[name]


def _profiles(profiles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranges of new tokens become ranges of the axis `sequence`."""
    sizes = ("shortest", "typical", "longest")
    return [
        {"name": profile["name"], "axes": {"sequence": {size: profile[size] for size in sizes}}} for profile in profiles
    ]
