"""Where the plugin library is found, how it describes itself, and that TensorRT-RTX builds engines with it inside."""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import awq2trt
from awq2trt import opset
from awq2trt.errors import ToolError
from awq2trt.machine import plugin_library
from awq2trt.machine.kernels import GemmProblem
from awq2trt.machine.plugin_library import PluginLibrary, find_plugin_library, load_into_registry

REPOSITORY = Path(__file__).parents[2]
BUILD_FOLDER = REPOSITORY / "build" / "plugins"
OPS = REPOSITORY / "plugins" / "ops"

N, K, GROUP_SIZE = 96, 320, 128
GROUPS = 3


@pytest.fixture
def library() -> PluginLibrary:
    if not (BUILD_FOLDER / plugin_library.LIBRARY_NAME).is_file():
        pytest.skip("needs the plugin library: make plugins")
    return find_plugin_library()


def _names_in(header: str) -> dict[str, str]:
    """String constants of a header of plugins/ops."""
    return dict(re.findall(r'constexpr char (\w+)\[\] = "(\w+)";', (OPS / header).read_text()))


EMBEDDINGS = "quantized_embedding.h"
"""The two operators, by the width of their codes."""

BEST_TOKEN = "best_token.h"
"""For ONNX Runtime alone, without attributes or a plugin's version."""

NAMES_OF_OPERATORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cached_attention.h": (
        opset.CACHED_ATTENTION,
        (
            *opset.ATTENTION_INT_ATTRIBUTES,
            *opset.ATTENTION_FLOAT_ATTRIBUTES,
            opset.ATTR_HAS_CACHE_SCALES,
            opset.ATTR_HAS_VISIBLE_END,
        ),
    ),
    "fused_linear.h": (
        opset.FUSED_LINEAR,
        (*opset.FUSED_LINEAR_INT_ATTRIBUTES, *opset.FUSED_LINEAR_FLOAT_ATTRIBUTES),
    ),
    "gated_activation.h": (opset.GATED_ACTIVATION, (opset.ATTR_ACTIVATION,)),
    "residual_norm.h": (opset.RESIDUAL_NORM, (*opset.NORM_INT_ATTRIBUTES, *opset.NORM_FLOAT_ATTRIBUTES)),
    "w4a16_linear.h": (opset.W4A16_LINEAR, (opset.ATTR_GROUP_SIZE, opset.ATTR_HAS_ZEROS, opset.ATTR_HAS_BIAS)),
}


@pytest.mark.parametrize("header", NAMES_OF_OPERATORS)
def test_cpp_and_python_agree_on_names(header: str) -> None:
    name, attributes = NAMES_OF_OPERATORS[header]
    assert _names_in("operator.h") == {"kDomain": opset.DOMAIN}
    assert opset.DOMAIN == opset.PLUGIN_NAMESPACE
    constants = {f"k{attribute.title().replace('_', '')}": attribute for attribute in attributes}
    if header == "w4a16_linear.h":
        constants["kName8"] = opset.W8A16_LINEAR
    assert _names_in(header) == {"kName": name, "kVersion": opset.PLUGIN_VERSION, **constants}


def test_cpp_and_python_agree_on_names_of_embeddings() -> None:
    assert _names_in(EMBEDDINGS) == {
        "kName4": opset.W4A16_EMBEDDING,
        "kName8": opset.W8A16_EMBEDDING,
        "kVersion": opset.PLUGIN_VERSION,
        "kGroupSize": opset.ATTR_GROUP_SIZE,
        "kHasZeros": opset.ATTR_HAS_ZEROS,
    }


def test_cpp_and_python_agree_on_the_name_of_the_best_token() -> None:
    assert _names_in(BEST_TOKEN) == {"kName": opset.BEST_TOKEN}


def test_every_operator_is_held_to_its_names() -> None:
    assert {path.name for path in OPS.glob("*.h")} - {"operator.h", EMBEDDINGS, BEST_TOKEN} == set(NAMES_OF_OPERATORS)
    written = {name for name, _ in NAMES_OF_OPERATORS.values()}
    assert written == {opset.W4A16_LINEAR, *opset.FUSED_OPERATORS}


