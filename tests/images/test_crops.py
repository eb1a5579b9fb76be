"""Random crops lie within their picture, and show different parts of it."""

from __future__ import annotations

import numpy as np
import pytest

from awq2trt.images.crops import random_crop


def _numbered(height: int, width: int) -> np.ndarray:
    """A picture in which no two pixels are equal."""
    numbers = np.arange(height * width, dtype=np.uint32)
    return (
        np.stack([numbers >> 16, (numbers >> 8) & 255, numbers & 255], axis=-1)
        .astype(np.uint8)
        .reshape(height, width, 3)
    )


def _place(picture: np.ndarray, crop: np.ndarray) -> tuple[int, int]:
    (found,) = np.argwhere((picture == crop[0, 0]).all(axis=-1))
    return int(found[0]), int(found[1])


def test_a_crop_is_a_part_of_its_picture() -> None:
    picture, generator, shares, places = _numbered(60, 90), np.random.default_rng(0), list[float](), set()
    for _ in range(200):
        crop = random_crop(picture, generator)
        (top, left), (rows, columns) = _place(picture, crop), crop.shape[:2]
        assert np.array_equal(crop, picture[top : top + rows, left : left + columns])
        assert 0.7 < (columns / rows) / (90 / 60) < 1.4
        shares.append(rows * columns / (60 * 90))
        places.add((top, left))
    assert min(shares) < 0.3 < 0.9 < max(shares)
    assert len(places) > 100


def test_the_same_seed_cuts_the_same_parts() -> None:
    picture = _numbered(40, 30)
    one, same, other = (random_crop(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 399), (400, 2)])
def test_crops_of_thin_pictures_can_still_be_read(height: int, width: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        rows, columns = random_crop(_numbered(height, width), generator).shape[:2]
        assert 1 <= rows <= height
        assert 1 <= columns <= width
        assert max(rows, columns) <= 200 * min(rows, columns)
