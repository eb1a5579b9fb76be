"""What a decoder reads that is the same in every call until another image is shown, whichever kind of model it is.

In: an exported model, as its manifest describes it. Out: rotary tables, images that are attended to, or how far
tokens see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from awq2trt.artifact.records import ModelRecord
from awq2trt.io_contract import ATTENDED_IMAGES, IMAGE_OF_SLOT, ROTARY_COS, VISIBLE_END
from awq2trt.runtime.attended_images import AttendedImages
from awq2trt.runtime.rotary_tables import RotaryTables
from awq2trt.runtime.visible_ends import VisibleEnds

Tables: TypeAlias = RotaryTables | AttendedImages | VisibleEnds
"""All have `arrays`, `version`, `restart` and `append`; what they are shown differs."""


def tables_of(model: ModelRecord, shapes: Mapping[str, tuple[int, ...]]) -> Tables | None:
    """Tables of an exported model, for an empty conversation; None for a decoder that reads none.

    Args:
        model: What its manifest says.
        shapes: Shapes of the decoder's tables by name, as `IoContract.tables` has them.
    """
    if model.vision is not None and ATTENDED_IMAGES in shapes and IMAGE_OF_SLOT in shapes:
        images, pieces, channels = shapes[ATTENDED_IMAGES]
        return AttendedImages(model.vision.image_token, (images, pieces, channels), *shapes[IMAGE_OF_SLOT])
    if model.vision is not None and VISIBLE_END in shapes:
        return VisibleEnds(model.vision.image_token, *shapes[VISIBLE_END])
    return RotaryTables.of(model, shapes[ROTARY_COS][0]) if ROTARY_COS in shapes else None
