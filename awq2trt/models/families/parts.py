"""The parts of decoders: norms, linears and how they are stored, positions, and groups of linears that share a scale.

Names here are relative to a block. `DecoderSpec` puts the parts together. NumPy only; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.models.families.rotary import RopeSpec

NORM: Final = "norm"
OFFSET_NORM: Final = "offset norm"
LINEAR: Final = "linear"
ACTIVATION: Final = "activation"
UNFOLDED: Final = "unfolded"
"""Values of `ScaleGroup.smooth_kind`: what absorbs the scales, and how."""


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that share an input, and the layer before them, which can absorb the scales of that input.

    The AWQ search finds one s [K] per group; `fold` multiplies the input channels of every balance layer by s
    and divides the output channels of the smooth layer by it. Names are relative to the block.

    Attributes:
        smooth_layer: The layer whose output they read: a norm, a linear, or an activation function; empty if unfolded.
        smooth_kind: `NORM`, whose weight is divided; `OFFSET_NORM`, whose gain is 1 + weight; `LINEAR`, whose output
            rows are divided; `ACTIVATION`, which receives a divisor of its own, `<smooth_layer>.scales`; or `UNFOLDED`
            if nothing can absorb scales, so that all are 1.
        balance_layers: The linears that share the input, searched for one common scale.
        heads_tied: Query heads that read the same output channels of `smooth_layer`: num_heads / num_kv_heads
            for v_proj -> o_proj, where one scale per KV channel serves all query heads of that KV head.
    """

    smooth_layer: str
    smooth_kind: str
    balance_layers: tuple[str, ...]
    heads_tied: int = 1


@dataclass(frozen=True)
class NormSpec:
    """The norms of a model, which are all of one kind.

    Attributes:
        eps: A number added to the mean square, or to the variance.
        rms: Whether it is RMSNorm (arXiv:1910.07467), not LayerNorm, which subtracts the mean first.
        bias: Whether norms have a bias beside the weight.
        unit_offset: Whether the gain is 1 + weight (Gemma).
    """

    eps: float
    rms: bool = True
    bias: bool = False
    unit_offset: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer.

    Attributes:
        rope: Rotary embedding of queries and keys; None without one.
        sliding_window: Number of positions that a query sees, itself included; None for all before it.
    """

    rope: RopeSpec | None = None
    sliding_window: int | None = None


@dataclass(frozen=True)
class LearnedPositions:
    """A trained table of position embeddings, added to the token's.

    Attributes:
        table: Its name; the tensor is `<table>.weight`.
        offset: Row of position 0.
    """

    table: str
    offset: int


@dataclass(frozen=True)
class FusedLinear:
    """One linear of the checkpoint that holds the rows of several.

    Its rows form `groups` equal pieces, each with the same share of every part, part after part. With one piece, q, k
    and v are stacked; with a piece for each head, q, k and v of head 0 come first, then those of head 1, and so on.

    Attributes:
        stored: Its name in the checkpoint, relative to the block.
        parts: The linears it stands for, in order.
        groups: Number of pieces; it divides the rows of every part.
    """

    stored: str
    parts: tuple[str, ...]
    groups: int = 1

    def split(self, value: NDArray[Any], rows: Sequence[int]) -> list[NDArray[Any]]:
        """Splits [sum of rows, ...] into every part's [rows, ...]."""
        pieces = value.reshape(self.groups, -1, *value.shape[1:])
        edges = np.cumsum([count // self.groups for count in rows])[:-1]
        parts = np.split(pieces, edges, axis=1)
        return [np.ascontiguousarray(part).reshape(-1, *value.shape[1:]) for part in parts]

    def fuse(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The inverse of `split`."""
        pieces = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(pieces, axis=1).reshape(-1, *parts[0].shape[1:])


@dataclass(frozen=True, kw_only=True)
class BlockNames:
    """Names, relative to a block, of its norms and linears. Linears that the checkpoint fuses get names of ours.

    Attributes:
        q_norm: Norm of every head's queries, over the head's channels; None if there is none.
        k_norm: The same for keys.
        post_attention_norm: Norm of the attention's output before it joins the residual stream (Gemma 2 and 3).
        mlp_norm: None if the MLP reads the attention's norm (parallel blocks).
        gate_proj: None if the MLP is not gated.
        activation: The activation function, under whose name its scales are stored; None if up_proj absorbs them.
        post_mlp_norm: The same as `post_attention_norm`, for the MLP.
    """

    input_norm: str
    q_proj: str
    k_proj: str
    v_proj: str
    o_proj: str
    mlp_norm: str | None
    gate_proj: str | None = None
    up_proj: str
    down_proj: str
    q_norm: str | None = None
    k_norm: str | None = None
    post_attention_norm: str | None = None
    post_mlp_norm: str | None = None
    activation: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears of a block, in the order in which they run."""
        return (*self.attention_inputs, self.o_proj, *self.mlp_inputs, self.down_proj)

    @property
    def attention_inputs(self) -> tuple[str, str, str]:
        """Linears that read the attention norm's output."""
        return (self.q_proj, self.k_proj, self.v_proj)

    @property
    def mlp_inputs(self) -> tuple[str, ...]:
        """Linears that read the MLP norm's output; the first one is followed by the activation function."""
        return (self.up_proj,) if self.gate_proj is None else (self.gate_proj, self.up_proj)

    @property
    def hidden_norms(self) -> tuple[str, ...]:
        """Norms over hidden_size channels."""
        norms = (self.input_norm, self.post_attention_norm, self.mlp_norm, self.post_mlp_norm)
        return tuple(name for name in norms if name is not None)

    @property
    def head_norms(self) -> tuple[str, ...]:
        """Norms over head_dim channels."""
        return tuple(name for name in (self.q_norm, self.k_norm) if name is not None)


@dataclass(frozen=True, kw_only=True)
class CrossAttentionSpec:
    """What stands before some blocks of a decoder that looks at images: gated cross-attention, then a gated MLP.

    Each is behind a LayerNorm and joins the residual stream times tanh of its gate, which is one number. Nothing but
    the norms has a bias; the MLP's activation function is GELU (arXiv:2204.14198, section 2.2).

    Attributes:
        every: It stands before the last one of so many blocks.
        width: Channels of a piece of an image.
        pieces: Pieces of an image.
        intermediate_size: Channels within the MLP.
        prefix: Prefix of its tensors, relative to the block.
    """

    every: int
    hidden_size: int
    width: int
    pieces: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    prefix: str

    @property
    def inner_size(self) -> int:
        """Channels of queries, keys and values of all heads."""
        return self.num_heads * self.head_dim

    @property
    def reader(self) -> str:
        """Name of the linear that makes keys and values of pieces, relative to the block."""
        return f"{self.prefix}attn.to_kv"

    def stands_before(self, layer: int) -> bool:
        """Whether it stands before the block `layer`."""
        return (layer + 1) % self.every == 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, by name relative to the block."""
        inner, size = self.inner_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "attn_gate": (1,),
            "attn.norm.weight": (size,),
            "attn.norm.bias": (size,),
            "attn.to_q.weight": (inner, size),
            "attn.to_kv.weight": (2 * inner, self.width),
            "attn.to_out.weight": (size, inner),
            "ff_gate": (1,),
            "ff.0.weight": (size,),
            "ff.0.bias": (size,),
            "ff.1.weight": (self.intermediate_size, size),
            "ff.3.weight": (size, self.intermediate_size),
        }
        return {self.prefix + name: shape for name, shape in shapes.items()}
