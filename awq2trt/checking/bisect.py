"""Reduces a failing block to the nodes that fail, as a small model with its inputs, to attach to a bug report.

In: a checked build whose exported model fails at a block. Every linear's input and output has a name in the graph and a
value in PyTorch, so that a block can be split at values that can be compared. Out: the first piece whose result is
wrong although its inputs are right, as a separate model with the inputs it had, the outputs it should have given, and
the command that shows the difference.
"""

from __future__ import annotations

import math
import textwrap
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import save_json
from polygraphy.logger import G_LOGGER
from torch import Tensor

from awq2trt.checking.beside import begun
from awq2trt.checking.measures import difference
from awq2trt.checking.results import ONNX, QUANTIZED, CheckResult
from awq2trt.checking.runners import (
    SPARE_SLOTS,
    CachedOnnxRunner,
    GraphExecution,
    block_values,
    calls_of,
    expose_,
    open_runnable,
)
from awq2trt.checking.subject import Subject
from awq2trt.checking.tolerance import drift_limit
from awq2trt.graph import ort_lowering
from awq2trt.graph.read import open_decoder
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS, MODEL_FILE
from awq2trt.models.block_weights import load_block
from awq2trt.models.decoder import Ends

Array = NDArray[Any]

INPUTS_FILE: Final = "inputs.json"
EXPECTED_FILE: Final = "expected.json"
README_FILE: Final = "README.md"


@dataclass(frozen=True)
class Cut:
    """The piece that fails.

    Attributes:
        folder: The folder that holds it.
        node: Name of the node that gives the first wrong value.
        op_type: Operator of that node.
        nodes: How many nodes the piece has.
        error: Relative error of its result.
        limit: Limit of that error.
        command: The command that shows the difference.
    """

    folder: Path
    node: str
    op_type: str
    nodes: int
    error: float
    limit: float
    command: str


def bisect(subject: Subject, result: CheckResult, folder: Path) -> Cut | None:
    """Finds the piece and writes it.

    Args:
        subject: What was checked.
        result: The result of the check.
        folder: Where the piece goes; created if necessary.

    Returns:
        The piece; None if every block of the exported model is within its limit.
    """
    blocks = next(stage for stage in result.stages if stage.stage == ONNX).blocks
    failing = [index for index, place in enumerate(blocks) if not place.passed]
    if subject.onnx is None or not failing:
        return None
    layer = failing[0]
    limit = drift_limit(subject.dtype, layer + 1)
    expected = _expected_values(subject, result.tokens, layer)
    for call, got, inputs in _recorded_calls(subject, subject.onnx, result.tokens, list(expected)):
        start = int(call[CACHE_POSITION][0])
        rows = slice(start, start + call[INPUT_IDS].shape[1])
        right: dict[str, Array] = {}
        for name, whole in expected.items():
            value = got[name]
            error = difference(whole[rows], value.reshape(-1, value.shape[-1])).max_relative
            if not error <= limit:  # NaN, too
                boundary = {**inputs, **right}
                return _write_piece(subject.onnx, name, boundary, whole[None, rows], (error, limit), folder)
            right[name] = value
    return None


def _expected_values(subject: Subject, tokens: Sequence[int], layer: int) -> dict[str, Array]:
    """PyTorch's results for values of the graph, float32 [S, channels], in the order in which the graph computes them.

    They are the block's input, the input and output of each of its linears, and its output.
    """
    if subject.onnx is None:
        return {}
    source, spec = subject.checkpoint, subject.checkpoint.spec
    inputs: dict[str, Tensor] = {}
    with torch.inference_mode():
        before, runner = begun(source, Ends(source), tokens)
        for earlier in range(layer):
            before = runner.run(load_block(source, earlier), before, layer=earlier)
        weights = load_block(source, layer)
        after = runner.run(weights, before, layer=layer, observe=inputs.__setitem__)
    model, _ = open_decoder(subject.onnx)
    blocks = block_values(model, spec)
    known = {blocks[layer]: after[0]}
    if layer:
        known[blocks[layer - 1]] = before[0]
    nodes = {node.name: node for node in model.graph}
    for group in spec.scale_groups():
        x = inputs.get(group.balance_layers[0])
        for name in group.balance_layers:
            node = nodes.get(spec.prefix(layer) + name)
            if x is not None and node is not None and node.inputs[0] is not None:
                known[node.inputs[0]] = x
                known[node.outputs[0]] = F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
    order = {value: index for index, node in enumerate(model.graph) for value in node.outputs}
    return {str(value.name): known[value].numpy() for value in sorted(known, key=order.__getitem__)}


