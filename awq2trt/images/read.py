"""Reads image files as RGB, upright, with white in place of transparency.

In: a file of any kind that Pillow reads. Out: uint8 [height, width, 3], the first frame of an animation. It is turned
as its EXIF data says (`load_image` of transformers 5.24) and put on white (`convert_to_rgb` there). It needs only NumPy
and Pillow.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from awq2trt.errors import UsageError
from awq2trt.foreign_files import reading
from awq2trt.models.vision.prepared import MOST_ELONGATED

MOST_PIXELS: Final = 1 << 27
"""Images with more pixels are refused: 134 million take 400 MB as RGB. The largest sensors on sale have 150 million,
and phones have 200 million in a mode that few people use."""

_AGAIN: Final = "copy it again, or save it anew."

_KINDS: Final = "JPEG, PNG, WebP, GIF, BMP or TIFF"


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image file.

    Returns:
        RGB, uint8 [height, width, 3].

    Raises:
        UsageError: There is no such file, or it is not an image, is damaged, or has a size that makes no sense.
    """
    where = str(path)
    if not path.is_file():
        what = "a directory" if path.is_dir() else "no such file"
        raise UsageError(f"expected an image file, got {what}.", where=where, fix="name an image file.")
    with reading("an image", where, fix=_AGAIN, error=UsageError):
        return _decoded(path, where)


def _decoded(path: Path, where: str) -> NDArray[np.uint8]:
    """The image, or why there is none, as far as Pillow has a word for it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            with Image.open(path) as image:
                _check_size(image.size, where)
                return _upright_rgb(image)
    except UnidentifiedImageError as error:
        raise UsageError(
            f"expected an image ({_KINDS}), got a file that begins with {path.open('rb').read(8)!r}.",
            where=where,
            fix="name an image file, or convert it to PNG.",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), where) from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise UsageError(f"the image is truncated or damaged ({error}).", where=where, fix=_AGAIN) from error
    except MemoryError as error:  # a part of it claims a length that no memory has
        raise UsageError(
            "the image is damaged, or too large for the memory that is free.", where=where, fix=_AGAIN
        ) from error


def _check_size(size: tuple[int, int], where: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise _too_large(f"{width} x {height}", where)
    if max(size) > MOST_ELONGATED * min(size):
        raise UsageError(
            f"expected an image at most {MOST_ELONGATED} times as long as wide, got {width} x {height}.",
            where=where,
            fix="crop it to the part that matters.",
        )


def _too_large(got: str, where: str) -> UsageError:
    return UsageError(
        f"expected an image of at most {MOST_PIXELS:,} pixels, got {got}.", where=where, fix="make it smaller first."
    )


def _upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes the first frame as upright RGB."""
    upright = ImageOps.exif_transpose(image)
    if "A" in upright.getbands() or upright.info.get("transparency") is not None:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, upright)
    return np.asarray(upright.convert("RGB"))
