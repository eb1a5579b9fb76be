"""Arranges what an image processor makes for the vision graph of a model, by what its manifest says.

In: a vision record, and prepared pixels. Out: a `PreparedImage`. It is the place that knows all families. NumPy only.
"""

from __future__ import annotations

from typing import Final

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.mosaic import PINPOINTS, MosaicLayout
from awq2trt.models.vision.patch_layout import PatchLayout
from awq2trt.models.vision.pooled import IMAGE_BLOCKS, pooled_image
from awq2trt.models.vision.prepared import Pixels, PreparedImage
from awq2trt.models.vision.tiled import SCALE_FACTOR, TileLayout
from awq2trt.models.vision.windowed import WINDOW_SIZE, WindowLayout

VISION_START: Final = "vision_start_token_id"
VISION_END: Final = "vision_end_token_id"
"""Settings with the tokens before and after an image's, in families that have them."""


def tokens_around(record: VisionRecord) -> tuple[list[int], list[int]]:
    """Tokens that a model wants before and after those of an image."""
    before, after = ([record.settings[key]] if key in record.settings else [] for key in (VISION_START, VISION_END))
    return [int(str(token)) for token in before], [int(str(token)) for token in after]


def require_settings(record: VisionRecord) -> None:
    """Refuses settings of another tool, or of a damaged manifest.

    Raises:
        LookupError, TypeError, ValueError: A setting is missing or makes no sense.
    """
    tokens_around(record)
    if SCALE_FACTOR in record.settings:
        if TileLayout.of(record.settings).pieces < 1:
            raise ValueError(f"tiles of one piece or more, got settings {record.settings}")
    elif PINPOINTS in record.settings:
        if MosaicLayout.of(record.settings).side < 1:
            raise ValueError(f"tiles of one piece or more, got settings {record.settings}")
    elif record.tokens_per_image is None:
        layout = PatchLayout.of(record.settings)
        if min(layout.patch_size, layout.merge) < 1:
            raise ValueError(f"patches and pieces of one pixel or more, got settings {record.settings}")
        if WINDOW_SIZE in record.settings and WindowLayout.of(record.settings).side < 1:
            raise ValueError(f"windows of one piece or more, got window_size {record.settings[WINDOW_SIZE]}")


def arranged(record: VisionRecord, pixels: Pixels) -> PreparedImage:
    """An image as the vision graph takes it.

    Args:
        record: How the model sees.
        pixels: The image, prepared by the model's own processor.
    """
    if SCALE_FACTOR in record.settings and pixels.grid is not None:
        return TileLayout.of(record.settings).prepared(pixels)
    if PINPOINTS in record.settings and pixels.grid is not None:
        return MosaicLayout.of(record.settings).prepared(pixels)
    if record.tokens_per_image is None and pixels.grid is not None:
        layout = WindowLayout if WINDOW_SIZE in record.settings else PatchLayout
        return layout.of(record.settings).prepared(pixels)
    if IMAGE_BLOCKS in record.settings:
        return pooled_image(pixels, record.tokens_per_image or 0)
    return PreparedImage({PIXEL_VALUES: pixels.values[None]}, record.tokens_per_image or 0)
