"""Prepares images for a vision tower exactly as a model's own processor would, bit for bit.

In: uint8 [height, width, 3] (`awq2trt.images.read`) and the model's preprocessor_config.json. Out: fp32 [3, height,
width], or patches (`awq2trt.images.patches`), or tiles (`awq2trt.images.tiles`, `awq2trt.images.mosaics`). It needs
only NumPy and Pillow.

Source: `CLIPImageProcessor` of transformers 5.24, with its Pillow backend (`image_processing_backends.PilBackend`),
which is the original one: resize, cut out the middle, scale, normalise.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from awq2trt.artifact.records import VisionRecord
from awq2trt.errors import CheckpointError, UnsupportedError
from awq2trt.foreign_files import parse_json, read_bounded, reading
from awq2trt.images.mosaics import Mosaics, describe_mosaics
from awq2trt.images.patches import Patches, describe_patches
from awq2trt.images.processor_keys import DEFAULT_SIDE, KeyReader, Levels, resized
from awq2trt.images.tiles import Tiles, describe_tiles
from awq2trt.models.sources.base import ModelSource
from awq2trt.models.vision.description import CHANNELS, SeeingSpec, StillSpec
from awq2trt.models.vision.mosaic import PINPOINTS, MosaicLayout, MosaicSpec
from awq2trt.models.vision.patch_layout import FRAMES, MERGE, PATCH_SIZE
from awq2trt.models.vision.patched import PatchVisionSpec
from awq2trt.models.vision.prepared import Pixels
from awq2trt.models.vision.tiled import SCALE_FACTOR, TiledVisionSpec, TileLayout

PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
"""Files in which transformers stores an image processor: alone, or (since version 5) as part of the complete
processor."""

_LARGEST_FILE: Final = 1 << 20
"""Bytes; published ones have less than 2,000."""


_SIGLIP_LEVEL: Final = (0.5, 0.5, 0.5)
"""Mean and deviation of each channel: numbers become those from -1 to 1."""


class Processor(Protocol):
    """What every image processor does."""

    def pixels(self, image: NDArray[np.uint8]) -> Pixels:
        """Prepares an image, RGB uint8 [height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """The steps that prepare an image, in this order. None leaves a step out.

    Attributes:
        shortest_edge: New length of the shorter side; the other side keeps the proportion.
        size: New height and width, regardless of the proportion; an alternative to `shortest_edge`.
        resample: Pillow's filter.
        crop: Height and width of the middle that is kept; a smaller image gets a black margin.
        levels: What becomes of the numbers of pixels.
    """

    shortest_edge: int | None
    size: tuple[int, int] | None
    resample: Image.Resampling
    crop: tuple[int, int] | None
    levels: Levels

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepares an image: RGB uint8 [height, width, 3] -> fp32 [3, height, width]."""
        image = self._resized(image)
        return self.levels.of(image if self.crop is None else _centre(image, self.crop))

    def pixels(self, image: NDArray[np.uint8]) -> Pixels:
        """The same, as every processor gives it."""
        return Pixels(self.prepare(image))

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if self.shortest_edge is not None:
            longer = int(self.shortest_edge * max(height, width) / min(height, width))
            height, width = (longer, self.shortest_edge) if width <= height else (self.shortest_edge, longer)
        elif self.size is not None:
            height, width = self.size
        else:
            return image
        return resized(image, height, width, self.resample)


def read_processor(directory: Path, *, name: str | None = None) -> Processor:
    """Reads the image processor of a model's directory.

    Args:
        directory: Where its files are.
        name: What the user calls the model, for errors; None for the directory.

    Raises:
        CheckpointError: The file is missing or damaged.
        UnsupportedError: The processor is of an unknown kind, or a key has an unsupported value.
    """
    path, _, config = _found(directory, name or str(directory))
    return describe_processor(config, where=f"{name or directory}: {path.name}")


def _found(directory: Path, name: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The file with an image processor, all that it says, and the part about the processor."""
    for path in (directory / file for file in PROCESSOR_FILES):
        if not path.is_file():
            continue
        where = f"{name}: {path.name}"
        with reading("an image processor", where):
            whole = parse_json(read_bounded(path, _LARGEST_FILE))
            if not isinstance(whole, dict):
                raise TypeError(f"expected a JSON object, got {type(whole).__name__}")
        part = whole.get("image_processor", whole)
        if not isinstance(part, dict):
            raise CheckpointError("expected a JSON object.", where=where, fix="download it again.")
        if "image_processor_type" in part or "feature_extractor_type" in part:
            return path, whole, part
    raise CheckpointError(
        f"expected an image processor in {' or '.join(PROCESSOR_FILES)}, got none.",
        where=name,
        fix="download the model's own processor.",
    )


def processor_of(source: ModelSource) -> Processor:
    """The image processor that a model brings along; errors as for `read_processor`."""
    with tempfile.TemporaryDirectory(prefix="awq2trt-") as directory:
        source.save_tokenizer(Path(directory))
        return read_processor(Path(directory), name=source.name)


def limit_pieces_(directory: Path, vision: VisionRecord, pieces: int) -> Patches | Tiles | Mosaics | None:
    """Limits the pieces of an image, in a directory's own processor file, so that transformers makes the same.

    Args:
        directory: A model's; its processor's file is changed if its limit is higher.
        vision: How the model sees.
        pieces: The most that an image may have; it has those of a tile at least.

    Returns:
        The processor; None if it makes images of one size.

    Raises:
        CheckpointError, UnsupportedError: As of `read_processor`.
    """
    processor = read_processor(directory)
    limited: Patches | Tiles | Mosaics
    if isinstance(processor, Patches):
        limited = processor.at_most(pieces)
    elif isinstance(processor, Tiles):
        limited = processor.at_most(pieces // TileLayout.of(vision.settings).pieces)
    elif isinstance(processor, Mosaics):
        limited = processor.at_most(pieces, MosaicLayout.of(vision.settings))
    else:
        return None
    if limited != processor:
        path, whole, part = _found(directory, str(directory))
        part.update(limited.changes())
        path.write_text(f"{json.dumps(whole, indent=2)}\n", encoding="utf-8")
    return limited


def require_fit(processor: Processor, vision: SeeingSpec, *, where: str) -> None:
    """Refuses a processor that does not make what a tower takes, whatever the image's shape.

    Args:
        processor: The processor.
        vision: How the model sees.
        where: The model, for errors.

    Raises:
        UnsupportedError: It does not.
    """
    if isinstance(vision, PatchVisionSpec):
        _require_patches(processor, vision.tower.settings, where)
    elif isinstance(vision, TiledVisionSpec):
        _require_tiles(processor, vision.tower.image_size, where)
    elif isinstance(vision, MosaicSpec):
        _require_mosaic(processor, vision, where)
    elif isinstance(vision, StillSpec):
        _require_side(processor, vision.tower.image_size, where)


def require_recorded(processor: Processor, record: VisionRecord, *, where: str) -> None:
    """Refuses a processor that was changed since the export, where the number or the size of what it makes tells it.

    Args:
        processor: The processor.
        record: How the exported model sees.
        where: The model, for errors.

    Raises:
        UnsupportedError: It makes patches, pieces or tiles of another size.
    """
    if MERGE in record.settings:
        _require_patches(processor, record.settings, where)
    elif SCALE_FACTOR in record.settings:
        _require_tiles(processor, record.settings["image_size"], where)


def _require_patches(processor: Processor, settings: Mapping[str, object], where: str) -> None:
    wanted = tuple(settings.get(key) for key in (PATCH_SIZE, FRAMES, MERGE))
    found = (processor.patch_size, processor.frames, processor.merge) if isinstance(processor, Patches) else ()
    if found != wanted:
        raise _misfit("the tower's patch_size, temporal_patch_size and merge_size", wanted, found, where)


def _require_tiles(processor: Processor, side: object, where: str) -> None:
    found = (processor.side,) if isinstance(processor, Tiles) else ()
    if found != (side,):
        raise _misfit("the tower's image_size as its max_image_size", (side,), found, where)


def _misfit(what: str, wanted: Sequence[object], found: Sequence[int], where: str) -> UnsupportedError:
    return UnsupportedError(
        f"expected an image processor with {what}, {', '.join(map(str, wanted))}, got "
        f"{', '.join(map(str, found)) or 'one of another kind'}.",
        where=where,
        fix="use the preprocessor_config.json that the model was published with.",
    )


def _require_side(processor: Processor, side: int, where: str) -> None:
    shape = processor.pixels(np.zeros((1, 2, CHANNELS), np.uint8)).values.shape
    if shape != (CHANNELS, side, side):
        raise UnsupportedError(
            f"expected an image processor that makes {side} x {side} pixels, as the tower sees, got one that makes "
            f"{' x '.join(map(str, shape[1:]))} of an image of another shape.",
            where=where,
            fix=f"set size and crop_size to {side} in preprocessor_config.json, or do_center_crop to true.",
        )


def _require_mosaic(processor: Processor, vision: MosaicSpec, where: str) -> None:
    wanted = (vision.tile.tower.image_size, *chain.from_iterable(vision.sizes))
    found = (processor.side, *chain.from_iterable(processor.sizes)) if isinstance(processor, Mosaics) else ()
    if found != wanted:
        raise _misfit(f"the tower's image_size as its crop_size and config.json's {PINPOINTS}", wanted, found, where)


def describe_processor(config: Mapping[str, Any], *, where: str) -> Processor:
    """Makes the image processor that a preprocessor_config.json describes.

    Args:
        config: The file's contents; missing keys have the defaults of transformers' class.
        where: The file, for errors.

    Raises:
        UnsupportedError: The same as in `read_processor`.
    """
    reader = KeyReader(config, where)
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    describe = _KINDS.get(kind.removesuffix("Fast").removesuffix("Pil"))
    if describe is None:
        raise reader.refusal("image_processor_type", " or ".join(dict.fromkeys(_KINDS)))
    return describe(reader)


def _describe_clip(reader: KeyReader) -> ImageProcessor:
    reader.refuse_padding()
    return _describe_steps(reader)


def _describe_mosaics(reader: KeyReader) -> Mosaics:
    return describe_mosaics(reader, _describe_steps(reader))


def _describe_steps(reader: KeyReader) -> ImageProcessor:
    shortest_edge, size = reader.resizing() if reader.flag("do_resize") else (None, None)
    crop = None
    if reader.flag("do_center_crop"):
        crop = reader.sides("crop_size", reader.config.get("crop_size", DEFAULT_SIDE))
    return ImageProcessor(
        shortest_edge=shortest_edge, size=size, resample=reader.resample(), crop=crop, levels=reader.levels()
    )


def _describe_gemma(reader: KeyReader) -> ImageProcessor:
    """Gemma 3's: both sides in the tower's size, with SigLIP's levels; it does not cut images here."""
    if reader.config.get("do_pan_and_scan"):
        raise reader.refusal("do_pan_and_scan", "false, as published models have it")
    reader.refuse_padding()
    size = reader.sides("size", reader.config.get("size", DEFAULT_SIDE)) if reader.flag("do_resize") else None
    return ImageProcessor(
        shortest_edge=None,
        size=size,
        resample=reader.resample(Image.Resampling.BILINEAR),
        crop=None,
        levels=reader.levels(_SIGLIP_LEVEL, _SIGLIP_LEVEL),
    )


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


_KINDS: Final[Mapping[str, Callable[[KeyReader], Processor]]] = {
    "CLIPImageProcessor": _describe_clip,
    "CLIPFeatureExtractor": _describe_clip,
    "Qwen2VLImageProcessor": describe_patches,
    "LlavaNextImageProcessor": _describe_mosaics,
    "Idefics3ImageProcessor": describe_tiles,
    "SmolVLMImageProcessor": describe_tiles,
    "Gemma3ImageProcessor": _describe_gemma,
}
"""Names of transformers' classes, without the ends that name a backend."""
