"""Optimization profiles of a decoder's engine: `prefill` for many new tokens, and `decode` for one.

In: how many new tokens a call may have, and the sizes of the model. Out: the profiles as a manifest names them, and the
shapes of all inputs in each. Engines that are built here and a kit's script use the same profiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from awq2trt import opset
from awq2trt.artifact.records import ProfileRecord
from awq2trt.graph.read import DecoderSizes
from awq2trt.io_contract import CACHE_POSITION, INPUT_IDS

TYPICAL_PREFILL: Final = 512
"""Prompt length that TensorRT chooses prefill kernels for; all lengths up to the longest work."""

ShapeRanges = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Maps an input's name to its smallest, typical and largest shape."""


def decoder_profiles(longest: int) -> tuple[ProfileRecord, ...]:
    """Returns the profiles in the engine's order, with up to `longest` new tokens a call, or our operators' limit."""
    longest = min(longest, opset.MOST_TOKENS)
    return (
        ProfileRecord.of_tokens("prefill", 1, min(TYPICAL_PREFILL, longest), longest),
        ProfileRecord.of_tokens("decode", 1, 1, 1),
    )


def profile_shapes(profile: ProfileRecord, sizes: DecoderSizes) -> ShapeRanges:
    """Returns the shapes of all inputs in a profile: one conversation, its cache of fixed length."""
    tokens = profile.tokens
    return {
        INPUT_IDS: ((1, tokens.shortest), (1, tokens.typical), (1, tokens.longest)),
        CACHE_POSITION: ((1,), (1,), (1,)),
        **{cache.past: (cache.shape, cache.shape, cache.shape) for cache in sizes.caches},
    }
