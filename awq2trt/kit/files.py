"""Writes all files of a kit except its manifest.

In: an exported decoder's directory and a `KitPlan`. Out, in a directory that the caller owns: `model.onnx` for the
JetPack's TensorRT, fused if the plan says so, and its weights; the model's other files, `lib/` or `src/`, `kit.conf`,
`finish.sh`, `README.md`, and `cpp/` if there is a C++ library for the Jetson. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Final

import onnx
import onnx_ir as ir

from awq2trt import opset
from awq2trt.artifact.golden import DESCRIPTION_FILE, TABLES, loosen_golden_, read_golden
from awq2trt.artifact.manifest import Artifact
from awq2trt.artifact.records import Contents, GraphRecord, KitRecord
from awq2trt.engine.predict import Footprint
from awq2trt.engine.profiles import decoder_profiles, profiles_beside
from awq2trt.errors import UnsupportedError
from awq2trt.graph.basic_ops import ONE, drop_functions_, fix_batch_, infer_shapes_, lower_to_basic_ops_
from awq2trt.graph.fusion import fuse_
from awq2trt.graph.int8_cache import int8_contract, quantize_cache_
from awq2trt.graph.provider_file import save_model
from awq2trt.graph.read import load_model, open_decoder, operators_of
from awq2trt.io_contract import DECODER, MODEL_FILE, VISION, WEIGHTS_FILE, IoContract, TensorContract
from awq2trt.kit.graph_settings import graph_settings, is_free
from awq2trt.machine.foreign_library import KitPlugin
from awq2trt.machine.plugin_library import LIBRARY_NAME
from awq2trt.target import JetPack, Target
from awq2trt.version import __version__

SCRIPT_FILE: Final = "finish.sh"
CONF_FILE: Final = "kit.conf"
README_FILE: Final = "README.md"
LIBRARY_FILE: Final = f"lib/{LIBRARY_NAME}"
SOURCE_FOLDER: Final = "src"
RUNTIME_FOLDER: Final = "cpp"
VERSION_HEADER: Final = "version.h"

_HERE: Final = Path(__file__).parent
TEMPLATES: Final = (_HERE / SCRIPT_FILE, _HERE / "README.template.md", _HERE / "runtime.template.md")

_LONGEST_UNFUSED_PREFILL: Final = 512
"""If attention scores are tensors, a longer prompt is split into pieces of this length, or they would fill the
memory."""

_FRACTION_BITS: Final = {"float16": 10, "bfloat16": 7}

_FORMS: Final = {True: "opset 24", False: "basic operators of opset 20"}

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


@dataclass(frozen=True)
class KitPlan:
    """What a kit is for and what it consists of.

    Attributes:
        target: A Jetson.
        jetpack: The JetPack release on it.
        plugin: The plugin library, or its sources.
        runtime: Files of the C++ library for the Jetson, by their path in its folder; empty without one.
        footprint: Sizes of the model.
        longest_prefill: Most new tokens that a call of the engine may have.
        fusion: Whether the graph is fused.
        cache_error: How much further off golden outputs may be because keys and values are kept as codes, which needs
            fusion; 0 if they are not.
        model: What the user called it.
        scheme: How the model is quantized, in words.
    """

    target: Target
    jetpack: JetPack
    plugin: KitPlugin
    runtime: Mapping[str, Path]
    footprint: Footprint
    longest_prefill: int
    fusion: bool
    cache_error: float
    model: str
    scheme: str


def longest_prefill(capacity: int, *, fused: bool) -> int:
    """The most new tokens that a call of the engine may have; `fused` means the same as in `predict_footprint`."""
    return capacity if fused else min(capacity, _LONGEST_UNFUSED_PREFILL)


def kit_record(plan: KitPlan, contents: Contents) -> KitRecord:
    """What the manifest says about the kit of an exported model."""
    vision = contents.model.vision if contents.model else None
    return KitRecord(
        target=plan.target.name,
        compute_capability=plan.target.capability_names[0],
        cpu=plan.target.cpu,
        jetpack=plan.jetpack.version,
        minimum_tensorrt=plan.jetpack.tensorrt,
        plugin_version=plan.plugin.library.version if plan.plugin.library else __version__,
        plugin_cuda=plan.plugin.library.cuda if plan.plugin.library else None,
        profiles={DECODER: decoder_profiles(plan.longest_prefill)}
        | {name: profiles_beside(name, plan.longest_prefill, vision) for name in contents.beside},
        build_bytes=plan.footprint.build_bytes,
        run_bytes=plan.footprint.run_bytes,
        disk_bytes=_engine_bytes(plan),
    )


def kit_contract(contract: IoContract, *, int8_cache: bool = False) -> IoContract:
    """Returns a graph's inputs and outputs for one conversation, or for one image."""
    contract = int8_contract(contract) if int8_cache else contract

    def fixed(tensors: tuple[TensorContract, ...]) -> tuple[TensorContract, ...]:
        return tuple(replace(t, shape=tuple(1 if axis in ONE else axis for axis in t.shape)) for t in tensors)

    return replace(contract, inputs=fixed(contract.inputs), outputs=fixed(contract.outputs))


