"""Arranges what an image processor makes for the vision graph of a model, by what its manifest says.

In: a vision record, and prepared pixels. Out: a `PreparedImage`. It is the place that knows all families. NumPy only.
"""

from __future__ import annotations

from awq2trt.artifact.records import VisionRecord
from awq2trt.io_contract import PIXEL_VALUES
from awq2trt.models.vision.prepared import Pixels, PreparedImage
from awq2trt.models.vision.windowed import WindowLayout


def arranged(record: VisionRecord, pixels: Pixels) -> PreparedImage:
    """An image as the vision graph takes it.

    Args:
        record: How the model sees.
        pixels: The image, prepared by the model's own processor.
    """
    if record.tokens_per_image is None and pixels.grid is not None:
        return WindowLayout.of(record.settings).prepared(pixels)
    return PreparedImage({PIXEL_VALUES: pixels.values[None]}, record.tokens_per_image or 0)
