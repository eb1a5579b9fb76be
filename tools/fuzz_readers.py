"""The readers that are fuzzed: every reader of files that others write, with valid files to start from.

In: the content of one file, and an empty folder. Out: nothing, or an `Awq2trtError`; anything else is a finding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import fuzz_models
import fuzz_texts
import numpy as np
from fuzz_mutations import bytes_like, json_like, safetensors_like, text_like
from hypothesis import strategies as st

from awq2trt.artifact.golden import Golden, GoldenCall, read_golden, write_golden
from awq2trt.artifact.manifest import MANIFEST_FILE, Artifact, read_manifest
from awq2trt.artifact.publish import create_artifact
from awq2trt.errors import ArtifactError, Awq2trtError
from awq2trt.graph.read import open_decoder, operators_of
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, LOGITS, cache_names
from awq2trt.recipe import load_recipe

ROOT: Final = Path(__file__).resolve().parents[1]
_DATA: Final = ROOT / "tests" / "data"


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        seeds: Valid contents of the file; tests check that the reader accepts them.
        cases: Contents similar to them.
        read: Reads a content in an empty folder.
    """

    seeds: Callable[[], list[bytes]]
    cases: Callable[[list[bytes]], st.SearchStrategy[bytes]]
    read: Callable[[bytes, Path], None]


def _json_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return json_like([json.loads(seed) for seed in seeds])


@cache
def _golden_files() -> tuple[bytes, bytes]:
    """golden.json and golden.npz of one call."""
    golden = Golden("a", 0.1, (GoldenCall("prefill", (1, 2), 0, np.arange(4, dtype=np.float32)),))
    with tempfile.TemporaryDirectory() as folder:
        write_golden(golden, Path(folder))
        return (Path(folder) / "golden.json").read_bytes(), (Path(folder) / "golden.npz").read_bytes()


def _read_golden(content: bytes, folder: Path) -> None:
    is_arrays = content.startswith(b"PK")
    (folder / "golden.json").write_bytes(_golden_files()[0] if is_arrays else content)
    (folder / "golden.npz").write_bytes(content if is_arrays else _golden_files()[1])
    for call in read_golden(folder).calls:
        call.arrays()


def _golden_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(_json_cases(seeds[:1]), bytes_like(seeds[1:]))


@cache
def _onnx() -> bytes:
    """A graph with the inputs and outputs of an exported decoder, and weights inside and outside of it."""
    from onnx import TensorProto, helper

    names = list(zip(cache_names("past", 1), cache_names("present", 1), strict=True))
    cache_shape = (1, 1, 8, 4)
    float_, int_ = TensorProto.FLOAT16, TensorProto.INT64
    inputs = [(INPUT_IDS, int_, (1, "sequence")), (CACHE_POSITION, int_, (1,))]
    inputs += [(name, float_, cache_shape) for name, _ in names]
    outputs = [(LOGITS, float_, (1, 1, 5)), *((name, float_, cache_shape) for _, name in names)]
    outside = TensorProto(name="w", data_type=float_, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", "4")):
        outside.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Identity", [before], [after]) for before, after in names]
        + [helper.make_node("ConstantOfShape", ["shape"], [LOGITS])],
        "decoder",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [helper.make_tensor("shape", int_, [3], [1, 1, 5]), outside],
    )
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return content


def _read_onnx(content: bytes, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.onnx.data").write_bytes(bytes(4))
    model, _ = open_decoder(folder)
    operators_of(model)


def _manifests() -> list[bytes]:
    paths = (_DATA / "manifest_format_2.json", *sorted(_DATA.glob(f"format_1/**/{MANIFEST_FILE}")))
    return [path.read_bytes() for path in paths]


def _read_manifest(content: bytes, folder: Path) -> None:
    """Reads a manifest, and overwrites a directory that an interrupted run seems to have left with it."""
    out, victim = folder / "out", folder / "victim"
    (out / ".work").mkdir(parents=True)
    for path in (out / MANIFEST_FILE, out / ".work" / MANIFEST_FILE):
        path.write_bytes(content)
    victim.write_text("precious")
    try:
        manifest = read_manifest(out, None)
        with suppress(ArtifactError):
            Artifact.open(out)
        (out / MANIFEST_FILE).unlink()
        with suppress(KeyboardInterrupt), create_artifact(out, "checkpoint", "f" * 64, overwrite=True):
            raise KeyboardInterrupt
        manifest.sums_bytes("0" * 64)
        manifest.to_bytes()
    finally:
        if victim.read_text() != "precious" or {path.name for path in folder.iterdir()} > {"out", "victim"}:
            raise AssertionError("something was written or removed outside the directory")


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]