def write_kit(
    exported: Artifact, graphs: Mapping[str, GraphRecord], directory: Path, plan: KitPlan, record: KitRecord
) -> dict[str, str]:
    """Writes the kit's files.

    Args:
        exported: An exported model.
        graphs: Its graphs, by name.
        directory: An empty directory for the kit.
        plan: What the kit consists of.
        record: What the manifest says about it.

    Returns:
        Custom operators of its graphs, by name, with the version of each.

    Raises:
        UnsupportedError: The model cannot be written for that JetPack.
        ArtifactError: The model is damaged.
    """
    names = tuple(exported.manifest.files)
    rewritten = {graph.model for graph in graphs.values()} | ({WEIGHTS_FILE} if plan.fusion else set())
    for name in names:
        if name not in rewritten:
            shutil.copyfile(exported.directory / name, directory / name)
    if plan.cache_error:
        loosen_golden_(directory, plan.cache_error)
    model, sizes = open_decoder(exported.directory)
    _write_model(model, directory, plan)
    models = {MODEL_FILE: model}
    for name, graph in graphs.items():
        if name != DECODER:
            models[graph.model] = load_model(exported.directory / graph.model)
            _write_beside(models[graph.model], directory / graph.model, plan)
    _write_plugin(plan, directory)
    _copy_files(plan.runtime, directory / RUNTIME_FOLDER)
    golden = dict.fromkeys(("golden_calls", "golden_tables", "golden_vision_inputs", "golden_vision_shapes"), "")
    golden |= {"golden_tolerance": "0", "golden_vision_tolerance": "0"}
    if DESCRIPTION_FILE in names:
        golden |= _golden_settings(directory, graphs)
    shutil.copyfile(_HERE / SCRIPT_FILE, directory / SCRIPT_FILE)
    (directory / SCRIPT_FILE).chmod(0o755)
    (directory / README_FILE).write_text(_readme(plan, record, sizes.capacity), encoding="utf-8")
    settings = _settings(plan, record) | graph_settings(graphs, models, record.profiles) | golden
    settings |= {"fraction_bits": str(_FRACTION_BITS[sizes.dtype.name.lower()]), "files": str(_files_of(directory))}
    conf = "".join(f"kit_{key}={shlex.quote(value)}\n" for key, value in sorted(settings.items()))
    (directory / CONF_FILE).write_text(conf, encoding="utf-8")
    return operators_of(*models.values())


def _files_of(directory: Path) -> int:
    """Files that a kit's `SHA256SUMS` will list: those written so far, kit.conf and the manifest."""
    return sum(path.is_file() for path in directory.rglob("*")) + 2


