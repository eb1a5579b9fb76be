"""How far a stage may be from the one before, derived from number formats and from the number of roundings.

A value that is rounded to a format of unit roundoff u (fp16 2^-11, bf16 2^-8, fp32 2^-24) moves by at most u of its
size. Roundings of unrelated values are unrelated, so n of them in a row move a vector by about u sqrt(n) of its norm,
not u n (N. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SISC 41, 2019). The measure
is the norm of the difference over the norm of the reference.

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
(three), sum. Most of these carry only a part of the stream, so the sum is an upper bound of what reaches it."""

SAFETY: Final = 8.0
"""Ratio of the limit to the expected error. The expected error is that of a typical position, but the limit applies to
the worst of some hundred, and a position whose softmax is undecided between two keys amplifies errors. Measured in
units of the expected error: 4.2 for a random model of three blocks on 128 tokens of each of 20 texts; 2.8 for
SmolLM2-135M on 64 tokens of each of 7 texts, and 2.0 on up to 192 tokens of each of 20 others (`tools/check_texts.py`).
"""


def drift_limit(dtype: str, blocks: int) -> float:
    """The relative error that `blocks` blocks computed in `dtype` may have accumulated.

    Args:
        dtype: Type of activations, by NumPy's name.
        blocks: Number of blocks so far; the head counts as one.
    """
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt(ROUNDINGS_PER_BLOCK * blocks)


PRODUCTS_PER_STEP: Final = 16
"""Number of products that a tensor core adds before it rounds: `mma.m16n8k16` (PTX ISA, "Matrix
multiply-accumulate")."""


def engine_limit(dtype: str, blocks: int, sums: Sequence[int]) -> float:
    """The relative error that an engine's logits may have accumulated in `blocks` blocks computed in `dtype`.

    TensorRT rounds no more tensors than the graph has, and fewer if it fuses. But it may keep the sums of its own
    matrix products in fp16: tensor cores can do that, and nobody knows in advance which kernel it will choose. A
    running sum of n steps of unrelated products grows as the square root of the steps, so its n roundings have a
    variance of u^2 (1 + 2 + ... + n) / n of the result's square, about u^2 n / 2: as much as n / 2 rounded tensors. Our
    kernels sum in fp32 (`plugins/FORMAT.md`), and for bf16 tensor cores have no other accumulators than fp32. This has
    not been measured, since no engine has been run. For SmolLM2-135M on 192 tokens the limit is 1.2 times `drift_limit`
    with our kernels, and 2.8 times with TensorRT's.

    Args:
        dtype: Type of activations, by NumPy's name.
        blocks: Number of blocks so far; the head counts as one.
        sums: Lengths of the sums in a block that TensorRT's own kernels make.
    """
    partial = sum(sums) / PRODUCTS_PER_STEP / 2 if dtype == "float16" else 0.0
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt((ROUNDINGS_PER_BLOCK + partial) * blocks)


CACHE_ROUNDINGS_PER_BLOCK: Final = 2
"""Tensors of a block that a cache of codes rounds: keys and values."""

_LARGEST_CODE: Final = 127


def cache_limit(head_dim: int, blocks: int) -> float:
    """The relative error that a cache of codes may cause in `blocks` blocks, in addition to other errors.

    The largest of D normal numbers is about sqrt(2 ln(2D)) standard deviations, which 127 steps cover, rounded with an
    error of 1/sqrt(12) of a step: 0.7 % of a head's norm. Like all roundings, those of unrelated tensors add up as
    squares. For SmolLM2-135M, with 192 tokens of each of 4 texts, the worst position has 3.0 times the expected error,
    and the mean is 0.6 times.

    Args:
        head_dim: D.
        blocks: Number of blocks so far; the head counts as one.
    """
    error = math.sqrt(2 * math.log(2 * head_dim)) / _LARGEST_CODE / math.sqrt(12)
    return SAFETY * error * math.sqrt(CACHE_ROUNDINGS_PER_BLOCK * blocks)


STORED_ROUNDINGS_PER_BLOCK: Final = 2
"""Tensors of a block that storage rounds if all else is fp32: two norms in a checkpoint, or cos and sin in a graph."""


def storage_limit(dtype: str, blocks: int) -> float:
    """The relative error that weights stored in `dtype` may cause in `blocks` blocks computed in fp32.

    Args:
        dtype: Type of the stored tensors.
        blocks: Number of blocks so far; the head counts as one, and so does the embedding.
    """
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt(STORED_ROUNDINGS_PER_BLOCK * (blocks + 1))


QUANTIZATION_SAFETY: Final = 3.0
"""The same ratio where the mean over positions is compared with the limit, since it varies little between texts.
Measured as above, blocks of SmolLM2-135M reach 0.28 of the limit, and those of a random model 0.42. On those 20 texts
every stage of SmolLM2-135M stays below 0.28 of its limits, except for the quantized logits, which reach at most 0.63 of
`UNRELATED`. When it is rounded to nearest instead (`--method rtn`), with an fp16 head, it reaches 0.58 of its limits,
and the quantized logits 0.47."""

LINEARS_IN_A_ROW: Final = 4
"""Number of quantized linears between a block's input and its output: v and o, gate (or up) and down."""


def rounding_error(scheme: QuantScheme, in_features: int) -> float:
    """The expected relative error of a linear whose weights are rounded by a scheme.

    The range of G normal weights is about 2 sqrt(2 ln G) standard deviations, and it has 2^bits - 1 steps (without zero
    points one less, and symmetric around 0 up to the larger end), which are rounded with an error of 1/sqrt(12) of a
    step. Errors of unrelated weights add up like the weights, so the relative error of the output is that of the
    weights. It is 0.10 for INT4 with groups of 128.

    Args:
        scheme: Bits, groups, zero points.
        in_features: K, which is the group if the scheme's group is a row.
    """
    group = max(2, scheme.group_of(in_features))
    steps = scheme.levels - 1 if scheme.zero_point else scheme.levels - 2
    return 2 * math.sqrt(2 * math.log(group)) / steps / math.sqrt(12)


def block_limit(scheme: QuantScheme, in_features: int) -> float:
    """The relative error that quantizing may cause in what a block adds to the residual stream, for the same input."""
    return QUANTIZATION_SAFETY * rounding_error(scheme, in_features) * math.sqrt(LINEARS_IN_A_ROW)


UNRELATED: Final = 1.0
"""The relative error of logits that are unrelated to the reference: as far from it as its own mean is."""
