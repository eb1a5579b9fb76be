"""Refuses texts that are longer than a model was made for: beyond that length its answers are of little use.

In: a description and a number of tokens. Out: nothing, or an error.
"""

from __future__ import annotations

from awq2trt.errors import UsageError
from awq2trt.models.families import DecoderSpec


def require_positions(spec: DecoderSpec, tokens: int, *, where: str, fix: str | None = None) -> None:
    """Refuses a text that has more tokens than the model has positions.

    Args:
        spec: The model.
        tokens: Number of tokens that the model sees at once.
        where: The input or flag that makes the text so long, for errors.
        fix: What the user can do; None to suggest a fitting value for the flag `where`.

    Raises:
        UsageError: The text is too long.
    """
    if tokens > spec.max_positions:
        raise UsageError(
            f"expected at most {spec.max_positions} tokens, for which the model was made, got {tokens}.",
            where=where,
            fix=fix or f"use {where} {spec.max_positions} or less.",
        )
