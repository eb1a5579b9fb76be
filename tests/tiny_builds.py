"""Builds of a tiny model, the findings of `awq2trt check` about them, and faults to plant in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import plant_faults
import tiny_models
from numpy.typing import NDArray

from awq2trt import opset
from awq2trt.checking.results import CheckResult
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions, QuantizeOptions
from awq2trt.stages.check import CheckRequest, check_stage
from awq2trt.stages.export import ExportRequest, export_stage
from awq2trt.stages.quantize import QuantizeRequest, quantize_stage

LAYERS = 3
TEXT = "Any text is a text of a byte-level tokenizer, and this one has more bytes than the windows need. " * 8
AWQ = QuantizeOptions(group_size=32, samples=2, seqlen=16)


def save_model(directory: Path, **overrides: Any) -> Path:
    """A random Llama of three blocks whose linears of attention have biases."""
    return tiny_models.save_llama(directory, num_hidden_layers=LAYERS, attention_bias=True, **overrides)


def make_build(model: Path, directory: Path, text: Path, **quantize: Any) -> Path:
    """Makes what `awq2trt build` would leave, without an engine; `text` is the calibration text that it writes."""
    text.write_text(TEXT)
    options = QuantizeOptions(group_size=32, samples=4, seqlen=64, calib=str(text), **quantize)
    quantize_stage(QuantizeRequest(str(model), directory / "checkpoint", options), SilentProgress())
    export = ExportRequest(directory / "checkpoint", directory / "onnx", ExportOptions(max_seq_len=128))
    export_stage(export, SilentProgress())
    return directory


def check(directory: Path, model: Path | None, tokens: int = 48) -> CheckResult:
    """The findings of `awq2trt check` about a build of `model`."""
    output = directory.parent / "by-hand"
    request = CheckRequest(directory, model=str(model) if model else None, tokens=tokens, output=output)
    return check_stage(request, SilentProgress()).result


def first_failure(directory: Path, model: Path) -> tuple[str, str, str]:
    """Stage, place and message of the first failure, which must exist."""
    result = check(directory, model)
    assert not result.passed
    failure = result.first_failure()
    assert failure is not None
    return failure.stage, failure.place, failure.message


def run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that the check printed, with this environment's polygraphy."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


# Faults of the checkpoint's tensors.


def double_a_scale(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.double_a_scale_(tensors, "model.layers.1.self_attn.k_proj", 5)


def move_a_zero_point(tensors: dict[str, NDArray[Any]]) -> None:
    """Moves the zero points of three rows; a single one could be the search's doing if it moves codes."""
    for row in (7, 8, 9):
        plant_faults.move_a_zero_point_(tensors, "model.layers.2.mlp.gate_proj", row)


def swap_two_rows(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.swap_rows_(tensors, "model.layers.0.mlp.down_proj", 3, 4)


def swap_nibbles(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.swap_nibbles_(tensors, "model.layers.2.self_attn.q_proj")


def drop_a_bias(tensors: dict[str, NDArray[Any]]) -> None:
    del tensors["model.layers.1.self_attn.v_proj.bias"]


def plant_a_nan(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["model.layers.2.post_attention_layernorm.weight"][3] = np.nan


def plant_a_nan_scale(tensors: dict[str, NDArray[Any]]) -> None:
    plant_faults.plant_a_nan_(tensors, "model.layers.1.mlp.up_proj")


# Faults of the exported graph.


def write_the_cache_one_slot_late(model: ir.Model) -> None:
    plant_faults.write_the_cache_late_(model, "model.layers.1")


def mask_out_the_token_itself(model: ir.Model) -> None:
    plant_faults.move_the_mask_(model, "Sub")


def see_the_next_token(model: ir.Model) -> None:
    plant_faults.move_the_mask_(model, "Add")


def drop_a_bias_of_the_graph(model: ir.Model) -> None:
    (node,) = (node for node in model.graph if node.name == "model.layers.1.self_attn.v_proj")
    (plain,) = (node for node in model.graph if node.name == "model.layers.1.mlp.gate_proj")
    attributes = {**node.attributes, opset.ATTR_HAS_BIAS: ir.AttrInt64(opset.ATTR_HAS_BIAS, 0)}
    new = ir.Node(
        node.domain, node.op_type, node.inputs[:-1], list(attributes.values()), overload=plain.overload, name=node.name
    )
    new.outputs[0].name, new.outputs[0].type = f"{node.outputs[0].name}", node.outputs[0].type
    del model.graph.initializers["model.layers.1.self_attn.v_proj.bias"]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)


def read_keys_as_values(model: ir.Model) -> None:
    """Reads keys as values in the cache only: prefill is right, decoding is not."""
    inputs = {value.name: value for value in model.graph.inputs}
    for scatter in [node for node in model.graph if node.op_type == "TensorScatter"][4:]:
        past = scatter.inputs[0]
        assert past is not None
        other = {"past_key_2": "past_value_2", "past_value_2": "past_key_2"}[str(past.name)]
        scatter.replace_input_with(0, inputs[other])