def test_variable_comes_first_and_must_name_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(plugin_library.PATH_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(ToolError, match=r"missing\.so, which is not a file.*AWQ2TRT_PLUGIN_PATH"):
        find_plugin_library()


def test_a_file_that_is_no_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not ELF")
    monkeypatch.setenv(plugin_library.PATH_VARIABLE, str(path))
    with pytest.raises(ToolError, match=r"text\.so: this plugin library cannot be used"):
        find_plugin_library()


def test_none_found_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(plugin_library.PATH_VARIABLE, raising=False)
    monkeypatch.setattr(plugin_library, "_PACKAGE", tmp_path / "awq2trt")
    with pytest.raises(ToolError, match=r"looked in .*awq2trt/lib and .*build/plugins.*make plugins"):
        find_plugin_library()


def test_library_describes_itself(library: PluginLibrary) -> None:
    assert library.version == awq2trt.__version__
    assert {"80-real", "86-real", "87-real", "89-real", "90-real"} <= set(library.architectures)
    assert any(name.endswith("-virtual") for name in library.architectures), "no PTX for later GPUs"
    assert library.cuda_version >= 12000


def test_cpp_and_python_agree_on_k(library: PluginLibrary) -> None:
    check = ctypes.CDLL(str(library.path)).awq2trt_check_validity
    check.restype = ctypes.c_char_p
    for k in range(-8, 65):
        reason = check(ctypes.byref(GemmProblem(m=1, n=3, k=k, group_size=4)))
        assert (reason is None) == (k > 0 and k % opset.FEATURES_MULTIPLE == 0), f"K = {k}: {reason}"


def test_library_links_none_of_its_runtimes(library: PluginLibrary) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf, of binutils")
    dynamic = subprocess.run([readelf, "--dynamic", library.path], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert needed
    runtimes = ("nvinfer", "tensorrt", "onnxruntime", "cudart", "libcuda")
    assert not [name for name in needed if any(runtime in name for runtime in runtimes)]


def test_stub_library_stands_for_the_one_it_needs(tmp_path: Path) -> None:
    """This needs a process of its own, since a loaded library stays."""
    script = f"""
import ctypes
from pathlib import Path
from awq2trt.machine.plugin_library import _stub_library
stub = Path({str(tmp_path / "any-name.so")!r})
stub.write_bytes(_stub_library(soname="libawq2trt_test_stub.so", needed="libm.so.6"))
ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)
stub.unlink()
cosine = ctypes.CDLL("libawq2trt_test_stub.so").cos
cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
assert cosine(0.0) == 1.0
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.trt
def test_unversioned_rtx_library_can_be_opened() -> None:
    importlib.import_module("tensorrt_rtx")
    plugin_library.ensure_unversioned_rtx_library()
    assert hasattr(ctypes.CDLL("libtensorrt_rtx.so"), "getInferLibVersion")


@pytest.mark.trt
@pytest.mark.parametrize("zeros", [False, True])
def test_tensorrt_rtx_builds_an_engine_with_the_plugin_inside(library: PluginLibrary, zeros: bool) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    load_into_registry(trt, library)
    load_into_registry(trt, library)  # twice is harmless
    codes = np.random.default_rng(7).integers(0, 256, N * K // 2, dtype=np.uint8).tobytes()

    def build(plugins: list[str]) -> bytes:
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse(_linear_model(codes, zeros=zeros, bias=True)), [
            str(parser.get_error(i)) for i in range(parser.num_errors)
        ]
        assert [layer.type for layer in network].count(trt.LayerType.PLUGIN_V3) == 1
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 1, K), (1, 1, K), (1, 64, K))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        config.plugins_to_serialize = plugins
        engine = builder.build_serialized_network(network, config)
        assert engine is not None
        return bytes(engine)

    without, with_plugin = build([]), build([str(library.path)])
    assert codes in without, "the engine holds the packed bytes as they are"
    grown = len(with_plugin) - len(without)
    assert library.path.stat().st_size <= grown < library.path.stat().st_size + 4096, "the library is not inside"


@pytest.mark.trt
def test_errors_of_the_plugin_reach_the_logger_of_tensorrt_rtx(library: PluginLibrary, tmp_path: Path) -> None:
    """This needs a process of its own, since the plugin registry keeps the first logger that it meets."""
    importlib.import_module("tensorrt_rtx")
    codes = bytes(N * K // 2)
    model = onnx.load_from_string(_linear_model(codes, zeros=False, bias=False))
    next(a for a in model.graph.node[0].attribute if a.name == opset.ATTR_GROUP_SIZE).i = 0
    onnx.save(model, tmp_path / "bad.onnx")
    script = f"""
import json
import tensorrt_rtx as trt
from awq2trt.machine.plugin_library import find_plugin_library, load_into_registry

class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.messages = []
    def log(self, severity, message):
        self.messages.append((severity.name, message))

logger = Logger()
builder = trt.Builder(logger)
load_into_registry(trt, find_plugin_library())
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert not parser.parse_from_file({str(tmp_path / "bad.onnx")!r})
print(json.dumps(logger.messages))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    message = "W4A16Linear: attribute group_size must be at least 1, got 0"
    assert ["ERROR", message] in json.loads(result.stdout.splitlines()[-1])
    assert message not in result.stderr


@pytest.mark.slow
def test_native_tests_pass(library: PluginLibrary) -> None:
    """Runs the GoogleTests of plugins/, and the check that hot kernels do not spill."""
    ctest = shutil.which("ctest")
    if ctest is None:
        pytest.skip("needs ctest, of CMake")
    result = subprocess.run(
        [ctest, "--test-dir", BUILD_FOLDER, "--output-on-failure"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert "ptxas_spills" in result.stdout


def _linear_model(codes: bytes, *, zeros: bool, bias: bool) -> bytes:
    """An ONNX model of one W4A16Linear node, fp16, with a dynamic number of tokens."""
    random = np.random.default_rng(11)
    fp16, int4 = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT4
    initializers = [
        onnx.helper.make_tensor("codes", int4, (N, K), codes, raw=True),
        onnx.helper.make_tensor(
            "scales", fp16, (N, GROUPS), random.uniform(0.01, 0.02, (N, GROUPS)).astype(np.float16).tobytes(), raw=True
        ),
    ]
    if zeros:
        packed = random.integers(0, 256, (N * GROUPS + 1) // 2, dtype=np.uint8).tobytes()
        initializers.append(onnx.helper.make_tensor("zeros", int4, (N, GROUPS), packed, raw=True))
    if bias:
        values = random.standard_normal(N).astype(np.float16).tobytes()
        initializers.append(onnx.helper.make_tensor("bias", fp16, (N,), values, raw=True))
    node = onnx.helper.make_node(
        opset.W4A16_LINEAR,
        ["x", *(tensor.name for tensor in initializers)],
        ["y"],
        domain=opset.DOMAIN,
    )
    attributes: dict[str, int | str] = {
        opset.ATTR_GROUP_SIZE: GROUP_SIZE,
        opset.ATTR_HAS_ZEROS: int(zeros),
        opset.ATTR_HAS_BIAS: int(bias),
        opset.ATTR_PLUGIN_VERSION: opset.PLUGIN_VERSION,
        opset.ATTR_PLUGIN_NAMESPACE: opset.PLUGIN_NAMESPACE,
    }
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())
    graph = onnx.helper.make_graph(
        [node],
        "linear",
        [onnx.helper.make_tensor_value_info("x", fp16, (1, "tokens", K))],
        [onnx.helper.make_tensor_value_info("y", fp16, (1, "tokens", N))],
        initializers,
    )
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid(opset.DOMAIN, opset.DOMAIN_VERSION)]
    return bytes(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
