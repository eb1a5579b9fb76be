"""How far a stage may be from the one before, derived from number formats and the number of roundings.

A value that is rounded to a format of unit roundoff u (fp16 2^-11, bf16 2^-8, fp32 2^-24) moves by at most u of its
size. Roundings of unrelated values are unrelated, so n of them in a row move a vector by about u sqrt(n) of its norm,
not u n (N. Higham and T. Mary, "A new approach to probabilistic rounding error analysis", SISC 41,
2019). What is compared is the norm of the difference over the norm of the reference.
"""

from __future__ import annotations

import math
from typing import Final

UNIT_ROUNDOFF: Final = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

ROUNDINGS_PER_BLOCK: Final = 24
"""Tensors that a block rounds on the way from its input to its output: norm, q, k and v (each two products, their
difference, the rotation), scores, softmax, context, o (three), sum; norm, gate and up (three each), SiLU, product, down
(three), sum. Most of these carry a part of the stream only, so the sum is an upper bound of what reaches it."""

SAFETY: Final = 3.0
"""Distance of the limit from the expected error. SmolLM2-135M as exported (fp16) on 18 tokens of text reaches 1.2e-2
at the first token, whose residual holds values up to 24,000, and 1e-3 to 6e-3 at the others; expected is 1.3e-2."""


def drift_limit(dtype: str, blocks: int) -> float:
    """Relative error that `blocks` blocks computed in `dtype` may have gathered.

    Args:
        dtype: Of activations, NumPy's name.
        blocks: Blocks so far; the head counts as one.
    """
    return SAFETY * UNIT_ROUNDOFF[dtype] * math.sqrt(ROUNDINGS_PER_BLOCK * blocks)
