"""Writes the embedding of a model that sees as an ONNX graph of its own: its decoder reads rows, not tokens.

In: a checkpoint. Out: `embedding.onnx` and `embedding.onnx.data`: tokens -> their rows, scaled where the model scales
them. Whoever runs the graphs puts what the model sees in the place of the rows of image tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from awq2trt import opset
from awq2trt.io_contract import (
    BATCH,
    EMBEDDING_FILE,
    EMBEDDING_WEIGHTS_FILE,
    INPUT_IDS,
    INPUTS_EMBEDS,
    SEQUENCE,
    IoContract,
    TensorContract,
)
from awq2trt.models.families import DecoderSpec
from awq2trt.onnx_export.bodies import make_embedding_body
from awq2trt.onnx_export.coded_nodes import embedding_rows
from awq2trt.onnx_export.external_data import ExternalDataWriter, write_graph
from awq2trt.onnx_export.streamed_weights import Checkpoint, StreamedWeights
from awq2trt.onnx_export.weights import Weights


def embedding_contract(spec: DecoderSpec, dtype: ir.DataType) -> IoContract:
    """Inputs and outputs of the graph that `export_embedding` writes with the same arguments."""
    shape = (BATCH, SEQUENCE, spec.hidden_size)
    return IoContract(
        inputs=(TensorContract(INPUT_IDS, "int64", (BATCH, SEQUENCE), "Tokens."),),
        outputs=(TensorContract(INPUTS_EMBEDS, dtype.name.lower(), shape, "Their embeddings, for the decoder."),),
    )


def export_embedding(
    checkpoint: Checkpoint, directory: Path, dtype: ir.DataType, *, function_bodies: bool
) -> IoContract:
    """Writes the graph and its weights into `directory`.

    Args:
        checkpoint: The checkpoint whose embedding is written.
        directory: Where the files go.
        dtype: Type of the rows: FLOAT16 or BFLOAT16.
        function_bodies: Define the operator of a quantized embedding by a model-local function.

    Raises:
        UnsupportedError: A weight is beyond what `dtype` holds.
        ArtifactError: The files cannot be written.
    """
    contract = embedding_contract(checkpoint.spec, dtype)

    def build(writer: ExternalDataWriter) -> ir.Model:
        weights = StreamedWeights(checkpoint, writer, dtype)
        return _build(checkpoint.spec, weights, contract, function_bodies=function_bodies)

    write_graph(directory / EMBEDDING_FILE, directory / EMBEDDING_WEIGHTS_FILE, build)
    return contract


def _build(spec: DecoderSpec, weights: Weights, contract: IoContract, *, function_bodies: bool) -> ir.Model:
    """The graph; a quantized embedding is the head's weight."""
    tape, functions = Tape(), list[ir.Function]()
    tokens, embeddings = contract.inputs[0], contract.outputs[0]
    ids = ir.Value(name=tokens.name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(tokens.shape))
    if spec.tie_embeddings and weights.quantized_head:
        coded = weights.linear(spec.embedding)
        initializers = [*coded[1]]
        functions = [make_embedding_body(coded[0])]
        rows = embedding_rows(tape, coded, ids, spec.embedding)
    else:
        plain = weights.tensor(f"{spec.embedding}.weight")  # [V, H]
        initializers = [plain]
        rows = embedding_rows(tape, plain, ids, spec.embedding)
    if spec.embedding_scale != 1:
        scale = weights.constant(f"{spec.embedding}.scale", np.asarray(spec.embedding_scale, np.float32))
        initializers.append(scale)
        rows = tape.op("Mul", [rows, scale], name=f"{spec.embedding}.scaled")
    rows.name, rows.dtype, rows.shape = embeddings.name, weights.dtype, ir.Shape(embeddings.shape)
    graph = ir.Graph(
        [ids],
        [rows],
        nodes=tape.nodes,
        initializers=initializers,
        opset_imports={"": opset.ONNX_OPSET, opset.DOMAIN: opset.DOMAIN_VERSION},
        name=f"{spec.family}_embedding",
    )
    return ir.Model(
        graph,
        ir_version=opset.ONNX_IR_VERSION,
        producer_name="awq2trt",
        functions=functions if function_bodies else [],
    )
