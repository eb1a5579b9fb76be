"""Images of conversations that a decoder attends to: each token has the last one whose token is not after it."""

from __future__ import annotations

import numpy as np
import pytest

from awq2trt.errors import UsageError
from awq2trt.io_contract import ATTENDED_IMAGES, IMAGE_OF_SLOT
from awq2trt.runtime.attended_images import AttendedImages

IMAGE, CAPACITY = 7, 9


def _image(value: float) -> np.ndarray:
    return np.full((2, 3), value, np.float32)


def test_tokens_attend_to_the_last_image_and_so_does_what_follows() -> None:
    tables = AttendedImages(IMAGE, (2, 2, 3), CAPACITY)
    bound = dict(tables.arrays)
    tables.append([1, 2])
    assert tables.version == 0, "a text changes nothing"
    tables.show([_image(1), _image(2)])
    tables.append([IMAGE, 3, IMAGE])
    tables.append([4])
    assert tables.arrays[IMAGE_OF_SLOT].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]
    assert tables.arrays[ATTENDED_IMAGES][:, 0, 0].tolist() == [1, 2]
    assert all(tables.arrays[name] is array for name, array in bound.items()), "what is bound stays bound"
    version = tables.version
    tables.append([IMAGE, 5])  # a token that the model wrote, which stands for no image
    assert tables.version == version
    assert tables.arrays[IMAGE_OF_SLOT].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 2]


def test_a_conversation_begins_without_images() -> None:
    tables = AttendedImages(IMAGE, (1, 2, 3), CAPACITY)
    tables.show([_image(1)])
    tables.append([IMAGE])
    version = tables.version
    tables.restart()
    assert tables.version > version
    assert not tables.arrays[IMAGE_OF_SLOT].any()
    tables.append([IMAGE, 2])
    assert not tables.arrays[IMAGE_OF_SLOT].any()
    tables.show([_image(3)])
    tables.append([4, IMAGE])
    assert tables.arrays[IMAGE_OF_SLOT].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert (tables.arrays[ATTENDED_IMAGES] == 3).all()


def test_more_images_than_the_decoder_takes_are_refused_before_any_is_added() -> None:
    tables = AttendedImages(IMAGE, (2, 2, 3), CAPACITY)
    tables.show([_image(1)])
    with pytest.raises(UsageError, match=r"may have 2 images, got 3.*--max-images 3 or more"):
        tables.show([_image(2), _image(3)])
    tables.show([_image(2)])
    assert tables.arrays[ATTENDED_IMAGES][:, 0, 0].tolist() == [1, 2]
