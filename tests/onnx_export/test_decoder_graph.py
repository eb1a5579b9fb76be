"""The graph computes the same for checkpoints with plain linears, with a quantized head, or with act-order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from foreign_checkpoints import FOREIGN, encode_gptq, save_foreign
from safetensors.torch import load_file, save_file
from tiny_models import tokens

from awq2trt.artifact.records import LayerSchemeRecord, WeightRecord
from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.errors import ArtifactError, CheckpointError
from awq2trt.evaluation.perplexity import torch_logits
from awq2trt.graph.provider_file import Lowering, lower_
from awq2trt.graph.read import open_decoder
from awq2trt.onnx_export.proof import prove_import
from awq2trt.progress import SilentProgress
from awq2trt.recipe import ExportOptions
from awq2trt.runtime import OrtBackend
from awq2trt.scheme import QuantScheme
from awq2trt.stages.export import ExportRequest, export_stage

BLOCK = "model.layers.0."

Tensors = dict[str, torch.Tensor]


def _change(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(directory / "model.safetensors"))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _left_out(*names: str) -> Callable[[Tensors], Tensors]:
    """Linears with the weight from which they were quantized, or one near it."""

    def change(tensors: Tensors) -> Tensors:
        shapes = {"q_proj": (64, 64), "down_proj": (64, 96), "up_proj": (96, 64)}
        kept = {key: value for key, value in tensors.items() if key.split(".")[-2] not in names}
        generator = torch.Generator().manual_seed(3)
        full = {key.rpartition(".")[0] for key in tensors if key.split(".")[-2] in names}
        weights = {f"{n}.weight": torch.randn(*shapes[n.split(".")[-1]], generator=generator) * 0.1 for n in full}
        return kept | {name: value.half() for name, value in weights.items()}

    return change


def _quantized_head(tensors: Tensors) -> Tensors:
    random = np.random.default_rng(5)
    codes, zeros = random.integers(0, 16, (272, 64)), random.integers(1, 16, (272, 2))
    scales = torch.from_numpy(random.uniform(1e-3, 0.05, (272, 2))).half()
    encoded = {f"lm_head.{kind}": value for kind, value in encode_gptq(4, 1)(codes, zeros, scales).items()}
    return {name: value for name, value in tensors.items() if name != "lm_head.weight"} | encoded


def _as_it_is(tensors: Tensors) -> Tensors:
    return tensors


CHANGES: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "down left out": ("awq", _left_out("down_proj")),
    "q and up left out": ("compressed", _left_out("q_proj", "up_proj")),
    "head": ("gptq", _quantized_head),
    "act-order": ("gptq-act-order", _as_it_is),
    "act-order, up left out": ("gptq-act-order", _left_out("up_proj")),
    "act-order of compressed-tensors": ("compressed-act-order", _as_it_is),
}


def _exported(layout: str, change: Callable[[Tensors], Tensors], path: Path) -> QuantizedCheckpoint:
    save_foreign(path / "foreign", FOREIGN[layout])
    _change(path / "foreign", change)
    export_stage(ExportRequest(path / "foreign", path / "onnx", ExportOptions()), SilentProgress())
    return QuantizedCheckpoint.open(path / "foreign")


@pytest.mark.parametrize("case", CHANGES)
def test_the_graph_computes_what_the_dequantized_weights_do(case: str, tmp_path: Path) -> None:
    checkpoint = _exported(*CHANGES[case], tmp_path)
    ids = tokens(1, 20)
    expected = np.concatenate(list(torch_logits(checkpoint, ids, SilentProgress(), "reference")(ids[0])))
    backend = OrtBackend.load(tmp_path / "onnx", all_logits=True, threads=1)
    got = np.concatenate(list(backend.logits(ids[0].tolist())))
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-2


def test_channels_are_gathered_once_for_all_that_read_them_and_folded_into_the_mlp(tmp_path: Path) -> None:
    _exported("gptq-act-order", _as_it_is, tmp_path)
    graph = ir.load(tmp_path / "onnx" / "model.onnx").graph
    gathers = [node.name for node in graph if node.op_type == "Gather" and str(node.name).endswith(".ordered")]
    assert gathers == [f"{BLOCK}{name}.ordered" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")]


def test_a_fused_graph_still_merges_what_reads_the_same_gathered_input(tmp_path: Path) -> None:
    _exported("gptq-act-order", _as_it_is, tmp_path)
    model, sizes = open_decoder(tmp_path / "onnx")
    lower_(model, sizes, Lowering.CUDA_FUSED)
    names = {str(node.name) for node in model.graph if node.op_type in ("W4A16Linear", "FusedLinear")}
    assert f"{BLOCK}mlp.gate_proj+up_proj" in names


def test_the_manifest_says_what_is_not_quantized_as_the_rest(tmp_path: Path) -> None:
    _exported("awq", _left_out("down_proj"), tmp_path / "left")
    _exported("gptq", _quantized_head, tmp_path / "head")
    scheme = QuantScheme(4, 32, zero_point=True)
    for name, head, exceptions in (
        ("left", WeightRecord(dtype="float16"), (LayerSchemeRecord(layers=f"{BLOCK}mlp.down_proj", scheme=None),)),
        ("head", WeightRecord(dtype="float16", scheme=scheme), ()),
    ):
        again = ExportRequest(tmp_path / name / "foreign", tmp_path / name / "again", ExportOptions())
        record = export_stage(again, SilentProgress()).manifest.contents.quantization
        assert (record.head, record.exceptions) == (head, exceptions)


def test_a_wrong_order_does_not_pass_the_proof(tmp_path: Path) -> None:
    checkpoint = _exported("gptq-act-order", _as_it_is, tmp_path)
    model = ir.load(tmp_path / "onnx" / "model.onnx")
    indices = model.graph.initializers[f"{BLOCK}self_attn.o_proj.input_order"]
    assert indices.const_value is not None
    indices.const_value = ir.Tensor(np.roll(indices.const_value.numpy(), 1))
    with pytest.raises(ArtifactError, match=r"self_attn\.o_proj: the exported weight is not the checkpoint's"):
        prove_import(checkpoint, model, SilentProgress())


def test_a_weight_of_another_shape_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    save_foreign(tmp_path, FOREIGN["awq"])
    _change(tmp_path, _left_out("down_proj"))
    _change(tmp_path, lambda found: {k: v.T.contiguous() if "down_proj" in k else v for k, v in found.items()})
    with pytest.raises(CheckpointError, match=r"down_proj\.weight: expected weights \[64, 96\].*got F16 \[96, 64\]"):
        QuantizedCheckpoint.open(tmp_path)
