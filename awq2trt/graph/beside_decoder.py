"""The graphs beside a decoder, as ONNX Runtime runs them best: what a model sees with, and its embedding.

In: a graph as `export` wrote it. Out: the same, changed in place.

The embedding always runs on the CPU, whatever runs the decoder: it reads a row a token from a table that may then stay
out of a GPU's memory, and gives it in fp32; `narrow_rows_` lets it give the type of a decoder on a GPU. What the model
sees with runs where the decoder does: on the CPU in fp32, on a GPU in the type in which it was exported. Where linears
of it are quantized, ONNX Runtime's own kernels read their codes on both: an image has hundreds of rows, for which a
decoder's kernels are not made, and no session of it then needs a library of operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from awq2trt.artifact.records import GraphRecord
from awq2trt.errors import ArtifactError
from awq2trt.graph import ort_lowering
from awq2trt.graph.flat_attention import flatten_attention_
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
    else:
        if any(map(ort_lowering.is_quantized_linear, model.graph)):
            ort_lowering.lower_linears_(model, widened=on_cpu)
        if on_cpu:
            ort_lowering.widen_to_fp32_(model, keeps_tables=False)
        else:
            flatten_attention_(model)


def narrow_rows_(model: ir.Model, dtype: ir.DataType) -> None:
    """Makes a lowered embedding give its rows in a decoder's type.

    ONNX Runtime then computes with neither cast of a row that only went through fp32.
    """
    (rows,) = model.graph.outputs
    if rows.dtype is dtype:
        return
    node = rows.producer()
    assert node is not None  # since nobody gives tokens as rows
    cast = ir.node("Cast", [rows], {"to": dtype.value}, name="rows_narrowed")
    narrowed = cast.outputs[0]
    narrowed.name, narrowed.shape, narrowed.dtype = rows.name, rows.shape, dtype
    rows.name = f"{rows.name}.wide"
    model.graph.insert_after(node, cast)
    model.graph.outputs[0] = narrowed


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
