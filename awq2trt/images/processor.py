"""Prepares images for a vision tower exactly as a model's own processor would, bit for bit.

In: uint8 [height, width, 3] (`awq2trt.images.read`) and the model's preprocessor_config.json. Out: fp32 [3, height,
width]. It needs only NumPy and Pillow.

Source: `CLIPImageProcessor` of transformers 5.24, with its Pillow backend (`image_processing_backends.PilBackend`),
which is the original one: resize, cut out the middle, scale, normalise.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import parse_json, read_bounded, reading
from awq2trt.models.sources.base import ModelSource

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Files in which transformers stores an image processor: alone, or (since version 5) as part of the complete
processor."""

_CHANNELS: Final = 3

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the pictures that OpenAI's CLIP was trained on."""

_SIDE: Final = 224
_SCALE: Final = 1 / 255

_LARGEST_SIDE: Final = 8192
"""The largest side that is accepted: more than twice that of the largest published tower."""

_LARGEST_FILE: Final = 1 << 20
"""Bytes; published ones have less than 2,000."""

_PUBLISHED: Final = "use the file that the model was published with."


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """The steps that prepare an image, in this order. None leaves a step out.

    Attributes:
        shortest_edge: New length of the shorter side; the other side keeps the proportion.
        size: New height and width, regardless of the proportion; an alternative to `shortest_edge`.
        resample: Pillow's filter.
        crop: Height and width of the middle that is kept; a smaller image gets a black margin.
        scale: Factor of the pixel values.
        mean: Subtracted, channel by channel.
        std: The divisor, channel by channel; given together with `mean`.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepares an image: RGB uint8 [height, width, 3] -> fp32 [3, height, width]."""
        if self.crop is not None:
            image = _centre(self._resized(image), self.crop)
        else:
            image = self._resized(image)
        pixels: NDArray[np.float32] = image.astype(np.float32)
        if self.scale is not None:
            pixels = (image.astype(np.float64) * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            pixels = ((pixels - mean) / std).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if self.shortest_edge is not None:
            longer = int(self.shortest_edge * max(height, width) / min(height, width))
            height, width = (longer, self.shortest_edge) if width <= height else (self.shortest_edge, longer)
        elif self.size is not None:
            height, width = self.size
        else:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), resample=self.resample))


def read_processor(directory: Path, *, name: str | None = None) -> ImageProcessor:
    """Reads the image processor of a model's directory.

    Args:
        directory: Where its files are.
        name: What the user calls the model, for errors; None for the directory.

    Raises:
        CheckpointError: The file is missing or damaged.
        UnsupportedError: The processor is of another kind than CLIP's, or a key has an unsupported value.
    """
    for path in (directory / file for file in PROCESSOR_FILES):
        if not path.is_file():
            continue
        where = f"{name or directory}: {path.name}"
        with reading("an image processor", where):
            config = parse_json(read_bounded(path, _LARGEST_FILE))
            if not isinstance(config, dict):
                raise TypeError(f"expected a JSON object, got {type(config).__name__}")
        config = config.get("image_processor", config)
        if not isinstance(config, dict):
            raise CheckpointError("expected a JSON object.", where=where, fix="download it again.")
        if "image_processor_type" in config or "feature_extractor_type" in config:
            return describe_processor(config, where=where)
    raise CheckpointError(
        f"expected an image processor in {' or '.join(PROCESSOR_FILES)}, got none.",
        where=name or str(directory),
        fix="download the model's own processor.",
    )


def processor_of(source: ModelSource) -> ImageProcessor:
    """The image processor that a model brings along; errors as for `read_processor`."""
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        source.save_tokenizer(Path(directory))
        return read_processor(Path(directory))


def require_side(processor: ImageProcessor, side: int, *, where: str) -> None:
    """Refuses a processor that does not make squares of the size that a tower wants, whatever the image's.

    Args:
        processor: It.
        side: Pixels of a side.
        where: The model, for errors.

    Raises:
        UnsupportedError: It does not.
    """
    shape = processor.prepare(np.zeros((1, 2, _CHANNELS), np.uint8)).shape
    if shape != (_CHANNELS, side, side):
        raise UnsupportedError(
            f"expected an image processor that makes {side} x {side} pixels, as the tower sees, got one that makes "
            f"{shape[1]} x {shape[2]} of an image of another shape.",
            where=where,
            fix=f"set size and crop_size to {side} in preprocessor_config.json, or do_center_crop to true.",
        )


