"""Random models: the same tensors as a checkpoint gives, drawn in the graph's layout, and no bytes twice."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tiny_checkpoints import LLAMA, RandomCheckpoint

from awq2trt.evaluation.random_model import RandomModel, small_numbers
from awq2trt.io_contract import MODEL_FILE, WEIGHTS_FILE
from awq2trt.onnx_export import export_onnx
from awq2trt.onnx_export.streamed_weights import Checkpoint
from awq2trt.runtime.ort.backend import OrtBackend
from awq2trt.scheme import QuantScheme


def _exported(checkpoint: Checkpoint, directory: Path) -> dict[str, ir.TensorProtocol]:
    directory.mkdir()
    export_onnx(checkpoint, directory)
    values = ir.load(directory / MODEL_FILE).graph.initializers
    return {name: value.const_value for name, value in values.items() if value.const_value is not None}


@pytest.mark.parametrize(
    ("scheme", "head", "changes"),
    [
        (QuantScheme(group_size=64), None, {}),
        (QuantScheme(group_size=64, zero_point=False), QuantScheme(8, 64), {}),
        (QuantScheme(group_size=32), QuantScheme(8, 32), {"tie_word_embeddings": True}),
        (QuantScheme(group_size=64), QuantScheme(4, 64), {"attention_bias": True}),
    ],
)
def test_graph_has_the_tensors_of_a_checkpoint(
    tmp_path: Path, scheme: QuantScheme, head: QuantScheme | None, changes: dict[str, Any]
) -> None:
    drawn = _exported(RandomModel({**LLAMA, **changes}, scheme, head), tmp_path / "drawn")
    packed = _exported(RandomCheckpoint(scheme, head, **changes), tmp_path / "packed")

    kinds = [
        {name: (tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in tensors.items()}
        for tensors in (drawn, packed)
    ]
    assert kinds[0] == kinds[1]
    assert (tmp_path / "drawn" / WEIGHTS_FILE).stat().st_size == (tmp_path / "packed" / WEIGHTS_FILE).stat().st_size
    codes = [tensor.tobytes() for name, tensor in drawn.items() if name.endswith(".codes")]
    assert len(set(codes)) == len(codes) >= 14, "weights are read from memory of their own, with bytes of their own"


def test_every_code_is_drawn(tmp_path: Path) -> None:
    tensors = _exported(RandomModel(LLAMA, QuantScheme(group_size=64), QuantScheme(8, 64)), tmp_path / "drawn")

    codes = tensors["model.layers.0.mlp.up_proj.codes"].numpy().astype(np.int8)
    counts = np.bincount(codes.reshape(-1) + 8, minlength=16)
    assert counts.min() > codes.size / 16 * 0.7  # [96, 72]: 432 times each, with a standard deviation of 20
    head = tensors["lm_head.codes"].numpy()
    assert (head.min(), head.max()) == (-128, 127)


def test_a_nibble_that_belongs_to_no_code_is_zero(tmp_path: Path) -> None:
    odd = {**LLAMA, "vocab_size": 121, "hidden_size": 72}
    tensors = _exported(RandomModel(odd, QuantScheme(group_size=64), QuantScheme(4, -1)), tmp_path / "drawn")

    zeros = tensors["lm_head.zeros"]  # [121, 1]
    assert len(zeros.tobytes()) == 61
    assert zeros.tobytes()[-1] < 16


def test_a_name_always_gives_the_same_tensor() -> None:
    one, other = (RandomModel(LLAMA, QuantScheme()) for _ in range(2))
    name = "model.layers.1.mlp.up_proj"

    assert np.array_equal(one.linear(name).codes, other.linear(name).codes)
    assert not np.array_equal(one.linear(name).codes, one.linear(name.replace("1", "0")).codes)
    table = one.tensor("model.embed_tokens.weight")
    assert table.shape == (120, 72)
    assert np.array_equal(table, other.tensor("model.embed_tokens.weight"))


def test_numbers_are_small_and_have_either_sign() -> None:
    numbers = small_numbers(np.random.Generator(np.random.SFC64(5)), (37, 11))

    magnitudes = np.abs(numbers.astype(np.float64))
    assert numbers.shape == (37, 11)
    assert numbers.dtype == np.float16
    assert magnitudes.min() >= 2**-7
    assert magnitudes.max() < 2**-6
    assert 0.4 < (numbers < 0).mean() < 0.6
    assert len(np.unique(magnitudes)) > 150


def test_model_runs(tmp_path: Path) -> None:
    _exported(RandomModel(LLAMA, QuantScheme(group_size=64)), tmp_path / "drawn")

    logits = OrtBackend.load(tmp_path / "drawn").forward([1, 2, 3])
    assert np.isfinite(logits).all()
    assert logits.std() > 0
