"""How far a stage may be from the one before, derived from number formats and the number of roundings.

A value that is rounded to a format of unit roundoff u (fp16 2^-11, bf16 2^-8, fp32 2^-24) moves by at most u of its
size. Roundings of unrelated values are unrelated, so n of them in a row move a vector by about u sqrt(n) of its norm,
not u n (N. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SISC 41,
2019). What is compared is the norm of the difference over the norm of the reference.

In: a format's name, a number of blocks, a scheme. Out: a limit of the relative error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from awq2trt.scheme import QuantScheme

UNIT_ROUNDOFF: Final = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

ROUNDINGS_PER_BLOCK: Final = 24
"""Tensors that a block rounds on the way from its input to its output: norm, q, k and v (each two products, their
difference, the rotation), scores, softmax, context, o (three), sum; norm, gate and up (three each), SiLU, product, down
(three), sum. Most of these carry a part of the stream only, so the sum is an upper bound of what reaches it."""

SAFETY: Final = 8.0
"""Distance of the limit from the expected error. Expected is that of a typical position; what is held to the limit is
the worst of some hundred, and a position whose softmax hangs between two keys passes on more than it got. Measured
in units of the expected error: a random model of three blocks on 128 tokens of each of 20 texts 4.2, SmolLM2-135M on 64
tokens of each of 7 texts 2.8, and on up to 192 tokens of each of 20 others (`tools/check_texts.py`) 2.0."""


def drift_limit(dtype: str, blocks: int) -> float:
    """Relative error that `blocks` blocks computed in `dtype` may have gathered.

    Args:
        dtype: Of activations, NumPy's name.
        blocks: Blocks so far; the head counts as one.
    """
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt(ROUNDINGS_PER_BLOCK * blocks)


PRODUCTS_PER_STEP: Final = 16
"""Products that a tensor core adds before it rounds: `mma.m16n8k16` (PTX ISA, "Matrix multiply-accumulate")."""


def engine_limit(dtype: str, blocks: int, sums: Sequence[int]) -> float:
    """Relative error that an engine's logits may have gathered in `blocks` blocks computed in `dtype`.

    TensorRT rounds no more tensors than the graph has, fewer where it fuses. What it may do beyond the graph is to keep
    the sums of its own matrix products in fp16: tensor cores can, and which kernel it picks is not known before. A
    running sum of n steps of unrelated products grows as the square root of the steps, so its n roundings have a
    variance of u^2 (1 + 2 + ... + n) / n of the result's square, about u^2 n / 2: as much as n / 2 rounded tensors. Our
    kernels sum in fp32 (`plugins/FORMAT.md`), and for bf16 tensor cores have no other accumulators than fp32. Not
    measured: no engine has been run. SmolLM2-135M on 192 tokens: 1.2 times `drift_limit` with our kernels, 2.8 times
    with TensorRT's.

    Args:
        dtype: Of activations, NumPy's name.
        blocks: Blocks so far; the head counts as one.
        sums: Lengths of the sums in a block that TensorRT's own kernels make.
    """
    partial = sum(sums) / PRODUCTS_PER_STEP / 2 if dtype == "float16" else 0.0
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt((ROUNDINGS_PER_BLOCK + partial) * blocks)


CACHE_ROUNDINGS_PER_BLOCK: Final = 2
"""Tensors of a block that a cache of codes rounds: keys and values."""

_LARGEST_CODE: Final = 127


def cache_limit(head_dim: int, blocks: int) -> float:
    """Relative error that a cache of codes may have caused after `blocks` blocks, beside other errors.

    The largest of D normal numbers is about sqrt(2 ln(2D)) standard deviations, which 127 steps cover, rounded with an
    error of 1/sqrt(12) of a step: 0.7 % of a head's norm. Like any other roundings, those of unrelated tensors add up
    as squares. SmolLM2-135M with 192 tokens of each of 4 texts: the worst position 3.0, the mean 0.6 times what is
    expected.

    Args:
        head_dim: D.
        blocks: Blocks so far; the head counts as one.
    """
    error = math.sqrt(2 * math.log(2 * head_dim)) / _LARGEST_CODE / math.sqrt(12)
    return SAFETY * error * math.sqrt(CACHE_ROUNDINGS_PER_BLOCK * blocks)


STORED_ROUNDINGS_PER_BLOCK: Final = 2
"""Tensors of a block that storage rounds, where all else stays fp32: two norms in a checkpoint, cos and sin in a
graph."""


def storage_limit(dtype: str, blocks: int) -> float:
    """Relative error that weights stored in `dtype` may have caused after `blocks` blocks computed in fp32.

    Args:
        dtype: Of the stored tensors.
        blocks: Blocks so far; the head counts as one, and so does the embedding.
    """
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt(STORED_ROUNDINGS_PER_BLOCK * (blocks + 1))


QUANTIZATION_SAFETY: Final = 3.0
"""The same where the mean over positions is held to the limit, which varies little from text to text. Measured as
above: blocks of SmolLM2-135M 0.28 of the limit, of a random model 0.42. On those 20 texts every stage of SmolLM2-135M
stays below 0.28 of its limits, but for the quantized logits, at most 0.63 of `UNRELATED`. Rounded to nearest instead of
searched (`--method rtn`), with an fp16 head: 0.58 of its limits, the quantized logits 0.47."""

LINEARS_IN_A_ROW: Final = 4
"""Quantized linears between a block's input and its output: v and o, gate (or up) and down."""


def rounding_error(scheme: QuantScheme, in_features: int) -> float:
    """Expected relative error of a linear whose weights are rounded by a scheme.

    The range of G normal weights is about 2 sqrt(2 ln G) standard deviations, its 2^bits - 1 steps (one less, and both
    ways from the larger end, without zero points) are rounded with an error of 1/sqrt(12) of a step. Errors of
    unrelated weights add up as the weights do, so the output's relative error is the weights'. 0.10 for INT4 and
    groups of 128.

    Args:
        scheme: Bits, groups, zero points.
        in_features: K, the group where a scheme says a whole row.
    """
    group = max(2, scheme.group_of(in_features))
    steps = scheme.levels - 1 if scheme.zero_point else scheme.levels - 2
    return 2 * math.sqrt(2 * math.log(group)) / steps / math.sqrt(12)


def block_limit(scheme: QuantScheme, in_features: int) -> float:
    """Relative error that quantizing a block may make in what it adds to the residual stream, given the same input."""
    return QUANTIZATION_SAFETY * rounding_error(scheme, in_features) * math.sqrt(LINEARS_IN_A_ROW)


UNRELATED: Final = 1.0
"""Relative error of logits that say nothing of the reference's: as far from it as its own mean is."""