def describe_processor(config: Mapping[str, Any], *, where: str) -> ImageProcessor:
    """Makes the image processor that a preprocessor_config.json describes.

    Args:
        config: The file's contents; missing keys have the defaults of transformers' class.
        where: The file, for errors.

    Raises:
        UnsupportedError: The same as in `read_processor`.
    """
    reader = _Reader(config, where)
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    if str(kind).removesuffix("Fast").removesuffix("Pil") not in ("CLIPImageProcessor", "CLIPFeatureExtractor"):
        raise reader.refusal("image_processor_type", "CLIPImageProcessor")
    if config.get("do_pad"):
        raise reader.refusal("do_pad", "false")
    shortest_edge, size = None, None
    if reader.flag("do_resize"):
        shortest_edge, size = reader.resizing()
    normalises = reader.flag("do_normalize")
    return ImageProcessor(
        shortest_edge=shortest_edge,
        size=size,
        resample=reader.resample(),
        crop=reader.sides("crop_size", config.get("crop_size", _SIDE)) if reader.flag("do_center_crop") else None,
        scale=reader.number("rescale_factor", _SCALE) if reader.flag("do_rescale") else None,
        mean=reader.channels("image_mean", _MEAN) if normalises else None,
        std=reader.channels("image_std", _STD) if normalises else None,
    )


@dataclass(frozen=True)
class _Reader:
    """Reads keys of a preprocessor_config.json, and checks each of them."""

    config: Mapping[str, Any]
    where: str

    def refusal(self, key: str, expected: str) -> UnsupportedError:
        return UnsupportedError(
            f"{key}: expected {expected}, got {self.config.get(key)!r}.", where=self.where, fix=_PUBLISHED
        )

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value is not False

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if not _is_number(value) or value <= 0:
            raise self.refusal(key, "a positive number")
        return float(value)

    def channels(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        value = self.config.get(key)
        if value is None:
            return default
        several = value if isinstance(value, list) else [value] * _CHANNELS
        if len(several) != _CHANNELS or not all(_is_number(number) for number in several):
            raise self.refusal(key, "a number for each of red, green and blue")
        if key == "image_std" and min(several) <= 0:
            raise self.refusal(key, "positive numbers")
        return tuple(float(number) for number in several)

    def resample(self) -> Image.Resampling:
        value = self.config.get("resample", Image.Resampling.BICUBIC)
        try:
            return Image.Resampling(value)
        except ValueError:
            raise self.refusal("resample", "the number of one of Pillow's filters, 0 to 5") from None

    def resizing(self) -> tuple[int | None, tuple[int, int] | None]:
        """Returns `size`, either as the length of the shorter side, or as height and width."""
        value = self.config.get("size", _SIDE)
        if isinstance(value, dict) and set(value) == {"shortest_edge"}:
            value = value["shortest_edge"]
        if not isinstance(value, dict):
            if not _is_side(value):
                raise self.refusal("size", f"a side from 1 to {_LARGEST_SIDE}")
            return value, None
        return None, self.sides("size", value)

    def sides(self, key: str, value: object) -> tuple[int, int]:
        """Returns height and width; a single number stands for both."""
        height, width = (value.get("height"), value.get("width")) if isinstance(value, dict) else (value, value)
        if not (_is_side(height) and _is_side(width)):
            raise self.refusal(key, f"height and width from 1 to {_LARGEST_SIDE}")
        return height, width


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_side(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE


def _centre(image: NDArray[np.uint8], crop: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle of [height, width, 3]; a side that is too short gets black margins, with the larger one first."""
    for axis, wanted in enumerate(crop):
        length = image.shape[axis]
        if length < wanted:
            before = math.ceil((wanted - length) / 2)
            margins = [(0, 0)] * image.ndim
            margins[axis] = (before, wanted - length - before)
            image = np.pad(image, margins)
        else:
            first = (length - wanted) // 2
            image = image.take(range(first, first + wanted), axis=axis)
    return image