_YAML: Final = (
    *("&a ", "*a", "<<: *a", "!!python/object/apply:os.system [x]", "- ", "? ", ": ", "|", ">", "[", "{", "quantize:"),
    *(
        "export:",
        "build:",
        "  bits: ",
        "  group_size: ",
        "  target: ",
        "  samples: ",
        "4",
        "-1",
        "1e9",
        "true",
        "~",
        "%",
    ),
    *("%", "2001-01-01", "0x10", "!!binary a", "---", "...", "\t", "'", '"', "#"),
)


_JINJA: Final = (
    *("{{", "}}", "{%", "%}", "{% for m in messages %}", "{% endfor %}", "{% if ", "{% set x = ", "{% endif %}", "{#"),
    *("messages", "[0]", "['content']", ".role", " | ", "trim", "tojson", "namespace(a=", "raise_exception(", ")"),
    *("bos_token", "loop.index", "~", "+", "'", "x", "__class__", "range(3)", "{% break %}", "strftime_now('%Y')"),
)


def _template_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(text_like(seeds, _JINJA), bytes_like(seeds))


def _text_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    records = [json.loads(line) for line in seeds[0].splitlines()]
    return st.one_of(json_like(records), bytes_like(seeds))


def _recipe_cases(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(text_like(seeds, _YAML), bytes_like(seeds))


def _read_recipe(content: bytes, folder: Path) -> None:
    (folder / "r.yaml").write_bytes(content)
    load_recipe(folder / "r.yaml")


READERS: Final[dict[str, Reader]] = {
    "config": Reader(fuzz_models.configs, _json_cases, fuzz_models.read_config_json),
    "index": Reader(fuzz_models.indexes, _json_cases, fuzz_models.read_index),
    "safetensors": Reader(fuzz_models.weights, safetensors_like, fuzz_models.read_weights),
    "gguf": Reader(lambda: list(fuzz_models.ggufs()), bytes_like, fuzz_models.read_gguf),
    "checkpoint": Reader(lambda: list(fuzz_models.quantized()), safetensors_like, fuzz_models.read_quantized),
    "tokenizer": Reader(fuzz_texts.tokenizers, _json_cases, fuzz_texts.read_tokenizer),
    "tokenizer_config": Reader(fuzz_texts.tokenizer_configs, _json_cases, fuzz_texts.read_tokenizer_config),
    "generation_config": Reader(fuzz_texts.generation_configs, _json_cases, fuzz_texts.read_generation_config),
    "sentencepiece": Reader(fuzz_texts.pieces, bytes_like, fuzz_texts.read_pieces),
    "sentencepiece_config": Reader(fuzz_texts.pieces_configs, _json_cases, fuzz_texts.read_pieces_config),
    "template": Reader(fuzz_texts.templates, _template_cases, fuzz_texts.read_template),
    "texts": Reader(fuzz_texts.texts, _text_cases, fuzz_texts.read_texts),
    "captions": Reader(fuzz_texts.captions, _json_cases, fuzz_texts.read_captions),
    "task": Reader(fuzz_texts.rows, _json_cases, fuzz_texts.read_rows),
    "image": Reader(fuzz_texts.images, bytes_like, fuzz_texts.read_picture),
    "image_processor": Reader(fuzz_texts.image_processors, _json_cases, fuzz_texts.read_image_processor),
    "golden": Reader(lambda: list(_golden_files()), _golden_cases, _read_golden),
    "onnx": Reader(lambda: [_onnx()], bytes_like, _read_onnx),
    "manifest": Reader(_manifests, _json_cases, _read_manifest),
    "recipe": Reader(_recipes, _recipe_cases, _read_recipe),
}
"""The readers by name, which `make fuzz` and the folders of findings use."""


def outcome(reader: Reader, content: bytes, folder: Path) -> str | None:
    """A reader's verdict on a content: None if it accepts it, or its message.

    Raises:
        BaseException: Anything that is not an error of ours, which is a finding.
    """
    try:
        reader.read(content, folder)
    except Awq2trtError as error:
        return str(error)
    return None
