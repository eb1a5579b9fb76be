"""Random quantized decoders, in memory or on disk, and the same weights in transformers, the oracle of many tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_models import save_llama
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from awq2trt.checkpoint.checkpoint import QuantizedCheckpoint
from awq2trt.models.families import describe_model
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.sources.safetensors import SafetensorsSource
from awq2trt.progress import SilentProgress
from awq2trt.quantization.job import QuantizeJob
from awq2trt.quantization.rounding import group_grid, round_to_grid, to_groups
from awq2trt.recipe import QuantizeOptions
from awq2trt.scheme import QuantizedLinear, QuantScheme

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 120,
    "hidden_size": 72,  # 64 + 8: a shorter last group for groups of 64, 9 x 8 heads
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}


def random_linear(
    shape: tuple[int, int], scheme: QuantScheme, random: np.random.Generator, *, bias: bool = False
) -> QuantizedLinear:
    """A linear with random codes, whose weights have a standard deviation near 0.1."""
    rows, features = shape
    groups = (rows, scheme.groups(features))
    return QuantizedLinear(
        codes=random.integers(0, scheme.levels, shape, dtype=np.uint8),
        scales=(random.uniform(0.01, 0.03, groups) * min(1, 16 / scheme.levels)).astype(np.float16),
        zeros=random.integers(0, scheme.levels, groups, dtype=np.uint8) if scheme.zero_point else None,
        scheme=scheme,
        bias=random.normal(size=rows).astype(np.float16) if bias else None,
    )


def nearest(weight: torch.Tensor, scheme: QuantScheme, *, where: str = "") -> QuantizedLinear:
    """A linear of fp32 [N, K] in which every code is the nearest on the grid of its group's complete range."""
    grid = group_grid(to_groups(weight, scheme), scheme)
    return round_to_grid(weight, grid, scheme).to_linear(scheme, where=where)


class RandomCheckpoint:
    """The checkpoint that `export_onnx` reads, with random contents. Every call for a name returns the same tensor."""

    def __init__(
        self, scheme: QuantScheme | None = None, head_scheme: QuantScheme | None = None, **overrides: Any
    ) -> None:
        self.config: dict[str, Any] = {**LLAMA, **overrides}
        self.spec = describe_model(self.config)
        self.scheme = scheme or QuantScheme(group_size=64)
        self.head_scheme = head_scheme

    def linear(self, name: str) -> QuantizedLinear:
        if self.head_scheme is not None and name == self.spec.stored_head:
            size = (self.spec.vocab_size, self.spec.hidden_size)
            return random_linear(size, self.head_scheme, self._random(name))
        relative = self._relative(name)
        shape, bias = self.spec.linear_shape(relative), self.spec.has_bias(relative)
        return random_linear(shape, self.scheme, self._random(name), bias=bias)

    def is_quantized(self, name: str) -> bool:
        return True

    def input_order(self, name: str) -> None:
        return None

    def tensor(self, name: str) -> NDArray[Any]:
        if self.head_scheme is not None and name == f"{self.spec.stored_head}.weight":
            return self.linear(self.spec.stored_head).dequantize()
        shape = {**self.spec.outer_shapes(), **self.spec.block_shapes()}.get(name)
        shape = shape or self.spec.block_shapes()[self._relative(name)]
        if len(shape) == 1:
            return self._random(name).uniform(0.5, 1.5, shape).astype(np.float16)
        return self._random(name).normal(scale=0.5, size=shape).astype(np.float16)

    def has(self, name: str) -> bool:
        return name.rpartition(".")[2] in ("weight", "bias")

    def _relative(self, name: str) -> str:
        return name.split(".", 3)[3]

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng(list(name.encode()))


class FamilyCheckpoint(RandomCheckpoint):
    """Random contents for a model of any family, without folded scales."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.spec = describe_model(config)
        self.scheme = QuantScheme(group_size=32)
        self.head_scheme = None

    def has(self, name: str) -> bool:
        return name.rpartition(".")[2] in ("weight", "bias")

    def _relative(self, name: str) -> str:
        prefixes = (self.spec.prefix(layer) for layer in range(self.spec.num_layers))
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        return name.removeprefix(prefix)


def torch_model(checkpoint: RandomCheckpoint) -> torch.nn.Module:
    """The checkpoint in transformers, in fp32, with weights dequantized by `QuantizedLinear.dequantize`."""
    config_class = MistralConfig if checkpoint.config["architectures"] == ["MistralForCausalLM"] else LlamaConfig
    model = AutoModelForCausalLM.from_config(config_class(**checkpoint.config), attn_implementation="eager")
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        owner, _, kind = name.rpartition(".")
        if "_proj" in name:
            linear = checkpoint.linear(owner)
            value = linear.bias if kind == "bias" else linear.dequantize()
        elif owner == checkpoint.spec.head and checkpoint.spec.tie_embeddings:
            value = checkpoint.tensor(f"{checkpoint.spec.embedding}.weight")
        else:
            value = checkpoint.tensor(name)
        assert value is not None
        state[name] = torch.from_numpy(value.astype(np.float32))
    model.load_state_dict(state)
    evaluated: torch.nn.Module = model.float().eval()
    return evaluated


def torch_logits(checkpoint: RandomCheckpoint, tokens: list[int]) -> NDArray[np.float32]:
    """Logits of every position from transformers, float32 [S, V]."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = torch_model(checkpoint)(torch.tensor([tokens])).logits[0].numpy()
    return logits


def relative_error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Norm of the difference over the norm of the expected value."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}
"""Settings for `quantized_llama`: every K is a multiple of 32 and every N of 8, so that AutoAWQ's layout fits."""


def quantized_llama(directory: Path, model: dict[str, Any] | None = None, **options: Any) -> QuantizedCheckpoint:
    """A Llama with random weights in `directory`/model, and its quantized checkpoint's files in `directory`/files."""
    source = SafetensorsSource.open(save_llama(directory / "model", **(model or {})))
    return quantize_source(source, directory, **{"method": "rtn", "group_size": 32, **options})


def quantize_source(source: ModelSource, directory: Path, **options: Any) -> QuantizedCheckpoint:
    """Quantizes a model, into `directory`/files."""
    for name in ("files", "scratch"):
        (directory / name).mkdir()
    job = QuantizeJob.prepare(
        source,
        QuantizeOptions(**options),
        files=directory / "files",
        scratch=directory / "scratch",
        progress=SilentProgress(),
    )
    job.run()
    return QuantizedCheckpoint.open(directory / "files")
