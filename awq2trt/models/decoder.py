"""The decoder in PyTorch, interpreted from its `DecoderSpec`, with one block in memory at a time.

In: a `ModelSource` and tokens, or the tensors of one block and its input. Out: the residual stream after a block, or
logits. Everything that runs a model in PyTorch uses `BlockRunner` for its blocks: calibration, search, the model's own
calibration text, evaluation and checks. Everything is computed in fp32, so that statistics do not depend on the
precision in which a checkpoint happens to be stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.models.block_weights import READ_FAR_AHEAD, BlockWeights, load_blocks, to_tensor, with_linears_of
from awq2trt.models.cross_attention import Media, look_at_images
from awq2trt.models.deepstack import Deepstack
from awq2trt.models.families import GELU, GELU_TANH, RELU, SILU, DecoderSpec, LayerSpec, NormSpec, RopeSpec
from awq2trt.models.image_blocks import ImageBlocks
from awq2trt.models.positions import require_positions
from awq2trt.models.rotary import Rotary, Windows
from awq2trt.models.sources.base import Array, ModelSource

Shown: TypeAlias = Media | Deepstack | ImageBlocks
"""What blocks see of images, other than in the places of image tokens."""

Observer = Callable[[str, Tensor], None]
"""Called with the name of the first linear that reads an input, and that input [tokens, K] fp32."""

TOKENS_AT_ONCE = 512
"""Tokens that go through a block at once, in whole sequences: more would only make the MLP's activations larger."""

HEAD_ROWS = 128
"""Positions whose logits are computed at once: 128 x 49,152 fp32 are 25 MB; larger pieces only miss the cache."""

HEAD_PIECE = 8192
"""Rows of a head in half precision that are widened at once: 8,192 x 4,096 fp32 are 128 MiB."""

THIN_ROWS = 64
"""With at most this many rows, the product is computed transposed, which is faster in MKL: 16 sequences of SmolLM2-135M
write their text (`text.self_written`) in 118 instead of 154 ms a token, with torch 2.13.0 on 2 cores of a Xeon with
AVX-512. With 64 rows of bf16, as 64 sequences have, it takes 3 to 13 % less time on an EPYC with AVX512_BF16."""


@dataclass
class KeyValueCache:
    """Keys and values of one block, filled from position 0; each [batch, num_kv_heads, capacity, head_dim].

    They may have a narrower type than what is computed with; then one position attends to them in that type.
    """

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, spec: DecoderSpec, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> KeyValueCache:
        """An empty cache for `capacity` positions."""
        shape = (batch, spec.num_kv_heads, capacity, spec.head_dim)
        return cls(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))

    def append_(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new positions and returns all keys and values so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def matmul_transposed(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in fp32, for fp32 x [..., K] and W [N, K]; if W has a narrower type, both factors are rounded to it."""
    factor = x.to(weight.dtype)
    if x.shape[:-1].numel() > THIN_ROWS:
        return F.linear(factor, weight).to(x.dtype)
    product: Tensor = weight @ factor.flatten(0, -2).T
    return product.T.reshape(*x.shape[:-1], -1).to(x.dtype)


def apply_norm(spec: NormSpec, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A model's norm over the last axis, fp32."""
    gain = weight + 1 if spec.unit_offset else weight
    if not spec.rms:
        return F.layer_norm(x, (x.shape[-1],), gain, bias, spec.eps)
    normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + spec.eps) * gain
    return normed if bias is None else normed + bias


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    SILU: F.silu,
    GELU: F.gelu,
    GELU_TANH: partial(F.gelu, approximate="tanh"),
    RELU: F.relu,
}


@dataclass
class ActivationRange:
    """The largest magnitude among the activations that an exported model holds in half precision.

    Attributes:
        largest: The largest magnitude so far.
    """

    largest: float = 0.0

    def add_(self, x: Tensor) -> None:
        """Takes one more tensor into account."""
        low, high = torch.aminmax(x)
        self.largest = max(self.largest, -float(low), float(high))


