"""A tower whose attention reads rows as linears make them: the same numbers with fewer nodes, in each kind of tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tiny_flamingo import export_flamingo
from tiny_gemma3 import export_gemma3
from tiny_llava import export_llava
from tiny_qwen_vl import export_qwen3_vl, export_qwen_vl
from tiny_smolvlm import export_smolvlm

from awq2trt.artifact.golden import read_golden, relative_error
from awq2trt.artifact.manifest import Artifact
from awq2trt.graph.flat_attention import flatten_attention_
from awq2trt.graph.ort_lowering import widen_to_fp32_
from awq2trt.graph.read import load_model
from awq2trt.io_contract import VISION_FILE
from awq2trt.runtime.ort.session import open_session


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention"]


def _count_transposes(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)


@pytest.mark.parametrize(
    "export", [export_llava, export_smolvlm, export_gemma3, export_qwen_vl, export_qwen3_vl, export_flamingo]
)
def test_every_tower_gives_the_same_without_moving_heads(export: Callable[[Path], Artifact], tmp_path: Path) -> None:
    path = export(tmp_path).directory / VISION_FILE
    image = read_golden(path.parent).image
    assert image is not None
    feed = {name: _wide(array) for name, array in image.inputs.items()}
    expected, model = load_model(path), load_model(path)
    for one in (expected, model):
        widen_to_fp32_(one, keeps_tables=False)
    flatten_attention_(model)
    assert len(_attentions(model)) == len(_attentions(expected)) > 0
    assert all({"q_num_heads", "kv_num_heads"} <= set(node.attributes) for node in _attentions(model))
    turned = 4 * len(_attentions(expected))  # queries, keys, values, and what comes of them
    assert _count_transposes(expected) - _count_transposes(model) == turned
    (before,), (after,) = (open_session(one, path).run(None, feed) for one in (expected, model))
    assert relative_error(after, before) < 1e-5
    assert relative_error(after, _wide(image.embeddings).reshape(after.shape)) < 1e-2


def test_attention_of_another_form_stays(tmp_path: Path) -> None:
    """One whose output is read before its heads are moved back."""
    path = export_llava(tmp_path).directory / VISION_FILE
    model = load_model(path)
    first, *rest = _attentions(model)
    model.graph.outputs.append(first.outputs[0])
    flatten_attention_(model)
    assert "q_num_heads" not in first.attributes
    assert [node for node in _attentions(model) if "q_num_heads" not in node.attributes] == [first]
    assert len(_attentions(model)) == 1 + len(rest)


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array