def _write_model(model: ir.Model, directory: Path, plan: KitPlan) -> None:
    """Rewrites the decoder for the JetPack's TensorRT and writes it, with its weights if it is fused."""
    fix_batch_(model)
    _require_kernels(model)
    drop_functions_(model)
    if not plan.jetpack.fused:
        infer_shapes_(model)  # before there are custom operators, whose outputs then keep their shapes
    if plan.fusion:
        fuse_(model)
    if plan.cache_error:
        quantize_cache_(model)
    if not plan.jetpack.fused:
        lower_to_basic_ops_(model)
    if plan.fusion:
        save_model(model, directory)
    else:
        (directory / MODEL_FILE).write_bytes(ir.to_proto(model).SerializeToString())
    onnx.checker.check_model(str(directory / MODEL_FILE))


def _write_beside(model: ir.Model, path: Path, plan: KitPlan) -> None:
    """Rewrites a graph beside the decoder for the JetPack's TensorRT, and writes it; its weights stay what they are."""
    fix_batch_(model)
    _require_kernels(model)  # linears of what the model sees with may be quantized
    drop_functions_(model)
    if not plan.jetpack.fused:
        lower_to_basic_ops_(model)
    path.write_bytes(ir.to_proto(model).SerializeToString())
    onnx.checker.check_model(str(path))


def _require_kernels(model: ir.Model) -> None:
    """Refuses at once what the plugin library would refuse on the Jetson (its `check_validity`)."""
    for node in model.graph:
        if node.domain != opset.DOMAIN:
            continue
        codes = node.inputs[1] if len(node.inputs) > 1 else None
        shape = codes.shape if codes is not None else None
        features = shape[1] if shape is not None and len(shape) == 2 else None
        known = node.op_type in opset.QUANTIZED_OPERATORS
        if not known or not isinstance(features, int) or features % opset.FEATURES_MULTIPLE:
            raise UnsupportedError(
                f"the plugin library has no kernel for {node.op_type} with K = {features}: it supports "
                f"{', '.join(opset.QUANTIZED_OPERATORS)} with a K that is a multiple of {opset.FEATURES_MULTIPLE}.",
                where=node.name,
                fix="build for an RTX card with --no-plugin, or use a model with other widths.",
            )


def _write_plugin(plan: KitPlan, directory: Path) -> None:
    if plan.plugin.library is not None:
        (directory / LIBRARY_FILE).parent.mkdir()
        shutil.copyfile(plan.plugin.library.path, directory / LIBRARY_FILE)
        return
    _copy_files(plan.plugin.sources, directory / SOURCE_FOLDER)
    major, minor = plan.target.compute_capabilities[0]
    (directory / SOURCE_FOLDER / VERSION_HEADER).write_text(
        f'#define AWQ2TRT_VERSION "{__version__}"\n#define AWQ2TRT_ARCHITECTURES "{major}{minor}-real"\n',
        encoding="utf-8",
    )


def _copy_files(files: Mapping[str, Path], directory: Path) -> None:
    """Copies files to the places that their names give."""
    for name, path in files.items():
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _settings(plan: KitPlan, record: KitRecord) -> dict[str, str]:
    """The settings that the script reads, by name."""
    return {
        "build_mib": str(_mebibytes(record.build_bytes)),
        "capability": record.compute_capability,
        "check_mib": str(_mebibytes(3 * plan.footprint.cache_bytes)),
        "cpu": record.cpu,
        "disk_mib": str(_mebibytes(record.disk_bytes)),
        "jetpack": record.jetpack,
        "jetpack_major": str(plan.jetpack.major),
        "plugin": "library" if plan.plugin.library else "sources",
        "sm": record.compute_capability.replace(".", ""),
        "tensorrt": ".".join(str(part) for part in record.minimum_tensorrt),
        "title": plan.target.title,
        "workspace_mib": str(_mebibytes(plan.footprint.workspace_bytes)),
    }


