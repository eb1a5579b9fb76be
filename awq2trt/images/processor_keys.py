"""Keys of a preprocessor_config.json that several processors have, and what they say of the numbers of pixels.

In: the file's contents. Out: checked values, with the defaults of transformers' classes; an error names the key.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.errors import UnsupportedError
from awq2trt.models.vision.description import CHANNELS

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the pictures that OpenAI's CLIP was trained on."""

DEFAULT_SIDE: Final = 224
_SCALE: Final = 1 / 255

LARGEST_SIDE: Final = 8192
"""The largest side that is accepted: more than twice that of the largest published tower."""

_PUBLISHED: Final = "use the file that the model was published with."


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What becomes of the numbers of pixels. None leaves a step out.

    Attributes:
        scale: Factor of the pixel values.
        mean: Subtracted, channel by channel.
        std: The divisor, channel by channel; given together with `mean`.
    """

    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [height, width, 3] -> fp32 [3, height, width]."""
        pixels: NDArray[np.float32] = image.astype(np.float32)
        if self.scale is not None:
            pixels = (image.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            pixels = ((pixels - mean) / std).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def resized(image: NDArray[np.uint8], height: int, width: int, resample: Image.Resampling) -> NDArray[np.uint8]:
    """An image of [height, width, 3] in another size."""
    return np.asarray(Image.fromarray(image).resize((width, height), resample=resample))


@dataclass(frozen=True)
class KeyReader:
    """Reads keys of a preprocessor_config.json, and checks each of them.

    Attributes:
        config: The file's contents.
        where: The file, for errors.
    """

    config: Mapping[str, Any]
    where: str

    def refusal(self, key: str, expected: str) -> UnsupportedError:
        """The error for a key with an unsupported value."""
        return UnsupportedError(
            f"{key}: expected {expected}, got {self.config.get(key)!r}.", where=self.where, fix=_PUBLISHED
        )

    def flag(self, key: str) -> bool:
        """Reads a switch that is on unless the file says otherwise."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value is not False

    def number(self, key: str, default: float) -> float:
        """Reads a positive number."""
        value = self.config.get(key, default)
        if not _is_number(value) or value <= 0:
            raise self.refusal(key, "a positive number")
        return float(value)

    def count(self, key: str, default: int, largest: int) -> int:
        """Reads a positive whole number."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            raise self.refusal(key, f"a whole number from 1 to {largest}")
        return value

    def channels(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Reads a number for each channel; a single one stands for all."""
        value = self.config.get(key)
        if value is None:
            return default
        several = value if isinstance(value, list) else [value] * CHANNELS
        if len(several) != CHANNELS or not all(_is_number(number) for number in several):
            raise self.refusal(key, "a number for each of red, green and blue")
        if key == "image_std" and min(several) <= 0:
            raise self.refusal(key, "positive numbers")
        return tuple(float(number) for number in several)

    def resample(self) -> Image.Resampling:
        """Reads the filter."""
        value = self.config.get("resample", Image.Resampling.BICUBIC)
        try:
            return Image.Resampling(value)
        except ValueError:
            raise self.refusal("resample", "the number of one of Pillow's filters, 0 to 5") from None

    def levels(self) -> Levels:
        """Reads what becomes of the numbers of pixels."""
        normalises = self.flag("do_normalize")
        return Levels(
            scale=self.number("rescale_factor", _SCALE) if self.flag("do_rescale") else None,
            mean=self.channels("image_mean", _MEAN) if normalises else None,
            std=self.channels("image_std", _STD) if normalises else None,
        )

    def resizing(self) -> tuple[int | None, tuple[int, int] | None]:
        """Returns `size`, either as the length of the shorter side, or as height and width."""
        value = self.config.get("size", DEFAULT_SIDE)
        if isinstance(value, dict) and set(value) == {"shortest_edge"}:
            value = value["shortest_edge"]
        if not isinstance(value, dict):
            if not _is_side(value):
                raise self.refusal("size", f"a side from 1 to {LARGEST_SIDE}")
            return value, None
        return None, self.sides("size", value)

    def sides(self, key: str, value: object) -> tuple[int, int]:
        """Returns height and width; a single number stands for both."""
        height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
        if not (_is_side(height) and _is_side(width)):
            raise self.refusal(key, f"height and width from 1 to {LARGEST_SIDE}")
        return height, width


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIDE
