"""Optimization profiles of a decoder's engine: `prefill` for many new tokens, and `decode` for one.

In: how many new tokens a call may have, and the sizes of the model. Out: the profiles as a manifest names them, and the
shapes of all inputs in each. Engines that are built here and a kit's script use the same profiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from awq2trt import opset
from awq2trt.artifact.records import ProfileRecord, RangeRecord, VisionRecord
from awq2trt.graph.read import DecoderSizes
from awq2trt.io_contract import (
    CACHE_POSITION,
    INPUT_IDS,
    PATCHES,
    VISION,
    WINDOWS,
    IoContract,
)
from awq2trt.models.vision.patch_layout import MAX_PIXELS, MIN_PIXELS, PatchLayout
from awq2trt.models.vision.windowed import WINDOW_SIZE, WindowLayout

TYPICAL_PREFILL: Final = 512
"""Prompt length that TensorRT chooses prefill kernels for; all lengths up to the longest work."""

_IMAGE: Final = "image"
"""Name of a vision graph's profile."""

ShapeRanges = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""Maps an input's name to its smallest, typical and largest shape."""


def decoder_profiles(longest: int) -> tuple[ProfileRecord, ...]:
    """Returns the profiles in the engine's order, with up to `longest` new tokens a call, or our operators' limit."""
    longest = min(longest, opset.MOST_TOKENS)
    return (
        ProfileRecord.of_tokens("prefill", 1, min(TYPICAL_PREFILL, longest), longest),
        ProfileRecord.of_tokens("decode", 1, 1, 1),
    )


def profiles_beside(graph: str, longest: int, vision: VisionRecord | None) -> tuple[ProfileRecord, ...]:
    """The profiles of a graph beside a decoder: an image at a time, or the tokens of a decoder's calls.

    Args:
        graph: `VISION` or `EMBEDDING`.
        longest: As of `decoder_profiles`.
        vision: How the model sees.
    """
    if graph != VISION:
        return decoder_profiles(longest)
    if vision is None or MAX_PIXELS not in vision.settings:
        return (ProfileRecord.of_one_image(_IMAGE),)
    return (_image_of_any_size(vision.settings),)


def _image_of_any_size(settings: Mapping[str, Any]) -> ProfileRecord:
    """A profile for all images that a processor makes; kernels are chosen for a square of the largest size."""
    layout = PatchLayout.of(settings)
    fewest, most = int(settings[MIN_PIXELS]), int(settings[MAX_PIXELS])
    pieces, square = layout.most_pieces(fewest, most), layout.merge**2
    side = max(1, math.isqrt(most) // (layout.patch_size * layout.merge))
    axes = {PATCHES: RangeRecord(shortest=square, typical=side**2 * square, longest=pieces * square)}
    if WINDOW_SIZE in settings:
        windows = WindowLayout.of(settings)
        typical, longest = (-(-side // windows.side)) ** 2, windows.most_windows(pieces)
        axes[WINDOWS] = RangeRecord(shortest=1, typical=typical, longest=longest)
    return ProfileRecord(name=_IMAGE, axes=axes)


def contract_shapes(profile: ProfileRecord, contract: IoContract) -> ShapeRanges:
    """Shapes of all inputs of a graph in a profile; an axis that the profile does not name is 1."""

    def sizes(axis: int | str) -> tuple[int, int, int]:
        if isinstance(axis, int):
            return (axis, axis, axis)
        found = profile.axes.get(axis)
        return (found.shortest, found.typical, found.longest) if found else (1, 1, 1)

    def ranges(shape: Sequence[int | str]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
        smallest, typical, largest = zip(*map(sizes, shape), strict=True)
        return smallest, typical, largest

    return {tensor.name: ranges(tensor.shape) for tensor in contract.inputs}


def profile_shapes(profile: ProfileRecord, sizes: DecoderSizes) -> ShapeRanges:
    """Returns the shapes of a decoder's inputs in a profile: one conversation, its cache of fixed length."""
    counts = (profile.tokens.shortest, profile.tokens.typical, profile.tokens.longest)
    rows: dict[str, list[int]] = {name: [width] for name, width in sizes.new_channels.items()} or {INPUT_IDS: []}
    smallest, typical, largest = counts
    return {
        **{name: ((1, smallest, *row), (1, typical, *row), (1, largest, *row)) for name, row in rows.items()},
        CACHE_POSITION: ((1,), (1,), (1,)),
        **{name: (shape,) * 3 for name, shape in sizes.table_shapes.items()},
        **{cache.past: (cache.shape, cache.shape, cache.shape) for cache in sizes.caches},
    }
