"""What a decoder family is, as data: one description drives search, folding, evaluation and the ONNX graph.

`Family.describe` turns a Hugging Face `config.json` into a `DecoderSpec`. Nothing else in the package looks
at model-specific config keys or tensor names. NumPy only; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UnsupportedError

NORM: Final = "norm"
LINEAR: Final = "linear"


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that share an input, and the layer before, which can absorb their input scales.

    The AWQ search finds one s [K] per group; `fold` multiplies the input channels of every balance layer by s
    and divides the output channels of the smooth layer by it. Names are relative to the block.

    Attributes:
        smooth_layer: Norm, or linear, whose output the balance layers read.
        smooth_kind: `NORM` or `LINEAR`.
        balance_layers: The linears that share the input, searched for one common scale.
        heads_tied: Query heads that read the same output channels of `smooth_layer`: num_heads / num_kv_heads
            for v_proj -> o_proj, where one scale per KV channel serves all query heads of that KV head.
    """

    smooth_layer: str
    smooth_kind: str
    balance_layers: tuple[str, ...]
    heads_tied: int = 1


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, rotate-half form (RoFormer, arXiv:2104.09864; halves as in Llama).

    Attributes:
        inv_freq: Angular frequency of each channel pair, float64 values, length rotary_dim / 2.
    """

    inv_freq: tuple[float, ...]

    def tables(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin of position * frequency, each float32 [positions, rotary_dim / 2]."""
        angles = np.outer(np.arange(positions, dtype=np.float64), np.asarray(self.inv_freq))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True)
class BlockNames:
    """Names, relative to a block, of its norms and linears."""

    input_norm: str
    q_proj: str
    k_proj: str
    v_proj: str
    o_proj: str
    mlp_norm: str
    gate_proj: str
    up_proj: str
    down_proj: str

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a block, in the order they run."""
        return (*self.attention_inputs, self.o_proj, *self.mlp_inputs, self.down_proj)

    @property
    def attention_inputs(self) -> tuple[str, str, str]:
        """Linears that read the attention norm's output."""
        return (self.q_proj, self.k_proj, self.v_proj)

    @property
    def mlp_inputs(self) -> tuple[str, str]:
        """Linears that read the MLP norm's output."""
        return (self.gate_proj, self.up_proj)


@dataclass(frozen=True)
class DecoderSpec:
    """One model, described: sizes, numerics, tensor names.

    The decoder is: embedding; `num_layers` pre-norm blocks of RMSNorm -> rotary grouped-query attention ->
    residual -> RMSNorm -> gated MLP -> residual; final RMSNorm; head.

    Attributes:
        norm_eps: Added to the mean square in RMSNorm.
        activation: Of the gated MLP: `silu`.
        sliding_window: Positions a query sees, itself included; None for all before it.
        tie_embeddings: The head is the embedding matrix.
        block_prefix: Format string with `{layer}`, e.g. `model.layers.{layer}.`.
        block: Names inside a block; a linear has `<name>.weight` and perhaps `<name>.bias`, a norm `<name>.weight`.
        attention_bias: q, k, v and o have a bias.
        mlp_bias: gate, up and down have a bias.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    rope: RopeSpec
    sliding_window: int | None
    tie_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    embedding: str
    final_norm: str
    head: str
    block_prefix: str
    block: BlockNames

    def prefix(self, layer: int) -> str:
        """Prefix of all tensor names of block `layer`."""
        return self.block_prefix.format(layer=layer)

    def linear_shape(self, name: str) -> tuple[int, int]:
        """[N, K] of a block's linear."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        names = self.block
        return {
            names.q_proj: (query, self.hidden_size),
            names.k_proj: (key_value, self.hidden_size),
            names.v_proj: (key_value, self.hidden_size),
            names.o_proj: (self.hidden_size, query),
            names.gate_proj: (self.intermediate_size, self.hidden_size),
            names.up_proj: (self.intermediate_size, self.hidden_size),
            names.down_proj: (self.hidden_size, self.intermediate_size),
        }[name]

    def has_bias(self, name: str) -> bool:
        """Whether the block's linear `name` has a bias."""
        attention = (*self.block.attention_inputs, self.block.o_proj)
        return self.attention_bias if name in attention else self.mlp_bias

    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a block, by name relative to the block."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.block.input_norm}.weight": (self.hidden_size,),
            f"{self.block.mlp_norm}.weight": (self.hidden_size,),
        }
        for name in self.block.linears:
            shapes[f"{name}.weight"] = self.linear_shape(name)
            if self.has_bias(name):
                shapes[f"{name}.bias"] = (self.linear_shape(name)[0],)
        return shapes

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the blocks, by full name; a tied head is not one."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.embedding}.weight": (self.vocab_size, self.hidden_size),
            f"{self.final_norm}.weight": (self.hidden_size,),
        }
        if not self.tie_embeddings:
            shapes[f"{self.head}.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def scale_groups(self) -> tuple[ScaleGroup, ...]:
        """The groups the AWQ search works on, in the order a block runs them.

        v_proj -> o_proj and up_proj -> down_proj scale output rows of a linear that is itself quantized; row-wise
        rounding groups make that exact (a row's scale only multiplies its step sizes).
        """
        names = self.block
        return (
            ScaleGroup(names.input_norm, NORM, names.attention_inputs),
            ScaleGroup(names.v_proj, LINEAR, (names.o_proj,), heads_tied=self.num_heads // self.num_kv_heads),
            ScaleGroup(names.mlp_norm, NORM, names.mlp_inputs),
            ScaleGroup(names.up_proj, LINEAR, (names.down_proj,)),
        )

    def unclipped(self) -> tuple[str, ...]:
        """Linears whose weights are not clipped: clipping q and k moves the attention scores (as llm-awq)."""
        return (self.block.q_proj, self.block.k_proj)


@dataclass(frozen=True)
class Family:
    """A family of architectures that one function can describe.

    Attributes:
        name: As `inspect` and the manifest show it.
        architectures: Values of config.json's `architectures` that belong to it.
        describe: config.json -> `DecoderSpec`; raises `UnsupportedError` for what the family cannot express.
    """

    name: str
    architectures: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], DecoderSpec]


def config_value(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """A required key of config.json, checked for its type."""
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise UnsupportedError(
            f"{key}: expected {kind.__name__}, got {value!r}.",
            where="config.json",
            fix="use the config.json that the model was published with.",
        )
    return value