@dataclass(frozen=True)
class BlockRunner:
    """Runs the decoder blocks of one model.

    Attributes:
        spec: The model.
        rotaries: Tables of its rotary embeddings, for every position that the runner will see.
        seen: Receives the range of every residual stream, every linear's output and the MLP's product; None for no
            measurement.
        media: What blocks see of its sequences' images; None for text alone.
    """

    spec: DecoderSpec
    rotaries: Mapping[RopeSpec, Rotary]
    seen: ActivationRange | None = None
    media: Shown | None = None

    @classmethod
    def for_positions(cls, spec: DecoderSpec, positions: int, *, seen: ActivationRange | None = None) -> BlockRunner:
        """Makes a runner for sequences of at most `positions` tokens.

        Raises:
            UsageError: The model was made for shorter sequences.
        """
        require_positions(spec, positions, where="the longest text", fix="use a shorter sequence.")
        return cls(spec, {rope: Rotary.for_positions(rope, positions) for rope in spec.ropes}, seen)

    def placed(self, positions: Tensor | None, media: Shown | None = None) -> BlockRunner:
        """A runner for certain sequences with images, which have places in rows and columns, or which blocks see.

        Args:
            positions: int64 [sequences, 3, S]; None for sequences that count tokens one by one.
            media: What the sequences see; None if the decoder only reads images, or for text alone.
        """
        rotaries = self.rotaries
        if positions is not None:
            rotaries = {rope: rotary.placed(positions) for rope, rotary in rotaries.items()}
        return replace(self, rotaries=rotaries, media=media)

    def run(
        self,
        weights: BlockWeights,
        hidden: Tensor,
        *,
        layer: int,
        cache: KeyValueCache | None = None,
        observe: Observer | None = None,
        windows: Windows = None,
    ) -> Tensor:
        """Runs one block, after what stands before it if its tensors are there, and adds what deepstack adds behind it.

        Args:
            weights: The block's tensors.
            hidden: Residual stream, fp32 [batch, S, hidden_size].
            layer: The block's number.
            cache: Keys and values before `hidden`; None if `hidden` starts at position 0.
            observe: Called with the input of every group of linears.
            windows: Which of the sequences of `placed` these are.

        Returns:
            The residual stream after the block, and after what deepstack adds; same shape.
        """
        spec, names = self.spec, self.spec.block
        start = cache.length if cache else 0
        hidden = self._look(self.look_at_images(weights, hidden, start, windows))
        normed = self._norm(weights, names.input_norm, hidden)
        _report(observe, names.q_proj, normed)
        context = self._attention(weights, normed, self.spec.layers[layer], cache, windows)
        _report(observe, names.o_proj, context)
        attended = self._norm(weights, names.post_attention_norm, self._linear(weights, names.o_proj, context))
        stream = hidden if spec.parallel else hidden + attended
        if names.mlp_norm is not None:
            normed = self._norm(weights, names.mlp_norm, stream)
            _report(observe, names.mlp_inputs[0], normed)
        inner = self._look(self._mlp_inner(weights, normed))
        _report(observe, names.down_proj, inner)
        output = self._norm(weights, names.post_mlp_norm, self._linear(weights, names.down_proj, inner))
        after = hidden + attended + output if spec.parallel else stream + output
        if isinstance(self.media, Deepstack):
            after = self.media.added(after, layer, start, slice(None) if windows is None else windows)
        return self._look(after)

    def look_at_images(self, weights: BlockWeights, hidden: Tensor, start: int = 0, windows: Windows = None) -> Tensor:
        """The residual stream behind the cross-attention before a block; the same one if there is none.

        Args:
            weights: The block's tensors.
            hidden: fp32 [batch, S, hidden_size].
            start: The first position.
            windows: Which of the sequences of `placed` these are.
        """
        cross, chosen = self.spec.cross, slice(None) if windows is None else windows
        if cross is None or f"{cross.prefix}attn_gate" not in weights:
            return hidden
        media = self.media if isinstance(self.media, Media) else None
        seen = media and media.part(chosen, slice(start, start + hidden.shape[1]))
        return look_at_images(cross, weights, self._look(hidden), seen)

    def _mlp_inner(self, weights: BlockWeights, normed: Tensor) -> Tensor:
        """The input of down_proj, [batch, S, intermediate_size]."""
        names, activation = self.spec.block, _ACTIVATIONS[self.spec.activation]
        inner = activation(self._linear(weights, names.mlp_inputs[0], normed))
        if names.gate_proj is not None:
            inner = inner * self._linear(weights, names.up_proj, normed)
        divisors = weights.get(f"{names.activation}.scales")
        return inner if divisors is None else inner / divisors

    def _attention(
        self, weights: BlockWeights, normed: Tensor, layer: LayerSpec, cache: KeyValueCache | None, windows: Windows
    ) -> Tensor:
        """Grouped-query attention up to the output projection, [batch, S, num_heads * head_dim]."""
        spec, names = self.spec, self.spec.block
        start = cache.length if cache else 0
        queries = self._heads(weights, normed, names.q_proj, spec.num_heads)
        keys = self._heads(weights, normed, names.k_proj, spec.num_kv_heads)
        values = self._heads(weights, normed, names.v_proj, spec.num_kv_heads)
        queries, keys = self._norm(weights, names.q_norm, queries), self._norm(weights, names.k_norm, keys)
        if layer.rope is not None:
            rotary = self.rotaries[layer.rope]
            queries, keys = rotary.rotate(queries, start, windows), rotary.rotate(keys, start, windows)
        if cache:
            keys, values = cache.append_(keys, values)
        bias = self._attention_bias(queries.shape[2], keys.shape[2], layer.sliding_window, windows)
        context = _attend(spec, queries, keys, values, bias)
        return context.transpose(1, 2).flatten(2)

    def _attention_bias(self, queries: int, keys: int, sliding_window: int | None, windows: Windows) -> Tensor:
        """The mask, or with ALiBi the summand of the scores, as of the function of this name."""
        if isinstance(self.media, ImageBlocks):
            chosen = slice(None) if windows is None else windows
            return self.media.mask(chosen, keys, queries, sliding_window)
        return _attention_bias(self.spec, queries, keys, sliding_window)

    def _heads(self, weights: BlockWeights, normed: Tensor, name: str, heads: int) -> Tensor:
        """Projects [batch, S, hidden_size] and splits the result into heads: [batch, heads, S, head_dim]."""
        projected = self._linear(weights, name, normed)
        if self.spec.clip_qkv is not None:
            projected = projected.clamp(-self.spec.clip_qkv, self.spec.clip_qkv)
        return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)

    def _norm(self, weights: BlockWeights, name: str | None, x: Tensor) -> Tensor:
        """Applies the norm `name`; returns x itself if there is no such norm."""
        if name is None:
            return x
        return apply_norm(self.spec.norm, x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def _linear(self, weights: BlockWeights, name: str, x: Tensor) -> Tensor:
        projected, bias = matmul_transposed(x, weights[f"{name}.weight"]), weights.get(f"{name}.bias")
        return self._look(projected if bias is None else projected + bias)

    def _look(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.add_(x)
        return x


@dataclass(frozen=True)
class Beginning:
    """What the first block reads of texts of one length.

    Attributes:
        hidden: fp32 [texts, S, hidden_size].
        positions: As of `BlockRunner.placed`, like `media`.
        media: What blocks see of the texts' images.
    """

    hidden: Tensor
    positions: Tensor | None = None
    media: Shown | None = None


def _attend(spec: DecoderSpec, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention of the last positions; [batch, heads, S, head_dim] in and out."""
    narrow = keys.dtype != queries.dtype
    if narrow and (queries.shape[2] > 1 or spec.attention_softcap is not None):
        keys, values = keys.to(queries.dtype), values.to(queries.dtype)
    if spec.attention_softcap is not None:
        return _attend_capped(spec, queries, keys, values, bias)
    if queries.shape[2] > 1:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, enable_gqa=True, scale=spec.score_scale
        )
    # One position: the query heads of a KV head take the place of positions, so keys and values are not copied per
    # head.
    grouped = queries.view(keys.shape[0], keys.shape[1], -1, keys.shape[3])
    if spec.alibi is not None:
        bias = bias.view(keys.shape[1], -1, bias.shape[-1])
    if narrow:
        return _attend_narrowly(spec, grouped, keys, values, bias).reshape(queries.shape)
    context = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=spec.score_scale)
    return context.reshape(queries.shape)  # not view(): CUDA's kernels use another memory layout


def _attend_narrowly(spec: DecoderSpec, grouped: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Attention to a cache of a narrower type: its products have factors of that type, and all else is fp32.

    On a CPU this takes a third of the time of a fused kernel, which is made for many positions.
    """
    scores = (grouped.to(keys.dtype) @ keys.mT).to(grouped.dtype) * spec.score_scale
    scores = scores + bias if spec.alibi is not None else scores.masked_fill_(~bias, -torch.inf)
    return (scores.softmax(dim=-1).to(values.dtype) @ values).to(grouped.dtype)


def _attend_capped(spec: DecoderSpec, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention whose scores are capped: cap * tanh(score / cap)."""
    assert spec.attention_softcap is not None
    grouped = queries.unflatten(1, (keys.shape[1], -1))  # [batch, KV heads, heads of each, S, head_dim]
    scores = _softcap(grouped @ keys.unsqueeze(2).mT * spec.score_scale, spec.attention_softcap)
    seen = mask if mask.ndim == 2 else mask.unsqueeze(2)  # a mask of its own for every text has an axis of heads
    return (scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ values.unsqueeze(2)).flatten(1, 2)


def _softcap(x: Tensor, cap: float) -> Tensor:
    return torch.tanh(x / cap) * cap


def _attention_bias(spec: DecoderSpec, queries: int, keys: int, sliding_window: int | None) -> Tensor:
    """The mask as bool [queries, keys], or with ALiBi the summand of the scores, fp32 [heads, queries, keys]."""
    mask = attention_mask(queries, keys, sliding_window)
    if spec.alibi is None:
        return mask
    distance = torch.arange(keys).unsqueeze(0) - torch.arange(keys - queries, keys).unsqueeze(1)
    bias = torch.tensor(spec.alibi).view(-1, 1, 1) * distance
    return bias.masked_fill(~mask, -torch.inf)


def attention_mask(queries: int, keys: int, sliding_window: int | None) -> Tensor:
    """Which keys each of the last `queries` positions may see, as bool [queries, keys]."""
    query_position = torch.arange(keys - queries, keys).unsqueeze(1)
    key_position = torch.arange(keys).unsqueeze(0)
    mask = key_position <= query_position
    if sliding_window is not None:
        mask &= key_position > query_position - sliding_window
    return mask


class Ends:
    """What comes before and after the blocks: embedding, final norm, head; each is read when it is first needed.

    Args:
        source: The model.
        narrow_head: Keep the head in its stored type, and widen one piece of it at a time. This suits a few tokens of a
            model whose head in fp32 takes more memory than a block.
        head_type: Type of the factors of the head's product otherwise.
    """

    def __init__(
        self, source: ModelSource, *, narrow_head: bool = False, head_type: torch.dtype = torch.float32
    ) -> None:
        self._spec = source.spec
        self._source = source
        self._narrow_head = narrow_head
        self._head_type = head_type
        self._read: dict[str, Array] = {}

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """The residual stream before the first block.

        Args:
            tokens: int64 [batch, S].
            start: Position of the first token.

        Returns:
            fp32 [batch, S, hidden_size].
        """
        spec = self._spec
        hidden = to_tensor(self._stored(f"{spec.embedding}.weight")[tokens.numpy(force=True)]) * spec.embedding_scale
        if spec.positions is not None:
            first = start + spec.positions.offset
            table = self._stored(f"{spec.positions.table}.weight")
            hidden = hidden + to_tensor(table[first : first + tokens.shape[1]])
        return self._norm(spec.embedding_norm, hidden)

    def normed(self, hidden: Tensor) -> Tensor:
        """The input of the head, from fp32 [..., hidden_size], the output of the last block."""
        return self._norm(self._spec.final_norm, hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., hidden_size] -> fp32 [..., vocab_size]."""
        logits = self._project(self.normed(hidden))
        cap = self._spec.logit_softcap
        return logits if cap is None else _softcap(logits, cap)

    def logits_in_pieces(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of [tokens, hidden_size], computed for `HEAD_ROWS` rows at a time."""
        for piece in hidden.split(HEAD_ROWS):
            yield self.logits(piece)

    def _project(self, normed: Tensor) -> Tensor:
        if not self._narrow_head:
            return matmul_transposed(normed, self._head)
        starts = range(0, self._spec.vocab_size, HEAD_PIECE)
        pieces = (to_tensor(self._stored_head[start : start + HEAD_PIECE]) for start in starts)
        return torch.cat([normed @ piece.T for piece in pieces], dim=-1)

    def _norm(self, name: str | None, x: Tensor) -> Tensor:
        if name is None:
            return x
        weight, bias = f"{name}.weight", f"{name}.bias"
        offset = to_tensor(self._stored(bias)) if bias in self._spec.outer_shapes() else None
        return apply_norm(self._spec.norm, x, to_tensor(self._stored(weight)), offset)

    @cached_property
    def _head(self) -> Tensor:
        stored = self._stored_head
        # A tied head in fp32 is the embedding itself, not a copy of it.
        shared = stored.dtype == np.float32 and stored.flags.writeable
        return (torch.as_tensor(stored) if shared else to_tensor(stored)).to(self._head_type)

    @property
    def _stored_head(self) -> Array:
        spec = self._spec
        return self._stored(f"{spec.embedding if spec.tie_embeddings else spec.head}.weight")  # [V, hidden]

    def _stored(self, name: str) -> Array:
        """A checked tensor outside the blocks, in its stored type."""
        if name not in self._read:
            self._read[name] = self._source.checked_tensor(name, self._spec.outer_shapes()[name])
        return self._read[name]


def run_model(source: ModelSource, tokens: Tensor, *, progress: Callable[[int], None] | None = None) -> Tensor:
    """Computes the final residual stream, loading one block at a time.

    Args:
        source: The model.
        tokens: int64 [batch, S].
        progress: Called with 1 after every block.

    Returns:
        fp32 [batch, S, hidden_size], before the final norm.
    """
    require_positions(source.spec, tokens.shape[1], where="the longest text", fix="use a shorter one.")
    return run_blocks(source, Ends(source).embed(tokens), progress=progress)


def run_blocks(
    source: ModelSource,
    hidden: Tensor,
    *,
    runner: BlockRunner | None = None,
    progress: Callable[[int], None] | None = None,
    factors: torch.dtype = torch.float32,
) -> Tensor:
    """Runs all blocks like `run_model`, beginning with the residual stream before the first block.

    Args:
        source: The model.
        hidden: fp32 [batch, S, hidden_size].
        runner: Runs the blocks; None for sequences without images, of which nothing is to be measured.
        progress: Called with 1 after every block.
        factors: Type of the linears' factors, see `with_linears_of`.
    """
    runner = runner or BlockRunner.for_positions(source.spec, hidden.shape[1])
    at_once = max(1, TOKENS_AT_ONCE // hidden.shape[1])
    for layer, stored in enumerate(load_blocks(source, ahead=READ_FAR_AHEAD)):
        weights = with_linears_of(source.spec, stored, factors)
        parts = (slice(start, start + at_once) for start in range(0, len(hidden), at_once))
        hidden = torch.cat([runner.run(weights, hidden[part], layer=layer, windows=part) for part in parts])
        if progress:
            progress(1)
    return hidden


def _report(observe: Observer | None, name: str, x: Tensor) -> None:
    if observe:
        observe(name, x.flatten(0, -2))
