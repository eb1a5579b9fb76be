"""How long a text a model was made for: longer ones are refused, since beyond it a model says something, but not much.

In: a description and a number of tokens. Out: nothing, or an error.
"""

from __future__ import annotations

from awq2trt.errors import UsageError
from awq2trt.models.families import DecoderSpec


def require_positions(spec: DecoderSpec, tokens: int, *, where: str, fix: str | None = None) -> None:
    """Refuses a text that has more tokens than the model has positions.

    Args:
        spec: The model.
        tokens: Of the text, all that the model sees at once.
        where: What the user gave that makes it so long, for errors.
        fix: What the user can do; None for the flag `where` with a value that fits.

    Raises:
        UsageError: It is too long.
    """
    if tokens > spec.max_positions:
        raise UsageError(
            f"expected at most {spec.max_positions} tokens, which is what the model was made for, got {tokens}.",
            where=where,
            fix=fix or f"use {where} {spec.max_positions} or less.",
        )
