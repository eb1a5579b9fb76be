"""How errors of queries and keys change attention scores: the weights and interactions of a head's rows.

In: the input of q_proj and k_proj, their weights, a rotary embedding. Out: for both linears a matrix M of every head,
such that an error D [head_dim, K] of the head's weight changes scores by tr(M D G D^T) in the mean square, G = E[x
x^T].

The score of a query q and a key k, d positions before it, is q^T R k: R rotates by -d (RoFormer, arXiv:2104.09864,
section 3.2; the identity without a rotary embedding). An error D x of the query changes it by x^T D^T R k. Softmax
ignores what all keys of a query have in common, so M is the covariance of R k. An error of the key changes it by q^T R
D x, so M = E[R^T q q^T R], summed over the query heads that share the key. Means are over tokens, q and k independent
of each other, and over the distances of all pairs of positions of a sequence.

Weighting keys by the attention that they get was measured and left out (`docs/notes/effort.md`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor

from awq2trt.models.families import DecoderSpec, RopeSpec
from awq2trt.models.rotary import Rotary
from awq2trt.quantization.gptq import DAMPING

POSITIONS: Final = 512
"""Positions in the sequences whose distances count: the default length of calibration windows."""

DISTANCE_STEP: Final = 4
"""Step between the distances that are considered."""


def score_moments(
    spec: DecoderSpec, layer: int, weights: Mapping[str, Tensor], mean: Tensor, gram: Tensor
) -> dict[str, Tensor]:
    """Computes how errors of the rows of q_proj and k_proj weigh and interact.

    Args:
        spec: The model.
        layer: The block's number.
        weights: The block's fp32 tensors.
        mean: E[x] of the input of q_proj and k_proj, fp32 [K].
        gram: E[x x^T] of that input, fp32 [K, K].

    Returns:
        M by linear, fp32 [heads of the linear, head_dim, head_dim]. It is empty for a model with norms of queries and
        keys, where the effect of an error depends on the token.
    """
    names = spec.block
    if names.head_norms:
        return {}

    def of_heads(name: str) -> tuple[Tensor, Tensor]:
        """Computes E[v] and E[v v^T] of a linear's outputs, [heads, head_dim] and [heads, head_dim, head_dim]."""
        heads = weights[f"{name}.weight"].view(-1, spec.head_dim, len(mean))
        unbiased, bias = heads @ mean, weights.get(f"{name}.bias")
        means = unbiased if bias is None else unbiased + bias.view_as(unbiased)
        return means, heads @ gram @ heads.mT - _outer(unbiased) + _outer(means)

    (_, queries), (mean_key, keys) = of_heads(names.q_proj), of_heads(names.k_proj)
    of_queries, of_keys, center = torch.zeros_like(keys), torch.zeros_like(queries), torch.zeros_like(mean_key)
    for turn, share in rotations(spec.layers[layer].rope, spec.head_dim):
        of_queries += share * (turn.T @ keys @ turn)
        center += share * (mean_key @ turn)
        of_keys += share * (turn @ queries @ turn.T)
    shared = spec.num_heads // spec.num_kv_heads
    return {
        names.q_proj: _damped(of_queries - _outer(center)).repeat_interleave(shared, dim=0),
        names.k_proj: _damped(of_keys.unflatten(0, (-1, shared)).sum(dim=1)),
    }


def rotations(rope: RopeSpec | None, head_dim: int) -> Iterator[tuple[Tensor, float]]:
    """Rotations by 0, 4, 8, ... positions, fp32 [head_dim, head_dim], and the share of pairs at each distance.

    The shares add up to 1.
    """
    unit = torch.eye(head_dim)
    if rope is None:
        yield unit, 1.0
        return
    rotary, distances = Rotary.for_positions(rope, POSITIONS), range(0, POSITIONS, DISTANCE_STEP)
    pairs = sum(POSITIONS - distance for distance in distances)
    for distance in distances:
        # The key is rotated by 0, because cosines and sines may have a magnitude other than 1.
        key = rotary.rotate(unit.view(head_dim, 1, 1, head_dim), 0)
        turned = rotary.rotate(key, distance).view(head_dim, head_dim)
        yield turned.T, (POSITIONS - distance) / pairs


def _outer(vectors: Tensor) -> Tensor:
    """v v^T of every row of [heads, head_dim]."""
    return vectors.unsqueeze(2) * vectors.unsqueeze(1)


def _damped(moments: Tensor) -> Tensor:
    """Adds a share of the mean diagonal to each row's own weight, as in GPTQ, since the estimate comes from one text.

    So every row gets a positive weight: the codes of a head that affects no scores are rounded row by row.
    """
    own = moments.diagonal(dim1=1, dim2=2).mean(dim=1).view(-1, 1, 1)
    return torch.where(own > 0, moments, 0) + torch.where(own > 0, DAMPING * own, 1) * torch.eye(moments.shape[1])
