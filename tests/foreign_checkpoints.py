"""Quantized checkpoints as other tools write them, encoded bit by bit with Python's integers, as an oracle.

Nothing here uses the package: shapes and bit positions are those of each tool's own code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_models import save_tokenizer

Array = NDArray[Any]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "torch_dtype": "float16",
}
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
GROUP = 32


@dataclass(frozen=True)
class Foreign:
    """A layout of another tool.

    Attributes:
        quantization: `quantization_config`.
        bits: Width of a code.
        symmetric: Whether all zero points are 2^(bits-1).
        encode: Makes a linear's tensors from codes [N, K], zeros [N, groups] and scales [N, groups].
        scale_dtype: Type of the scales.
        groups_tensor: Name of the tensor with the group of each input channel (act-order); None for channels in order.
        intermediate: Number of channels between gate, up and down.
    """

    quantization: dict[str, Any]
    encode: Callable[[Array, Array, torch.Tensor], dict[str, torch.Tensor]]
    bits: int = 4
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16
    groups_tensor: str | None = None
    intermediate: int = 96


def words(rows: Sequence[Sequence[int]], bits: int) -> torch.Tensor:
    """Packs each row into one long integer, code i at bit i * bits, and cuts it into int32."""
    packed = []
    for row in rows:
        whole = sum(int(code) << (index * bits) for index, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        packed.append([(whole >> (32 * index)) & 0xFFFFFFFF for index in range(count)])
    return torch.from_numpy(np.array(packed, dtype=np.uint32).view(np.int32))


def encode_awq(codes: Array, zeros: Array, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """AutoAWQ's GEMM: transposed; nibbles hold columns 0, 2, 4, 6, 1, 3, 5, 7 of eight."""

    def shuffled(value: Array) -> torch.Tensor:
        order = [8 * (i // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[i % 8] for i in range(value.shape[1])]
        return words(value[:, order].tolist(), 4)

    return {"qweight": shuffled(codes.T), "qzeros": shuffled(zeros.T), "scales": scales.T.contiguous()}


def _padded(value: Array, width: int) -> Array:
    """Pads with zeros up to `width` columns."""
    return np.pad(value, ((0, 0), (0, width - value.shape[1])))


_GEMV_WIDTH = 32
"""Scales of a row with up to 8 groups of 32: four words of 8."""


def encode_gemv(codes: Array, zeros: Array, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """AutoAWQ's GEMV: nibbles in order, scales and zeros with room for 32 groups."""
    return {
        "qweight": words(codes.tolist(), 4),
        "qzeros": words(_padded(zeros, _GEMV_WIDTH).tolist(), 4),
        "scales": torch.from_numpy(_padded(scales.numpy(), _GEMV_WIDTH)),
    }


def encode_gemv_fast(codes: Array, zeros: Array, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """AutoAWQ's GEMV-fast: `pack_intweight` with loops in place of its reshapes."""
    rows, columns = codes.shape
    shuffled = np.empty_like(codes)
    for start in range(0, columns, 32):
        pairs = [start + 8 * eight + 2 * pair + odd for pair in range(4) for eight in range(4) for odd in range(2)]
        order = [pairs[8 * octet + k] for octet in range(4) for k in (0, 2, 4, 6, 1, 3, 5, 7)]
        shuffled[:, start : start + 32] = codes[:, order]
    packed = np.empty((rows // 4, columns), np.uint16)
    for row in range(0, rows, 4):
        for column in range(0, columns, 64):
            tile = shuffled[row : row + 4, column : column + 64].reshape(-1).tolist()  # four rows, one after another
            for word in range(64):
                packed[row // 4, column + word] = sum(tile[4 * word + k] << (4 * k) for k in range(4))
    scaled = -(scales.numpy().astype(np.float32) * zeros).astype(np.float16)
    return {
        "qweight": torch.from_numpy(packed.view(np.int16)),
        "scales": torch.from_numpy(_padded(scales.numpy(), _GEMV_WIDTH)).T.contiguous(),
        "scaled_zeros": torch.from_numpy(_padded(scaled, _GEMV_WIDTH)).T.contiguous(),
    }


def encode_gptq(bits: int, offset: int) -> Callable[[Array, Array, torch.Tensor], dict[str, torch.Tensor]]:
    """GPTQ: codes packed along K, zero points less `offset` along N."""

    def encode(codes: Array, zeros: Array, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "qweight": words(codes.tolist(), bits).T.contiguous(),
            "qzeros": words((zeros.T.astype(int) - offset).tolist(), bits),
            "scales": scales.T.contiguous(),
            "g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // GROUP,
        }

    return encode


def encode_compressed(bits: int, *, symmetric: bool) -> Callable[[Array, Array, torch.Tensor], dict[str, torch.Tensor]]:
    """compressed-tensors' pack-quantized; zero points packed along N."""

    def encode(codes: Array, zeros: Array, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = {
            "weight_packed": words(codes.tolist(), bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor(codes.shape),
        }
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros.T.tolist(), bits).T.contiguous()
        return tensors

    return encode


def compressed_config(bits: int, *, symmetric: bool) -> dict[str, Any]:
    """The config that llm-compressor writes."""
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": GROUP,
               "dynamic": False, "observer": "minmax", "actorder": None}  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "version": "0.12.2",
    }


def gptq_config(bits: int, version: str, *, symmetric: bool) -> dict[str, Any]:
    """The config that GPTQModel writes."""
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": False,
            "checkpoint_format": version, "damp_percent": 0.01, "true_sequential": True}  # fmt: skip


def auto_round_config(packing: str, *, symmetric: bool) -> dict[str, Any]:
    """The config that AutoRound writes in its own format."""
    return {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": GROUP, "sym": symmetric,
            "data_type": "int", "iters": 200, "autoround_version": "0.16.1",
            "extra_config": {"model.layers.0.mlp.gate": {"bits": 16}}}  # fmt: skip


AWQ_CONFIG = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True}

FOREIGN = {
    "awq": Foreign(AWQ_CONFIG, encode_awq),
    "awq-gemv": Foreign({**AWQ_CONFIG, "version": "GEMV"}, encode_gemv),
    "awq-gemv_fast": Foreign({**AWQ_CONFIG, "version": "gemv_fast"}, encode_gemv_fast, intermediate=128),
    "gptq-act-order": Foreign(
        {**gptq_config(4, "gptq", symmetric=False), "desc_act": True}, encode_gptq(4, 1), groups_tensor="g_idx"
    ),
    "compressed-act-order": Foreign(
        compressed_config(4, symmetric=True),
        encode_compressed(4, symmetric=True),
        symmetric=True,
        groups_tensor="weight_g_idx",
    ),
    "auto_round-gptq": Foreign(
        auto_round_config("auto_round:auto_gptq", symmetric=True), encode_gptq(4, 1), symmetric=True
    ),
    "auto_round-exllamav2": Foreign(auto_round_config("auto_round:exllamav2", symmetric=False), encode_gptq(4, 0)),
    "auto_round-awq": Foreign(auto_round_config("auto_round:auto_awq", symmetric=False), encode_awq),
    "gptq": Foreign(gptq_config(4, "gptq", symmetric=False), encode_gptq(4, 1)),
    "gptq-sym": Foreign(gptq_config(4, "gptq", symmetric=True), encode_gptq(4, 1), symmetric=True),
    "gptq_v2": Foreign(gptq_config(4, "gptq_v2", symmetric=False), encode_gptq(4, 0)),
    "gptq-3bit": Foreign(gptq_config(3, "gptq", symmetric=False), encode_gptq(3, 1), bits=3),
    "gptq_v2-2bit": Foreign(gptq_config(2, "gptq_v2", symmetric=False), encode_gptq(2, 0), bits=2),
    "compressed": Foreign(compressed_config(4, symmetric=True), encode_compressed(4, symmetric=True), symmetric=True),
    "compressed-asym": Foreign(compressed_config(4, symmetric=False), encode_compressed(4, symmetric=False)),
    "compressed-3bit": Foreign(compressed_config(3, symmetric=False), encode_compressed(3, symmetric=False), bits=3),
    "compressed-2bit-sym": Foreign(
        compressed_config(2, symmetric=True), encode_compressed(2, symmetric=True), bits=2, symmetric=True
    ),
    "compressed-bf16": Foreign(
        compressed_config(4, symmetric=False),
        encode_compressed(4, symmetric=False),
        scale_dtype=torch.bfloat16,
    ),
}


def save_foreign(directory: Path, foreign: Foreign, *, quantized_head: bool = False, **config: Any) -> dict[str, Array]:
    """Saves a random checkpoint in another tool's layout, with a head like its blocks or a plain one.

    Returns:
        The weight of every linear by full name, fp32, by the definition scale * (code - zero).
    """
    random = np.random.default_rng(7)
    levels = 1 << foreign.bits
    tensors: dict[str, torch.Tensor] = {}
    weights: dict[str, Array] = {}
    sizes = {"hidden_size": 64, "intermediate_size": foreign.intermediate}
    shapes = {f"model.layers.0.{name}": shape for name, shape in SHAPES.items()}
    if quantized_head:
        shapes["lm_head"] = (272, 64)
    for full, shape in shapes.items():
        rows, columns = (foreign.intermediate if size == CONFIG["intermediate_size"] else size for size in shape)
        groups = columns // GROUP
        codes = random.integers(0, levels, (rows, columns))
        # GPTQ's first version cannot store a zero point of 0; all other layouts have one somewhere.
        lowest = 1 if foreign.quantization.get("checkpoint_format") == "gptq" else 0
        zeros = random.integers(lowest, levels, (rows, groups))
        if foreign.symmetric:
            zeros = np.full((rows, groups), levels // 2)
        scales = torch.from_numpy(random.uniform(1e-3, 0.05, (rows, groups))).to(foreign.scale_dtype)
        encoded, group = foreign.encode(codes, zeros, scales), np.arange(columns) // GROUP
        if foreign.groups_tensor is not None:
            group = np.random.default_rng(columns).permutation(group)  # the same for all that read the same input
            encoded[foreign.groups_tensor] = torch.from_numpy(group.astype(np.int32))
        tensors |= {f"{full}.{kind}": value for kind, value in encoded.items()}
        spread = [value[:, group] for value in (zeros, scales.float().numpy())]
        weights[full] = (codes - spread[0]).astype(np.float32) * spread[1]
    dtype = foreign.scale_dtype
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        tensors[f"{name}.weight"] = torch.ones(64, dtype=dtype)
    for name in ("model.embed_tokens", *(["lm_head"] if not quantized_head else [])):
        tensors[f"{name}.weight"] = torch.from_numpy(random.normal(size=(272, 64))).to(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    named = {"torch_dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps({**CONFIG, **sizes, **named, "quantization_config": foreign.quantization, **config})
    (directory / "config.json").write_text(text)
    save_tokenizer(directory)
    return weights
