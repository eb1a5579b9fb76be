"""The graphs beside a decoder, as ONNX Runtime runs them best: what a model sees with, and its embedding.

In: a graph as `export` wrote it. Out: the same, changed in place.

The embedding always runs on the CPU, whatever runs the decoder: it reads a row a token from a table that may then stay
out of a GPU's memory, and gives it in fp32, in which NumPy has it whatever the table's type. What the model sees with
runs where the decoder does: on the CPU in fp32, on a GPU as it was exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from awq2trt.artifact.records import GraphRecord
from awq2trt.errors import ArtifactError
from awq2trt.graph import ort_lowering
from awq2trt.graph.provider_file import save_model, widened_contract
from awq2trt.graph.read import load_model
from awq2trt.io_contract import EMBEDDING, VISION, IoContract


def lower_beside_(model: ir.Model, graph: str, *, on_cpu: bool) -> None:
    """Rewrites, in memory, one of the graphs beside a decoder.

    Args:
        model: It; changed.
        graph: `VISION` or `EMBEDDING`.
        on_cpu: The decoder runs on the CPU.

    Raises:
        ArtifactError: It is another graph.
    """
    if graph == EMBEDDING:
        ort_lowering.lower_linears_(model, widened=True)
        _drop_unused_(model)
        ort_lowering.widen_to_fp32_(model)
    elif graph != VISION:
        raise ArtifactError(f"expected {VISION} or {EMBEDDING}, got {graph!r}.", where="graphs", fix="export it again.")
    elif on_cpu:
        ort_lowering.widen_to_fp32_(model, keeps_tables=False)


def _drop_unused_(model: ir.Model) -> None:
    """Drops what a quantized embedding leaves for the head that shares its weight: here is none."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def contract_beside(contract: IoContract, graph: str, *, on_cpu: bool) -> IoContract:
    """Inputs and outputs of what `lower_beside_` makes with the same arguments."""
    return widened_contract(contract) if graph == EMBEDDING or on_cpu else contract


def write_beside(
    exported: Path, graphs: Mapping[str, GraphRecord], directory: Path, *, on_cpu: bool
) -> dict[str, GraphRecord]:
    """Writes the graphs beside a decoder, lowered.

    Args:
        exported: Directory of the exported model.
        graphs: By name.
        directory: The caller's.
        on_cpu: The decoder runs on the CPU.

    Returns:
        What a manifest says of them.

    Raises:
        ArtifactError: An exported graph is damaged.
    """
    written = {}
    for name, graph in graphs.items():
        model = load_model(exported / graph.model)
        lower_beside_(model, name, on_cpu=on_cpu)
        save_model(model, directory, name=graph.model)
        written[name] = graph.model_copy(update={"io": contract_beside(graph.io, name, on_cpu=on_cpu)})
    return written