def _recorded_calls(
    subject: Subject, onnx: Path, tokens: Sequence[int], names: Sequence[str]
) -> Iterator[tuple[Mapping[str, Array], dict[str, Array], dict[str, Array]]]:
    """The calls of the check, each with values of the graph in it and with all of its inputs, including caches."""
    model, sizes = open_runnable(onnx)
    values = {value.name: value for node in model.graph for value in node.outputs}
    for index, name in enumerate(names):
        expose_(model, values[name], f"value_{index}")
    ort_lowering.keep_all_positions_(model)
    ort_lowering.free_capacity_(model)
    execution = GraphExecution.of(subject.checkpoint, len(tokens) + SPARE_SLOTS)
    runner = CachedOnnxRunner(model, sizes, onnx, execution, name=ONNX)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), runner:
        for call in calls_of(tokens):
            outputs = runner.infer(call)
            yield call, {name: outputs[f"value_{index}"] for index, name in enumerate(names)}, runner.last_inputs


def _write_piece(
    onnx: Path, name: str, boundary: Mapping[str, Array], expected: Array, measured: tuple[float, float], folder: Path
) -> Cut:
    """Cuts out the nodes that compute a value from values that are right, and writes them with their inputs.

    Args:
        onnx: Directory of the exported model.
        name: Name of the value.
        boundary: Values that are right and inputs of the graph, in the failing call.
        expected: What the value should be, float32 [1, S, channels].
        measured: Its relative error, and the limit of that.
        folder: Where the files go.
    """
    model, sizes = open_runnable(onnx)
    ort_lowering.free_capacity_(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    inputs = _reached(values[name], set(boundary))
    producer = values[name].producer()
    for boundary_name in inputs & set(values):
        # The graph has types and shapes only of its own inputs and outputs.
        values[boundary_name].dtype = sizes.dtype
        values[boundary_name].shape = ir.Shape(boundary[boundary_name].shape)
    graph = ir.convenience.extract(model.graph, sorted(inputs), [name])
    piece = ir.Model(graph, ir_version=model.ir_version, functions=[*model.functions.values()])
    folder.mkdir(parents=True, exist_ok=True)
    ir.external_data.load_to_model(piece)
    (folder / MODEL_FILE).write_bytes(ir.to_proto(piece).SerializeToString())
    dtypes = {value.name: value.dtype.numpy() for value in graph.inputs if value.dtype is not None}
    feed = OrderedDict((key, boundary[key].astype(dtypes[key])) for key in sorted(inputs))
    results = RunResults()
    results.append((QUANTIZED, [IterationResult({name: expected}, runner_name=QUANTIZED)]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        save_json([feed], str(folder / INPUTS_FILE))
        results.save(str(folder / EXPECTED_FILE))
    command = (
        f"polygraphy run {MODEL_FILE} --onnxrt --load-inputs {INPUTS_FILE} --load-outputs {EXPECTED_FILE} "
        f"--compare snr --snr-threshold {-20 * math.log10(measured[1]):.2f} --validate"
    )
    cut = Cut(
        folder=folder,
        node=str(producer.name) if producer else name,
        op_type=str(producer.op_type) if producer else "",
        nodes=len(graph),
        error=measured[0],
        limit=measured[1],
        command=command,
    )
    (folder / README_FILE).write_text(_README.format(cut=cut, inputs=", ".join(sorted(inputs))), encoding="utf-8")
    return cut


def _reached(value: ir.Value, boundary: set[str]) -> set[str]:
    """Names of the boundary values from which a value is computed."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        producer = current.producer()
        for source in producer.inputs if producer else ():
            if source is None or source in seen:
                continue
            seen.add(source)
            if source.name in boundary:
                found.add(source.name)
            else:
                waiting.append(source)
    return found


_README: Final = textwrap.dedent("""\
    # Where the exported model goes wrong

    The node `{cut.node}` ({cut.op_type}) is the first whose result is not what PyTorch computes: its relative error is
    {cut.error:.2g}, expected at most {cut.limit:.2g}. This folder holds the {cut.nodes} nodes from the last values
    that are right to that result, with the inputs that they had.

    In this folder, with `pip install polygraphy onnxruntime`, this shows the difference (it exits with 1):

        {cut.command}

    Inputs: {inputs}. `expected.json` is the result in PyTorch, fp32.
    """)