def _golden_settings(directory: Path, graphs: Mapping[str, GraphRecord]) -> dict[str, str]:
    """The golden calls that begin a conversation, since trtexec runs each by itself, and the tolerance of all calls.

    Of a model that sees, also the inputs of its golden image, with the shapes of those whose length is free.
    """
    golden = read_golden(directory)
    description = json.loads((directory / DESCRIPTION_FILE).read_bytes())
    names = [entry["name"] for entry in description["calls"] if entry["cache_position"] == 0]
    settings = {"golden_calls": " ".join(names), "golden_tolerance": f"{golden.relative_tolerance:g}"}
    settings["golden_tables"] = " ".join(description.get(TABLES, {"files": {}})["files"])
    if golden.image is not None and VISION in graphs:
        inputs = golden.image.inputs
        free = [t.name for t in graphs[VISION].io.inputs if any(is_free(axis) for axis in t.shape)]
        settings |= {
            "golden_vision_inputs": " ".join(inputs),
            "golden_vision_shapes": ",".join(f"{name}:{'x'.join(map(str, inputs[name].shape))}" for name in free),
            "golden_vision_tolerance": f"{golden.image.relative_tolerance:g}",
        }
    return settings


def _readme(plan: KitPlan, record: KitRecord, capacity: int) -> str:
    prefill = record.profiles[DECODER][0].tokens
    compiles = plan.plugin.library is None
    values = {
        "model": plan.model,
        "title": plan.target.title,
        "scheme": plan.scheme,
        "version": __version__,
        "jetpack": record.jetpack,
        "cache": f"{capacity}",
        "target": record.target,
        "capability": record.compute_capability,
        "tensorrt": ".".join(str(part) for part in record.minimum_tensorrt),
        "build": f"{record.build_bytes / _GIB:.1f}",
        "run": f"{record.run_bytes / _GIB:.1f}",
        "disk": f"{record.disk_bytes / _GIB:.1f}",
        "form": ("our operators and " if plan.fusion else "") + _FORMS[plan.jetpack.fused],
        "library": SOURCE_FOLDER + "/" if compiles else LIBRARY_FILE,
        "library_meaning": "sources of the plugin library" if compiles else "our kernels, as a TensorRT plugin library",
        "longest": prefill.longest,
        "typical": prefill.typical,
        "compile_flag": " --compile" if compiles else "",
        "compile_note": _COMPILE_NOTE if compiles else "",
        "runtime": "",
        "beside": "",
        "beside_engines": "",
    }
    if len(record.profiles) > 1:
        values["beside"] = _BESIDE
        values["beside_engines"] = ", the last of three,"
    if plan.runtime:
        megabytes = sum(path.stat().st_size for path in plan.runtime.values()) / 1e6
        section = Template(TEMPLATES[2].read_text(encoding="utf-8"))
        on_images = _SEES if len(record.profiles) > 1 else ""
        values["runtime"] = "\n" + section.substitute(folder=RUNTIME_FOLDER, size=f"{megabytes:.1f}") + on_images
    return Template(TEMPLATES[1].read_text(encoding="utf-8")).substitute(values)


_BESIDE: Final = """\
| `vision.onnx`, `vision.onnx.data` | what the model sees with: a prepared image in, what the decoder reads of it out |
| `embedding.onnx`, `embedding.onnx.data` | tokens in, what the decoder reads of them out |
| `preprocessor_config.json` | how an image is prepared |
"""

_SEES: Final = """
It runs the engines of all three graphs. Build `see` in the place of `chat` to ask about pictures:
`see/see . QUESTION PICTURE.ppm`.
"""

_COMPILE_NOTE: Final = """
JetPack 6 has CUDA 12, and there was no cross-compiler for it where this kit was made. So the kit carries the sources
of the plugin library, and `--compile` compiles them once with the `nvcc` of JetPack.
"""


def _engine_bytes(plan: KitPlan) -> int:
    """Size of the engines: weights, plugin library, a tenth for what TensorRT adds; kernels and timings are less."""
    library = plan.plugin.library.path.stat().st_size if plan.plugin.library else 0
    weights = plan.footprint.weights_bytes + plan.footprint.beside_bytes
    return math.ceil(1.1 * weights) + library + 64 * _MIB


def _mebibytes(size_bytes: int) -> int:
    return math.ceil(size_bytes / _MIB)
