"""The description of a decoder as data, which drives search, folding, evaluation and the ONNX graph.

`Family.describe` turns a Hugging Face `config.json` into a `DecoderSpec`. Nothing else in the package looks
at model-specific config keys or tensor names. NumPy only; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from awq2trt.models.families.parts import (
    ACTIVATION,
    LINEAR,
    NORM,
    OFFSET_NORM,
    UNFOLDED,
    BlockNames,
    CrossAttentionSpec,
    FusedLinear,
    LayerSpec,
    LearnedPositions,
    NormSpec,
    ScaleGroup,
)
from awq2trt.models.families.rotary import RopeSpec


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The description of one model: sizes, numerics, tensor names.

    The decoder is: embedding; blocks of norm -> attention -> residual -> norm -> MLP -> residual; final norm; head.

    Attributes:
        norm: Kind of all norms.
        activation: Activation function of the MLP: `SILU`, `GELU`, `GELU_TANH` or `RELU`.
        layers: What differs by layer, one entry for each.
        tie_embeddings: Whether the head is the embedding matrix.
        biased: The linears of a block that have a bias.
        embedding: The embedding's name; its tensor is `<embedding>.weight`. `final_norm` and `head` are named likewise.
        block_prefix: Format string with `{layer}`, e.g. `model.layers.{layer}.`.
        block: Names inside a block; a linear has `<name>.weight` and perhaps `<name>.bias`, a norm likewise.
        fused: The linears of a block that the checkpoint stores as one.
        parallel: Whether attention and MLP read the same residual stream, to which both are then added.
        attention_scale: Factor of the attention scores; None for 1 / sqrt(head_dim).
        attention_softcap: Scores become cap * tanh(score / cap); None for no cap.
        logit_softcap: The same for the logits.
        clip_qkv: Queries, keys and values are clamped to this magnitude; None for no limit.
        alibi: Slope of every head (ALiBi, arXiv:2108.12409): a score falls by slope * distance; None without ALiBi.
        positions: Learned position embeddings; None if there are none.
        embedding_scale: Factor of the token embeddings.
        embedding_norm: Norm between embedding and first block; None without one.
        optional_prefix: First part of all names, which is missing in checkpoints that were saved from the bare decoder.
        cross: What stands before some blocks and looks at images; None in other decoders.
        deepstack: How many of the first blocks have features of images added behind them, in the places of image
            tokens (deepstack, arXiv:2406.04334).
        image_blocks: Whether tokens of an image see each other, those behind them too.
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm: NormSpec
    activation: str
    layers: tuple[LayerSpec, ...]
    tie_embeddings: bool
    biased: frozenset[str] = frozenset()
    embedding: str
    final_norm: str
    head: str
    block_prefix: str
    block: BlockNames
    fused: tuple[FusedLinear, ...] = ()
    parallel: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    clip_qkv: float | None = None
    alibi: tuple[float, ...] | None = None
    positions: LearnedPositions | None = None
    embedding_scale: float = 1.0
    embedding_norm: str | None = None
    optional_prefix: str = ""
    cross: CrossAttentionSpec | None = None
    deepstack: int = 0
    image_blocks: bool = False

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def stored_head(self) -> str:
        """The name under which the head's weight is stored: its own, or the embedding's if the two are one."""
        return self.embedding if self.tie_embeddings else self.head

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The different rotary embeddings of all layers."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))

    def prefix(self, layer: int) -> str:
        """Prefix of all tensor names of block `layer`."""
        return self.block_prefix.format(layer=layer)

    def norms(self) -> tuple[str, ...]:
        """Full names of all norms."""
        outer = tuple(name for name in (self.embedding_norm, self.final_norm) if name is not None)
        inside = (*self.block.hidden_norms, *self.block.head_norms)
        return (*outer, *(self.prefix(layer) + name for layer in range(self.num_layers) for name in inside))

    def linear_shape(self, name: str) -> tuple[int, int]:
        """[N, K] of a block's linear."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        names = self.block
        shapes: dict[str | None, tuple[int, int]] = {
            names.q_proj: (query, self.hidden_size),
            names.k_proj: (key_value, self.hidden_size),
            names.v_proj: (key_value, self.hidden_size),
            names.o_proj: (self.hidden_size, query),
            names.gate_proj: (self.intermediate_size, self.hidden_size),
            names.up_proj: (self.intermediate_size, self.hidden_size),
            names.down_proj: (self.hidden_size, self.intermediate_size),
        }
        return shapes[name]

    def has_bias(self, name: str) -> bool:
        """Whether the block's linear `name` has a bias."""
        return name in self.biased

    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a block, by name relative to the block; fused linears are split."""
        shapes: dict[str, tuple[int, ...]] = {}
        for names, channels in ((self.block.hidden_norms, self.hidden_size), (self.block.head_norms, self.head_dim)):
            for name in names:
                shapes.update(self._norm_shapes(name, channels))
        for name in self.block.linears:
            shapes[f"{name}.weight"] = self.linear_shape(name)
            if self.has_bias(name):
                shapes[f"{name}.bias"] = (self.linear_shape(name)[0],)
        return shapes

    def optional_block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors that only a quantized block has: divisors behind an activation function that cannot absorb scales."""
        if self.block.activation is None:
            return {}
        return {f"{self.block.activation}.scales": (self.intermediate_size,)}

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """The blocks before which cross-attention stands."""
        cross = self.cross
        return () if cross is None else tuple(filter(cross.stands_before, range(self.num_layers)))

    def cross_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of what stands before a block, by name relative to the block; empty for most blocks."""
        return self.cross.shapes() if self.cross is not None and self.cross.stands_before(layer) else {}

    def block_size(self) -> int:
        """Number of elements of the largest block."""
        cross = {} if self.cross is None else self.cross.shapes()
        return sum(math.prod(shape) for shape in (*self.block_shapes().values(), *cross.values()))

    def stored_linears(self) -> dict[str, tuple[int, int]]:
        """[N, K] of a block's linears as the checkpoint stores them; fused ones count as one."""
        shapes = {name: self.linear_shape(name) for name in self.block.linears}
        for fused in self.fused:
            parts = [shapes.pop(name) for name in fused.parts]
            shapes[fused.stored] = (sum(rows for rows, _ in parts), parts[0][1])
        return shapes

    def stored_block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a block as the checkpoint stores it."""
        shapes = self.block_shapes()
        for fused in self.fused:
            for kind in ("weight", "bias"):
                parts = [shapes.pop(f"{name}.{kind}", None) for name in fused.parts]
                if parts[0] is not None:
                    rows = sum(shape[0] for shape in parts if shape is not None)
                    shapes[f"{fused.stored}.{kind}"] = (rows, *parts[0][1:])
        return shapes

    def split_block(self, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Splits a block's tensors as the checkpoint stores them; the result has the names of `block_shapes`."""
        tensors = dict(stored)
        for fused in self.fused:
            rows = [self.linear_shape(name)[0] for name in fused.parts]
            for kind in ("weight", "bias"):
                if f"{fused.stored}.{kind}" in tensors:
                    parts = fused.split(tensors.pop(f"{fused.stored}.{kind}"), rows)
                    tensors.update({f"{name}.{kind}": part for name, part in zip(fused.parts, parts, strict=True)})
        return tensors

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the blocks, by full name; a tied head is not among them."""
        shapes: dict[str, tuple[int, ...]] = {f"{self.embedding}.weight": (self.vocab_size, self.hidden_size)}
        if self.positions is not None:
            shapes[f"{self.positions.table}.weight"] = (self.max_positions + self.positions.offset, self.hidden_size)
        for norm in (self.embedding_norm, self.final_norm):
            if norm is not None:
                shapes.update(self._norm_shapes(norm, self.hidden_size))
        if not self.tie_embeddings:
            shapes[f"{self.head}.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def scale_groups(self) -> tuple[ScaleGroup, ...]:
        """The groups that the AWQ search works on, in the order in which a block runs them.

        v_proj -> o_proj and up_proj -> down_proj scale output rows of a linear that is itself quantized; row-wise
        rounding groups make that exact (a row's scale only multiplies its step sizes). A clamp between v_proj and
        o_proj rules out the first of these groups, and an activation function between up_proj and down_proj rules out
        the second, unless it is ReLU, since relu(x / s) = relu(x) / s.
        """
        names, norm = self.block, OFFSET_NORM if self.norm.unit_offset else NORM
        tied = self.num_heads // self.num_kv_heads
        context = ScaleGroup(names.v_proj, LINEAR, (names.o_proj,), heads_tied=tied)
        if self.clip_qkv is not None:
            context = ScaleGroup("", UNFOLDED, (names.o_proj,))
        down = ScaleGroup(names.up_proj, LINEAR, (names.down_proj,))
        if names.activation is not None:
            down = ScaleGroup(names.activation, ACTIVATION, (names.down_proj,))
        if names.mlp_norm is None:
            return (ScaleGroup(names.input_norm, norm, (*names.attention_inputs, *names.mlp_inputs)), context, down)
        inputs = ScaleGroup(names.input_norm, norm, names.attention_inputs)
        return (inputs, context, ScaleGroup(names.mlp_norm, norm, names.mlp_inputs), down)

    def unclipped(self) -> tuple[str, ...]:
        """Linears whose weights are not clipped, as in llm-awq: clipping q and k would change attention scores."""
        return (self.block.q_proj, self.block.k_proj)

    def _norm_shapes(self, name: str, channels: int) -> dict[str, tuple[int, ...]]:
        kinds = ("weight", "bias") if self.norm.bias else ("weight",)
        return {f"{name}.{kind}": (channels,) for kind in kinds}


@dataclass(frozen=True)
class Family:
    """A family of architectures that one function can describe.

    Attributes:
        name: Its name in `inspect` and manifests.
        architectures: Values of config.json's `architectures` that belong to it.
        describe: Makes a `DecoderSpec` from config.json; raises `UnsupportedError` if the family cannot express the
            model.
        example: A tiny config.json of the family: an unknown model's tensor names are compared with it, and tests make
            random models from it.
        needs_bos: Whether its models need text that begins with the BOS token.
        published_with_code: Whether published checkpoints name Python code (`auto_map`) that is now part of
            transformers, so that it can be ignored.
    """

    name: str
    architectures: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], DecoderSpec]
    example: Mapping[str, Any]
    needs_bos: bool = False
    published_with_code: bool = False
