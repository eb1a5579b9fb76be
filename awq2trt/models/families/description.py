"""What a decoder family is, as data: one description drives search, folding, evaluation and the ONNX graph.

`Family.describe` turns a Hugging Face `config.json` into a `DecoderSpec`. Nothing else in the package looks
at model-specific config keys or tensor names. NumPy only; no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from awq2trt.errors import UnsupportedError

NORM: Final = "norm"
OFFSET_NORM: Final = "offset norm"
LINEAR: Final = "linear"
ACTIVATION: Final = "activation"
UNFOLDED: Final = "unfolded"
"""Kinds of `ScaleGroup.smooth_kind`: what absorbs the scales, and how."""

SILU: Final = "silu"
GELU: Final = "gelu"
GELU_TANH: Final = "gelu_tanh"
RELU: Final = "relu"

_ACTIVATIONS: Final = {
    "silu": SILU,
    "swish": SILU,
    "gelu": GELU,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "relu": RELU,
}
"""transformers' names (`ACT2FN`) -> ours."""


@dataclass(frozen=True)
class ScaleGroup:
    """Linears that share an input, and the layer before, which can absorb their input scales.

    The AWQ search finds one s [K] per group; `fold` multiplies the input channels of every balance layer by s
    and divides the output channels of the smooth layer by it. Names are relative to the block.

    Attributes:
        smooth_layer: What the balance layers read: a norm, a linear, or an activation function; empty if unfolded.
        smooth_kind: `NORM`, whose weight is divided; `OFFSET_NORM`, whose gain is 1 + weight; `LINEAR`, whose output
            rows are divided; `ACTIVATION`, which gets a divisor of its own, `<smooth_layer>.scales`; or `UNFOLDED`
            where nothing can absorb scales, so that all are 1.
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
    """The norms of a model, all of one kind.

    Attributes:
        eps: Added to the mean square, or to the variance.
        rms: RMSNorm (arXiv:1910.07467); False for LayerNorm, which takes the mean off first.
        bias: Norms have a bias beside the weight.
        unit_offset: The gain is 1 + weight (Gemma).
    """

    eps: float
    rms: bool = True
    bias: bool = False
    unit_offset: bool = False


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, rotate-half form (RoFormer, arXiv:2104.09864; halves as in Llama).

    Attributes:
        inv_freq: Angular frequency of each channel pair, float64 values, length rotary_dim / 2. Channels of a head
            after the first rotary_dim are not rotated.
    """

    inv_freq: tuple[float, ...]

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return 2 * len(self.inv_freq)

    def tables(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin of position * frequency, each float32 [positions, rotary_dim / 2]."""
        angles = np.outer(np.arange(positions, dtype=np.float64), np.asarray(self.inv_freq))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer.

    Attributes:
        rope: Rotary embedding of queries and keys; None for none.
        sliding_window: Positions a query sees, itself included; None for all before it.
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
    """One linear of the checkpoint that stands for several, whose rows it holds.

    Its rows are `groups` equal pieces, each with the same share of every part, part after part: one piece is
    q, k and v stacked; a piece a head is q, k and v of head 0, then of head 1, and so on.

    Attributes:
        stored: Its name in the checkpoint, relative to the block.
        parts: The linears it stands for, in order.
        groups: Pieces; divides the rows of every part.
    """

    stored: str
    parts: tuple[str, ...]
    groups: int = 1

    def split(self, value: NDArray[Any], rows: Sequence[int]) -> list[NDArray[Any]]:
        """[sum of rows, ...] -> every part's [rows, ...]."""
        pieces = value.reshape(self.groups, -1, *value.shape[1:])
        edges = np.cumsum([count // self.groups for count in rows])[:-1]
        parts = np.split(pieces, edges, axis=1)
        return [np.ascontiguousarray(part).reshape(-1, *value.shape[1:]) for part in parts]

    def fuse(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Inverse of `split`."""
        pieces = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
        return np.concatenate(pieces, axis=1).reshape(-1, *parts[0].shape[1:])


@dataclass(frozen=True, kw_only=True)
class BlockNames:
    """Names, relative to a block, of its norms and linears. Linears that the checkpoint fuses have names of ours.

    Attributes:
        q_norm: Norm of every head's queries, over the head's channels; None if there is none.
        k_norm: The same of keys.
        post_attention_norm: Norm of the attention's output before it joins the residual stream (Gemma 2 and 3).
        mlp_norm: None if the MLP reads the attention's norm (parallel blocks).
        gate_proj: None if the MLP is not gated.
        activation: The activation function, under which its scales are stored; None where up_proj absorbs them.
        post_mlp_norm: As `post_attention_norm`, of the MLP.
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
        """All linears of a block, in the order they run."""
        return (*self.attention_inputs, self.o_proj, *self.mlp_inputs, self.down_proj)

    @property
    def attention_inputs(self) -> tuple[str, str, str]:
        """Linears that read the attention norm's output."""
        return (self.q_proj, self.k_proj, self.v_proj)

    @property
    def mlp_inputs(self) -> tuple[str, ...]:
        """Linears that read the MLP norm's output, the one that the activation function follows first."""
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
class DecoderSpec:
    """One model, described: sizes, numerics, tensor names.

    The decoder is: embedding; blocks of norm -> attention -> residual -> norm -> MLP -> residual; final norm; head.

    Attributes:
        norm: Kind of all norms.
        activation: Of the MLP: `SILU`, `GELU`, `GELU_TANH` or `RELU`.
        layers: What differs by layer, one for each.
        tie_embeddings: The head is the embedding matrix.
        biased: Linears of a block that have a bias.
        embedding: The embedding's name; its tensor is `<embedding>.weight`. Likewise `final_norm` and `head`.
        block_prefix: Format string with `{layer}`, e.g. `model.layers.{layer}.`.
        block: Names inside a block; a linear has `<name>.weight` and perhaps `<name>.bias`, a norm likewise.
        fused: Linears of a block that the checkpoint stores as one.
        parallel: Attention and MLP read the same residual stream, and both are added to it at once.
        attention_scale: Factor of the attention scores; None for 1 / sqrt(head_dim).
        attention_softcap: Scores become cap * tanh(score / cap); None for none.
        logit_softcap: The same of the logits.
        clip_qkv: Queries, keys and values are clamped to this magnitude; None for no limit.
        alibi: Slope of every head (ALiBi, arXiv:2108.12409): a score falls by slope * distance; None for none.
        positions: Learned position embeddings; None for none.
        embedding_scale: Factor of the token embeddings.
        embedding_norm: Norm between embedding and first block; None for none.
        optional_prefix: First part of all names, which checkpoints saved from the bare decoder lack.
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

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.layers)

    @property
    def score_scale(self) -> float:
        """Factor of the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The rotary embeddings of all layers, each once."""
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
        """Shape of every tensor of a block, by name relative to the block; fused linears taken apart."""
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
        """Tensors that only a quantized block has: divisors behind an activation function that can absorb none."""
        if self.block.activation is None:
            return {}
        return {f"{self.block.activation}.scales": (self.intermediate_size,)}

    def stored_linears(self) -> dict[str, tuple[int, int]]:
        """[N, K] of a block's linears as the checkpoint has them, fused ones as one."""
        shapes = {name: self.linear_shape(name) for name in self.block.linears}
        for fused in self.fused:
            parts = [shapes.pop(name) for name in fused.parts]
            shapes[fused.stored] = (sum(rows for rows, _ in parts), parts[0][1])
        return shapes

    def stored_block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a block as the checkpoint has them."""
        shapes = self.block_shapes()
        for fused in self.fused:
            for kind in ("weight", "bias"):
                parts = [shapes.pop(f"{name}.{kind}", None) for name in fused.parts]
                if parts[0] is not None:
                    rows = sum(shape[0] for shape in parts if shape is not None)
                    shapes[f"{fused.stored}.{kind}"] = (rows, *parts[0][1:])
        return shapes

    def split_block(self, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A block's tensors as the checkpoint has them -> by the names of `block_shapes`."""
        tensors = dict(stored)
        for fused in self.fused:
            rows = [self.linear_shape(name)[0] for name in fused.parts]
            for kind in ("weight", "bias"):
                if f"{fused.stored}.{kind}" in tensors:
                    parts = fused.split(tensors.pop(f"{fused.stored}.{kind}"), rows)
                    tensors.update({f"{name}.{kind}": part for name, part in zip(fused.parts, parts, strict=True)})
        return tensors

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor outside the blocks, by full name; a tied head is not one."""
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
        """The groups the AWQ search works on, in the order a block runs them.

        v_proj -> o_proj and up_proj -> down_proj scale output rows of a linear that is itself quantized; row-wise
        rounding groups make that exact (a row's scale only multiplies its step sizes). A clamp between v_proj and
        o_proj rules the first out; an activation function between up_proj and down_proj the second, unless it is
        ReLU, for which relu(x / s) = relu(x) / s.
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
        """Linears whose weights are not clipped: clipping q and k moves the attention scores (as llm-awq)."""
        return (self.block.q_proj, self.block.k_proj)

    def _norm_shapes(self, name: str, channels: int) -> dict[str, tuple[int, ...]]:
        kinds = ("weight", "bias") if self.norm.bias else ("weight",)
        return {f"{name}.{kind}": (channels,) for kind in kinds}


@dataclass(frozen=True)
class Family:
    """A family of architectures that one function can describe.

    Attributes:
        name: As `inspect` and the manifest show it.
        architectures: Values of config.json's `architectures` that belong to it.
        describe: config.json -> `DecoderSpec`; raises `UnsupportedError` for what the family cannot express.
        example: A config.json of the family, tiny: what an unknown model's tensor names are compared with, and what
            the tests make random models of.
        needs_bos: Its models are at a loss on text that does not begin with the BOS token.
        published_with_code: Published checkpoints name Python code of their own (`auto_map`) that transformers has
            since taken in, so that it can be left alone.
    """

    name: str
    architectures: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], DecoderSpec]
    example: Mapping[str, Any]
    needs_bos: bool = False
    published_with_code: bool = False


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


def config_activation(config: Mapping[str, Any], key: str, default: str, known: Collection[str]) -> str:
    """The activation function that config.json names, if it is one of `known`."""
    found = config.get(key) or default
    activation = _ACTIVATIONS.get(found, "")
    if activation not in known:
        raise UnsupportedError(
            f"{key}: expected {' or '.join(known)}, got {found!r}.",
            where="config.json",
            fix="see the families in README.",
        )
    return activation


def refuse_unless(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses a model whose config.json asks for what the description cannot say.

    Args:
        config: config.json.
        expected: Key -> the one value that can be described; a key that is not there has it.

    Raises:
        UnsupportedError: A key has another value.
    """
    for key, value in expected.items():
        found = config.get(key, value)
        if found != value:
            raise UnsupportedError(
                f"{key}: expected {value!r}, got {found!r}.",
                where="config.json",
                fix="this variant of the family is not described; CONTRIBUTING.md, 'A new model family', shows how.",
            )
