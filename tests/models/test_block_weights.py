"""Weights as they are stored become fp32 where PyTorch computes; a GPU's blocks are read ahead, in order."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from tiny_models import save_llama

from awq2trt.errors import CheckpointError
from awq2trt.models.block_weights import load_block, load_blocks, to_tensor, with_linears_of
from awq2trt.models.sources.safetensors import SafetensorsSource


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, ml_dtypes.float8_e4m3fn])
def test_stored_tensors_are_widened_to_copies(dtype: Any) -> None:
    values = np.array([[0.5, -3.0, 0.0], [1.0, 2.0, 448.0]]).astype(dtype)
    read_only = values.copy()
    read_only.flags.writeable = False
    for given in (values, read_only, values.T, values[:, 1:], values[0, 0, None]):
        tensor = to_tensor(given)
        assert tensor.dtype == torch.float32
        assert tensor.tolist() == given.astype(np.float32).tolist()
        tensor.zero_()
    assert values.astype(np.float32).tolist() == [[0.5, -3.0, 0.0], [1.0, 2.0, 448.0]]
    with torch.device("meta"):
        assert to_tensor(values).device.type == "meta"


@pytest.mark.parametrize("device", ["cpu", "meta"], ids=["cpu", "as on a gpu"])
def test_blocks_come_in_order_and_one_is_read_ahead_beside_a_gpu(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path, num_hidden_layers=4))
    read, block, begun = list[int](), source.block, {layer: threading.Event() for layer in range(5)}

    def watched(layer: int) -> dict[str, Any]:
        read.append(layer)
        begun[layer].set()
        return block(layer)

    monkeypatch.setattr(source, "block", watched)
    with torch.device(device):
        for layer, weights in enumerate(load_blocks(source, 1), start=1):
            assert weights.keys() == block(layer).keys()
            if device == "cpu":
                assert read == list(range(1, layer + 1))
                expected = load_block(source, layer)
                read.pop()
                assert all(torch.equal(weights[name], value) for name, value in expected.items())
            elif layer < 3:
                assert begun[layer + 1].wait(10)
        assert sorted(read) == [1, 2, 3]
        assert list(load_blocks(source, 4)) == []


def test_what_reading_ahead_raises_is_raised_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path, num_hidden_layers=3))
    block = source.block

    def broken(layer: int) -> dict[str, Any]:
        if layer == 1:
            raise CheckpointError("damaged.", where="block 1", fix="none.")
        return block(layer)

    monkeypatch.setattr(source, "block", broken)
    with torch.device("meta"):
        blocks = load_blocks(source)
        next(blocks)
        with pytest.raises(CheckpointError, match="damaged"):
            next(blocks)


def test_linears_alone_get_factors_of_another_type(tmp_path: Path) -> None:
    source = SafetensorsSource.open(save_llama(tmp_path))
    stored = load_block(source, 0)
    narrow = with_linears_of(source.spec, stored, torch.bfloat16)
    linears = {f"{name}.weight" for name in source.spec.block.linears}
    assert narrow.keys() == stored.keys()
    assert {name for name, value in narrow.items() if value.dtype == torch.bfloat16} == linears
    assert all(torch.equal(narrow[name].to(torch.bfloat16), value.to(torch.bfloat16)) for name, value in stored.items())
