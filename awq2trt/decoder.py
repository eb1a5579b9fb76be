"""The decoder in PyTorch, interpreted from its `DecoderSpec`, one block in memory at a time.

Calibration, search, self-written calibration text and perplexity all run through `run_block`. Everything is
computed in fp32: statistics must not depend on the precision a checkpoint happens to be stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awq2trt.families import DecoderSpec
from awq2trt.source import Array, ModelSource

Observer = Callable[[str, Tensor], None]
"""Called with the name of the first linear that reads an input, and that input [tokens, K] fp32."""

BlockWeights = Mapping[str, Tensor]
"""A block's tensors by name relative to the block, fp32."""

HEAD_ROWS = 128
"""Positions whose logits are computed at once: 128 x 49,152 fp32 are 25 MB; larger pieces only miss the cache."""


@dataclass
class KeyValueCache:
    """Keys and values of one block, filled from position 0; each [batch, num_kv_heads, capacity, head_dim]."""

    keys: Tensor
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, spec: DecoderSpec, batch: int, capacity: int) -> KeyValueCache:
        """A cache for `capacity` positions, nothing in it."""
        shape = (batch, spec.num_kv_heads, capacity, spec.head_dim)
        return cls(torch.zeros(shape), torch.zeros(shape))

    def append_(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new positions and returns all keys and values so far."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def to_tensor(value: Array) -> Tensor:
    """A NumPy tensor of any float dtype (bfloat16 of ml_dtypes included) as fp32."""
    return torch.from_numpy(np.array(value, dtype=np.float32))


def load_block(source: ModelSource, layer: int) -> dict[str, Tensor]:
    """All tensors of a block in fp32, by name relative to the block."""
    return {name: to_tensor(value) for name, value in source.block(layer).items()}


class Rotary:
    """cos and sin of a model's rotary embedding for the first `positions` positions."""

    def __init__(self, spec: DecoderSpec, positions: int) -> None:
        cos, sin = spec.rope.tables(positions)
        self.cos = torch.from_numpy(cos)  # [positions, head_dim / 2]
        self.sin = torch.from_numpy(sin)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotates queries or keys [batch, heads, S, head_dim] at positions start .. start + S - 1."""
        cos = self.cos[start : start + x.shape[2]]
        sin = self.sin[start : start + x.shape[2]]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, fp32."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


@dataclass(frozen=True)
class BlockRunner:
    """Runs decoder blocks of one model.

    Attributes:
        spec: The model.
        rotary: Tables that cover every position the runner will see.
    """

    spec: DecoderSpec
    rotary: Rotary

    @classmethod
    def for_positions(cls, spec: DecoderSpec, positions: int) -> BlockRunner:
        """A runner for sequences of at most `positions` tokens."""
        return cls(spec, Rotary(spec, positions))

    def run(
        self,
        weights: BlockWeights,
        hidden: Tensor,
        *,
        cache: KeyValueCache | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """One pre-norm block.

        Args:
            weights: The block's tensors.
            hidden: Residual stream, fp32 [batch, S, hidden_size].
            cache: Keys and values before `hidden`; None if `hidden` starts at position 0.
            observe: Sees the input of every group of linears.

        Returns:
            The residual stream after the block, same shape.
        """
        names, eps = self.spec.block, self.spec.norm_eps
        normed = rms_norm(hidden, weights[f"{names.input_norm}.weight"], eps)
        _report(observe, names.q_proj, normed)
        context = self._attention(weights, normed, cache)
        _report(observe, names.o_proj, context)
        hidden = hidden + _linear(weights, names.o_proj, context)
        normed = rms_norm(hidden, weights[f"{names.mlp_norm}.weight"], eps)
        _report(observe, names.gate_proj, normed)
        gated = F.silu(_linear(weights, names.gate_proj, normed)) * _linear(weights, names.up_proj, normed)
        _report(observe, names.down_proj, gated)
        return hidden + _linear(weights, names.down_proj, gated)

    def _attention(self, weights: BlockWeights, normed: Tensor, cache: KeyValueCache | None) -> Tensor:
        """Grouped-query attention before the output projection, [batch, S, num_heads * head_dim]."""
        spec, names = self.spec, self.spec.block
        start = cache.length if cache else 0
        queries = self.rotary.rotate(_heads(_linear(weights, names.q_proj, normed), spec.num_heads), start)
        keys = self.rotary.rotate(_heads(_linear(weights, names.k_proj, normed), spec.num_kv_heads), start)
        values = _heads(_linear(weights, names.v_proj, normed), spec.num_kv_heads)
        if cache:
            keys, values = cache.append_(keys, values)
        context = _attend(queries, keys, values, spec.sliding_window)
        return context.transpose(1, 2).flatten(2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, sliding_window: int | None) -> Tensor:
    """Causal attention of the last positions; [batch, heads, S, head_dim] in and out."""
    mask = attention_mask(queries.shape[2], keys.shape[2], sliding_window)
    if queries.shape[2] > 1:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
    # One position: the query heads of a KV head stand in for positions, so keys and values are not copied per head.
    grouped = queries.view(keys.shape[0], keys.shape[1], -1, keys.shape[3])
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).view(queries.shape)


def attention_mask(queries: int, keys: int, sliding_window: int | None) -> Tensor:
    """Which keys each of the last `queries` positions may see, bool [queries, keys]."""
    query_position = torch.arange(keys - queries, keys).unsqueeze(1)
    key_position = torch.arange(keys).unsqueeze(0)
    mask = key_position <= query_position
    if sliding_window is not None:
        mask &= key_position > query_position - sliding_window
    return mask


class Ends:
    """What stands before and after the blocks: embedding, final norm, head."""

    def __init__(self, source: ModelSource) -> None:
        spec = source.spec
        tensors = source.outer()
        self._eps = spec.norm_eps
        self._embedding = to_tensor(tensors[f"{spec.embedding}.weight"])  # [V, hidden]
        self._norm = to_tensor(tensors[f"{spec.final_norm}.weight"])
        self._head = (
            self._embedding if spec.tie_embeddings else to_tensor(tensors[f"{spec.head}.weight"])
        )  # [V, hidden]

    def embed(self, tokens: Tensor) -> Tensor:
        """Residual stream before the first block: int64 [batch, S] -> fp32 [batch, S, hidden_size]."""
        return F.embedding(tokens, self._embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., hidden_size] -> fp32 [..., vocab_size]."""
        return rms_norm(hidden, self._norm, self._eps) @ self._head.T

    def logits_in_pieces(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits of [tokens, hidden_size], `HEAD_ROWS` rows at a time."""
        for piece in hidden.split(HEAD_ROWS):
            yield self.logits(piece)


def run_model(source: ModelSource, tokens: Tensor, *, progress: Callable[[int], None] | None = None) -> Tensor:
    """The final residual stream, loading one block at a time.

    Args:
        source: The model.
        tokens: int64 [batch, S].
        progress: Called with 1 after every block.

    Returns:
        fp32 [batch, S, hidden_size], before the final norm.
    """
    runner = BlockRunner.for_positions(source.spec, tokens.shape[1])
    hidden = Ends(source).embed(tokens)
    for layer in range(source.spec.num_layers):
        weights = load_block(source, layer)
        # One sequence at a time keeps the MLP's [S, intermediate] activations small.
        hidden = torch.cat([runner.run(weights, sequence) for sequence in hidden.split(1)])
        if progress:
            progress(1)
    return hidden


def _report(observe: Observer | None, name: str, x: Tensor) -> None:
    if observe:
        observe(name, x.flatten(0, -2))


def _linear(weights: BlockWeights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _heads(x: Tensor, heads: int) -> Tensor:
    """[batch, S, heads * head_dim] -> [batch, heads, S, head_dim]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
